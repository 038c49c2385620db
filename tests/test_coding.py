"""Entropy coding: the same tokens come back, at the cost that the prior says, or it is refused."""

import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from prior_work import COND, make, random_tokens
from qvae.autoencoder import build_autoencoder
from qvae.cli.main import main
from qvae.coding import compress, decode_tokens, decompress, encode_tokens, uniform_prior
from qvae.data.codecs import bytes_at_psnr
from qvae.data.images import Images
from qvae.errors import FormatError, UsageError
from qvae.pretrained import save_model
from qvae.priors.base import build_prior
from qvae.runs.bits import total_bits
from qvae.runs.files import decompress_file, read_sample, write_sample
from qvae.runs.inpainting import region_mask
from qvae.runs.loading import Run, open_run
from qvae.runs.scores import evaluate_run
from qvae.tokenizer import Tokenizer
from qvae.types import Batch, Condition, DataSpec

TRANSFORMER = {"name": "transformer", "num_layers": 1, "dim": 16, "num_heads": 2}
CODED = [
    {"name": "uniform"},
    {**TRANSFORMER, "pattern": "delayed"},
    {"name": "pixelcnn", "num_layers": 2, "dim": 8, "kernel": 3},
    {"name": "masked", "num_layers": 1, "dim": 16, "num_heads": 2, "num_steps": 3},
]
LABEL = Condition(name="label", kind="category", categories=("a", "b"))


def make_tokenizer(seed=0, conditions=(LABEL,)):
    torch.manual_seed(seed)
    parts = {
        "encoder": {"name": "conv"},
        "bottleneck": {"name": "fsq", "levels": [5, 4]},
        "decoder": {"name": "conv"},
        "likelihood": {"name": "categorical"},
    }
    spec = DataSpec(shape=(1, 16, 16), conditions=conditions, levels=256)
    return Tokenizer(build_autoencoder(parts, spec).eval())


def prior_of(tokenizer, config=TRANSFORMER):
    torch.manual_seed(1)
    return build_prior(
        config,
        vocab_size=tokenizer.vocab_size,
        num_tokens=tokenizer.num_tokens,
        conditions=tokenizer.spec.conditions,
        codebook_sizes=tokenizer.codebook_sizes,
        grid=tokenizer.grid,
    ).eval()


@pytest.mark.parametrize("config", CODED, ids=lambda config: config["name"])
def test_tokens_come_back_at_the_price_of_the_prior(config):
    torch.manual_seed(0)
    prior = make(config, num_tokens=48, grid=(4, 6))
    for tokens in random_tokens(prior, 4):
        data = encode_tokens(prior, tokens, COND[0])
        assert torch.equal(decode_tokens(prior, data, COND[0]), tokens)
        bits = float(prior.nll(tokens[None], COND[:1]).detach()) / math.log(2)
        assert bits / 8 - 1 < len(data) < bits / 8 + 5


def test_a_good_prior_makes_short_codes():
    prior = make({"name": "unigram"}, sizes=(64,), num_tokens=32)
    tokens = torch.randint(0, 2, (200, 32))
    prior.count(tokens)
    short = len(encode_tokens(prior, tokens[0]))
    uniform = make({"name": "uniform"}, (64,), 32)
    assert short <= 8 < 24 <= len(encode_tokens(uniform, tokens[0])) <= 26


def test_bytes_hold_what_it_takes_and_nothing_of_another_model():
    tokenizer = make_tokenizer()
    prior = prior_of(tokenizer)
    x = torch.rand(1, 16, 16)
    found = compress(x, tokenizer=tokenizer, prior=prior, cond=torch.tensor([1.0]))
    again = decompress(found.data, tokenizer=tokenizer, prior=prior)
    assert torch.equal(again.tokens, found.tokens) and torch.equal(again.recon, found.recon)
    assert again.psnr == found.psnr and found.data[:2] == b"QV"
    other = make_tokenizer(seed=2)
    with pytest.raises(FormatError, match=f"tokenizer {tokenizer.hash[:12]}.*{other.hash[:12]}"):
        decompress(found.data, tokenizer=other, prior=prior)
    with pytest.raises(FormatError, match="with prior"):
        decompress(found.data, tokenizer=tokenizer, prior=uniform_prior(tokenizer))


def test_damage_is_named():
    tokenizer = make_tokenizer(conditions=())
    prior = uniform_prior(tokenizer)
    data = compress(torch.rand(1, 16, 16), tokenizer=tokenizer, prior=prior).data
    for broken, text in [
        (b"", "starts with b''"),
        (b"PNG" + data, "starts with b'PN'"),
        (data[:2] + b"\x09" + data[3:], "format version 9"),
        (data[:10], "cut off"),
        (data[:4] + b"\xff" * 9 + data[4:], "no end"),
        (data[:-1] + bytes([data[-1] ^ 255]), "damaged"),
        (data[:-4], "damaged"),
        (data + b"junk", "payload are not"),
        (data + b"\0", "payload are not"),
    ]:
        with pytest.raises(FormatError, match=text):
            decompress(broken, tokenizer=tokenizer, prior=prior)


def test_whatever_byte_is_changed_the_file_is_refused():
    """Also where the prior hears nothing, and only the decoder would draw another picture."""
    tokenizer = make_tokenizer(conditions=(Condition(name="size", kind="number"),))
    prior, x = uniform_prior(tokenizer), torch.rand(1, 16, 16)
    data = compress(x, tokenizer=tokenizer, prior=prior, cond=torch.tensor([2.5])).data
    for at in range(len(data)):
        broken = data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]
        with pytest.raises(FormatError):
            decompress(broken, tokenizer=tokenizer, prior=prior)


@pytest.mark.parametrize("length", [-1, 0, 13])
def test_no_more_tokens_are_decoded_than_there_are(length):
    with pytest.raises(ValueError, match=rf"length={length}: must be in 1..12"):
        decode_tokens(make({"name": "uniform"}, (5, 3), 12), b"", length=length)


def test_what_is_no_row_of_tokens_and_no_length_is_refused(as_users_call):
    prior = make(CODED[1])
    row = random_tokens(prior, 1)
    for tokens, text in ((row, r"tokens of shape \(1, 12\): needs .L."), ([0] * 12, "came list")):
        with pytest.raises(ValueError, match=text):
            encode_tokens(prior, tokens)
    data = encode_tokens(prior, row[0])
    for length in (1.5, True, "3"):
        with pytest.raises(ValueError, match=f"^length={length!r}: must be a whole number$"):
            decode_tokens(prior, data, length=length)


def test_a_payload_is_the_code_of_its_tokens_or_refused():
    """Mostly 0xFF is what the library itself chokes on; no other error may come out."""
    prior = make({"name": "uniform"}, (5, 3), 12)
    rng = np.random.default_rng(0)
    messages = set()
    for _ in range(300):
        size = int(rng.integers(1, 9))
        payload = bytes(np.where(rng.random(size) < 0.9, 255, rng.integers(0, 256, size)).tolist())
        try:
            tokens = decode_tokens(prior, payload)
        except FormatError as error:
            messages.add(str(error).split()[0])
        else:
            assert encode_tokens(prior, tokens) == payload
    assert "no" in messages and len(messages) > 1, "both ways of being no code"


def test_conditions_of_a_damaged_header_are_refused():
    tokenizer = make_tokenizer()
    prior = prior_of(tokenizer)
    found = compress(
        torch.rand(1, 16, 16), tokenizer=tokenizer, prior=prior, cond=torch.tensor([1.0])
    )
    at = len(found.data) - found.payload - 4
    broken = found.data[:at] + np.float32(7).tobytes() + found.data[at + 4 :]
    with pytest.raises(FormatError, match="conditions of the header: .*label"):
        decompress(broken, tokenizer=tokenizer, prior=prior)


def test_other_codecs_are_at_least_as_good_and_as_small_as_can_be():
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(32), np.arange(32))[None] * 3 + rng.integers(0, 9, (1, 32, 32))
    found = bytes_at_psnr(smooth.astype(np.uint8), 35.0)
    assert found["jpeg"]["psnr"] >= 35 and found["webp"]["psnr"] >= 35
    finer = bytes_at_psnr(smooth.astype(np.uint8), 45.0)
    assert finer["jpeg"]["bytes"] > found["jpeg"]["bytes"]
    assert finer["png"] == found["png"] and finer["png"]["psnr"] is None


@pytest.fixture
def run(tmp_path):
    """A prior's run folder, untrained, and a picture."""
    tokenizer = make_tokenizer()
    folder = tmp_path / "run"
    save_model(prior_of(tokenizer), folder / "model")
    tokenizer.save_pretrained(folder / "tokenizer")
    first = tmp_path / "first"
    save_model(tokenizer.model, first / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    return folder


def call(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_compress_and_decompress_on_the_command_line(run, tmp_path, capsys):
    picture, coded, back = tmp_path / "x.png", tmp_path / "x.qv", tmp_path / "back.png"
    code, out, _ = call(capsys, "compress", run, picture, "-o", coded, "--json")
    found = json.loads(out)
    assert code == 0 and found["bytes"] == coded.stat().st_size
    assert set(found["others"]) == {"png", "webp", "jpeg"}
    assert "decodes to the same tokens" in call(capsys, "compress", run, picture, "-o", coded)[1]
    assert call(capsys, "decompress", run, coded, "-o", back)[0] == 0
    with Image.open(back) as image:
        assert image.size == (16, 16)
    code, _, err = call(capsys, "decompress", tmp_path / "first", coded, "-o", back)
    assert code == 4 and "written with prior" in err
    Image.new("L", (20, 16)).save(tmp_path / "wide.png")
    code, _, err = call(capsys, "compress", run, tmp_path / "wide.png", "-o", coded)
    assert code == 3 and "20 x 16 pixels, the model takes 16 x 16" in err
    assert call(capsys, "compress", run, picture, "-o", tmp_path)[0] == 2


def test_what_is_written_is_what_its_name_says(run, tmp_path, capsys):
    """A picture in a file named .jpg or .npy would be none; and folders are made, as elsewhere."""
    coded = tmp_path / "new" / "folder" / "x.qv"
    assert call(capsys, "compress", run, tmp_path / "x.png", "-o", coded)[0] == 0
    for name in ("back.jpg", "back", "back.npz"):
        code, _, err = call(capsys, "decompress", run, coded, "-o", tmp_path / name)
        rule = "a sample of shape (1, 16, 16) is written to .png or .npy"
        assert code == 2 and f"{name}: {rule}" in err and not (tmp_path / name).exists()
    arrays = tmp_path / "other" / "back.npy"
    assert call(capsys, "decompress", run, coded, "-o", arrays)[0] == 0
    assert call(capsys, "decompress", run, coded, "-o", tmp_path / "back.PNG")[0] == 0
    with Image.open(tmp_path / "back.PNG") as image:
        pixels = np.asarray(image)
    assert np.array_equal((np.load(arrays)[0] * 255).round().astype(np.uint8), pixels)
    with pytest.raises(UsageError, match=r"x.png: a sample of shape \(1, 8\) is written to .npy$"):
        write_sample(torch.zeros(1, 8), tmp_path / "x.png")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: x.astype(np.float32) * np.nan, "holds NaN or Inf, needs finite values"),
        (lambda x: x * 255.0, "float64 values from 0 to 65025, the model takes .0, 1."),
        (lambda x: x - 1.0, "float64 values from -1 to 254, the model takes .0, 1."),
        (lambda x: x.astype(np.uint16) + 1, "uint16 values from 1 to 256, the model takes"),
        (lambda x: x.astype(np.int64), "int64 of shape .1, 16, 16., the model takes floats"),
        (lambda x: x[0], "uint8 of shape .16, 16., the model takes floats, uint8 or bool of .1,"),
    ],
)
def test_an_array_that_is_no_sample_is_refused(run, tmp_path, capsys, change, text):
    """Numbers of 0 to 255 as floats above all: they gave tokens, scores and bytes of nothing."""
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    np.save(tmp_path / "x.npy", change(pixels))
    for words in (["score"], ["compress", "-o", tmp_path / "x.qv"]):
        code, _, err = call(capsys, words[0], run, tmp_path / "x.npy", *words[1:])
        assert code == 3 and re.search(rf"x\.npy: {text}", err), err


def test_arrays_of_each_type_are_the_same_sample(run, tmp_path):
    spec = open_run(run).tokenizer.spec
    bits = np.random.default_rng(0).integers(0, 2, (1, 16, 16))
    kinds = {"bool": bits > 0, "uint8": (255 * bits).astype(np.uint8), "float": bits / 1.0}
    for name, array in kinds.items():
        np.save(tmp_path / f"{name}.npy", array)
        found = read_sample(tmp_path / f"{name}.npy", spec)
        assert found.dtype == torch.float32 and np.array_equal(found.numpy(), bits)
    series = DataSpec(shape=(1, 5))  # no levels: any finite number may come
    np.save(tmp_path / "series.npy", np.array([[-3.0, 0, 1, 2, 99]]))
    assert read_sample(tmp_path / "series.npy", series).tolist() == [[-3.0, 0, 1, 2, 99]]


def test_what_compress_is_told_is_in_the_bytes(run, tmp_path, capsys):
    picture, coded, back = tmp_path / "x.png", tmp_path / "x.qv", tmp_path / "back.png"
    words = ["compress", run, picture, "-o", coded, "--json"]
    code, out, err = call(capsys, *words)
    silent = json.loads(out)
    assert code == 0 and "not told: label" in err and silent["cond"] == {}
    code, out, err = call(capsys, *words, "--cond", "label=b")
    told = json.loads(out)
    assert code == 0 and "not told" not in err and told["cond"] == {"label": "b"}
    assert told["header_bytes"] == silent["header_bytes"] + 4
    opened = open_run(run)
    tokenizer, cond = opened.require_tokenizer(), torch.tensor([1.0])
    x = torch.from_numpy(np.array(Image.open(picture))).float()[None] / 255
    expected = compress(x, tokenizer=tokenizer, prior=opened.model, cond=cond)
    assert coded.read_bytes() == expected.data
    assert call(capsys, "decompress", run, coded, "-o", back)[0] == 0
    shown = np.array(Image.open(back))
    assert np.array_equal(shown, (expected.recon[0] * 255).round().byte().numpy())
    code, _, err = call(capsys, *words, "--cond", "lable=b")
    assert code == 2 and "did you mean 'label'" in err
    first = ["compress", tmp_path / "first", picture, "-o", coded]
    code, _, err = call(capsys, *first, "--cond", "label=b")
    assert code == 2 and "hears no conditions" in err


def test_a_conditional_tokenizer_compresses_what_it_is_told(tmp_path, capsys):
    """A quantizer's run without a prior: encoder and decoder are told, and decompress knows."""
    torch.manual_seed(0)
    parts = {
        "encoder": {"name": "conv"},
        "bottleneck": {"name": "fsq", "levels": [5, 4]},
        "decoder": {"name": "conv"},
        "likelihood": {"name": "categorical"},
        "conditional": True,
    }
    spec = DataSpec(shape=(1, 16, 16), conditions=(LABEL,), levels=256)
    model = build_autoencoder(parts, spec).eval()
    for parameter in model.decoder.parameters():
        parameter.data.mul_(2)  # so that what is told shows
    save_model(model, tmp_path / "run" / "model")
    Image.fromarray(np.full((16, 16), 99, np.uint8)).save(tmp_path / "x.png")
    words = ["compress", tmp_path / "run", tmp_path / "x.png", "-o", tmp_path / "x.qv"]
    recons = []
    for told in ([], ["--cond", "label=a"], ["--cond", "label=b"]):
        code, _, err = call(capsys, *words, *told)
        assert code == 0 and ("not told: label" in err) == (not told), err
        recons.append(decompress_file(open_run(tmp_path / "run"), words[-1], tmp_path / "y.png"))
    assert not torch.equal(recons[1].recon, recons[2].recon)
    assert not torch.equal(recons[0].recon, recons[1].recon)


def test_score_prints_a_line_a_file(run, tmp_path, capsys):
    picture = tmp_path / "x.png"
    code, out, err = call(capsys, "score", run, picture, picture, "--cond", "label=a")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(rows) == 2 and rows[0] == rows[1]
    assert rows[0]["unit"] == "bits/token" and rows[0]["score"] > 0
    row = json.loads(call(capsys, "score", tmp_path / "first", picture, "--json")[1])["scores"][0]
    assert row["unit"] == "bits/dim" and row["score"] == pytest.approx(
        row["nats"] / 256 / math.log(2)
    )
    assert "not told" not in err
    assert "not told: label" in call(capsys, "score", run, picture)[2]
    code, _, err = call(capsys, "score", tmp_path / "first", picture, "--cond", "label=a")
    assert code == 2 and "hears no conditions" in err
    code, _, err = call(capsys, "score", run, picture, "--cond", "lable=a")
    assert code == 2 and "did you mean 'label'" in err


@pytest.mark.parametrize(
    ("bottleneck", "likelihood", "levels", "unit"),
    [
        ("gaussian", {"name": "bernoulli"}, 2, "bits/dim"),
        ("identity", {"name": "bernoulli"}, 2, "nats/dim, no rate"),
        ("identity", {"name": "gaussian", "sigma": "optimal"}, 2, "nats/dim, profile"),
        ("gaussian", {"name": "gaussian", "sigma": "optimal"}, 256, "nats/dim, profile"),
        ("gaussian", {"name": "gaussian", "sigma": 0.1}, 256, "nats/dim, a density"),
        ("gaussian", {"name": "categorical"}, 256, "bits/dim"),
        ("gaussian", {"name": "bernoulli"}, 256, "nats/dim, of other levels"),
    ],
)
def test_a_score_is_called_bits_only_where_it_bounds_them(
    tmp_path, capsys, bottleneck, likelihood, levels, unit
):
    parts = {
        "encoder": {"name": "mlp", "hidden": [8]},
        "bottleneck": {"name": bottleneck, "dim": 3},
        "decoder": {"name": "mlp", "hidden": [8]},
        "likelihood": likelihood,
    }
    model = build_autoencoder(parts, DataSpec(shape=(1, 8, 8), levels=levels)).eval()
    save_model(model, tmp_path / "run")
    pixels = 255 * np.random.default_rng(0).integers(0, 2, (30, 8, 8), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(tmp_path / "x.png")
    twice = call(capsys, "score", tmp_path / "run", tmp_path / "x.png", tmp_path / "x.png")[1]
    row, again = (json.loads(line) for line in twice.splitlines())
    assert row == again, "a score depends on its file alone"
    scale = 64 * (math.log(2) if unit == "bits/dim" else 1)
    assert row["unit"] == unit and row["score"] == pytest.approx(row["nats"] / scale)
    np.save(tmp_path / "x.npy", pixels > 0 if levels == 2 else pixels)
    run = Run(path=tmp_path, model=model, tokenizer=None, recipe=None)
    scores = evaluate_run(run, Images(tmp_path / "x.npy"))
    assert ("bits_per_dim" in scores) == (unit == "bits/dim"), "qvae eval calls the same things so"
    assert ("profile" in scores["nll"]["unit"]) == ("profile" in unit)


def test_inpaint_draws_the_region_and_keeps_the_rest(run, tmp_path, capsys):
    picture, out = tmp_path / "x.png", tmp_path / "out"
    words = ["sample", run, "--inpaint", picture, "-n", "2", "-o", out]
    assert call(capsys, *words, "--region", "0:8,:")[0] == 0
    assert len(list(out.iterdir())) == 2
    mask = np.full((16, 16), 255, np.uint8)
    mask[:8] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    first = [path.read_bytes() for path in sorted(out.iterdir())]
    assert call(capsys, *words, "--keep", tmp_path / "mask.png")[0] == 0
    assert first == [path.read_bytes() for path in sorted(out.iterdir())]
    for extra in ([], ["--region", "0:8"]):
        code, _, err = call(capsys, *words, *extra)
        assert code == 2 and ("region" in err)


@pytest.mark.parametrize("part", ["0:17", "0:99", "16:", "9:9", "8:2", "-3:4", "a:b", "4"])
def test_a_region_that_is_none_of_the_data_is_refused(part):
    """Clipped, 0:99 would draw something else than was asked for, and say nothing."""
    text = f"region=':,{part}': '{part}' must be START:STOP with 0 <= START < STOP <= 16; the data"
    with pytest.raises(UsageError, match=f"^{re.escape(text)} have 8 x 16$"):
        region_mask(f":,{part}", (8, 16))


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (0, "nothing in it is white, so nothing would stay"),
        (255, "all of it is white, so no part is left to draw"),
    ],
)
def test_a_mask_that_keeps_nothing_or_all_is_refused(run, tmp_path, capsys, value, rule):
    mask = tmp_path / "mask.png"
    Image.new("L", (16, 16), value).save(mask)
    words = ["sample", run, "--inpaint", tmp_path / "x.png", "-o", tmp_path / "out"]
    code, _, err = call(capsys, *words, "--keep", mask)
    assert code == 2 and f"keep={str(mask)!r}: {rule}" in err
    assert not (tmp_path / "out").exists()


def test_total_bits_are_the_likelihood_s_and_the_prior_s(tmp_path):
    tokenizer = make_tokenizer(conditions=())
    prior = prior_of(tokenizer)
    for name, model in (("first", tokenizer.model), ("run", prior)):
        save_model(model, tmp_path / name / "model")
    tokenizer.save_pretrained(tmp_path / "run" / "tokenizer")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    data = Images(tmp_path / "x.npy")
    run, first = open_run(tmp_path / "run"), open_run(tmp_path / "first")
    rows = total_bits(run, first, data)
    x = data.test().batch(np.arange(len(data.test()))).x
    with torch.no_grad():
        rate = prior.nll(tokenizer.encode(x)).mean()
        nll = tokenizer.model(Batch(x=x)).nll.mean()
    expected = float(nll + rate) / (256 * math.log(2))
    assert rows["bits_per_dim_total"]["value"] == pytest.approx(expected, rel=1e-4)
    uniform = float(nll) + tokenizer.num_tokens * math.log(20)
    assert rows["bits_per_dim_uniform"]["value"] == pytest.approx(
        uniform / (256 * math.log(2)), rel=1e-4
    )
    save_model(make_tokenizer(seed=3, conditions=()).model, tmp_path / "other" / "model")
    with pytest.raises(FormatError, match="its tokenizer is"):
        total_bits(run, open_run(tmp_path / "other"), data)
    with pytest.raises(UsageError, match="needs a prior's run"):
        total_bits(first, first, data)
