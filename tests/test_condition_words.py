"""Sentences and vectors as conditions: from a column to pictures that were asked for in words."""

import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image

from prior_work import PRIORS, case_name, make, random_tokens
from qvae.autoencoder import build_autoencoder
from qvae.cli.main import main
from qvae.coding import compress, decompress
from qvae.data.condition_words import words_of
from qvae.data.conditions import (
    condition_row,
    conditions_from_json,
    conditions_to_json,
    encode_columns,
    fit_conditions,
    format_value,
    parse_requests,
    parse_value,
)
from qvae.data.images import Images
from qvae.data.tokens import TokenData, write_tokens
from qvae.errors import DataError, FormatError, UsageError
from qvae.networks import Conditioner, ConditionFeatures
from qvae.networks.text import TextReader
from qvae.pretrained import load_model, save_model
from qvae.priors.base import build_prior
from qvae.runs.sampling import sample_latents
from qvae.types import Batch, Condition, DataSpec, cond_width
from test_coding import make_tokenizer, prior_of

CAPTION = Condition(
    name="caption", kind="text", categories=("a", "blue", "over", "red", "square"), width=5
)
VECTOR = Condition(name="emb", kind="vector", mean=(1.0, 2.0), std=(0.5, 4.0), width=2)
AGE = Condition(name="age", kind="number", mean=40.0, std=10.0)


def fit(column, request, train=None):
    rows = np.arange(len(column) if train is None else train)
    (condition,), values = fit_conditions({"c": column}, parse_requests(request), rows)
    return condition, values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red-ish  square!", ["a", "red", "ish", "square"]),
        ("DON’T don't", ["don't", "don't"]),
        ("'quoted' snake_case 4:20", ["quoted", "snake", "case", "4", "20"]),
        ("cafe\u0301 Ünï", ["café", "ünï"]),
        (" ... ", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_words_come_from_training_rows_and_room_from_all():
    condition, values = fit(
        ["A red square", "blue", "", "a green square, far off", "!"], "c:text", 3
    )
    assert condition.categories == ("a", "blue", "red", "square") and condition.width == 5
    assert values[0].tolist() == [2, 4, 5, 0, 0] and values[1].tolist() == [3, 0, 0, 0, 0]
    assert np.isnan(values[[2, 4]]).all() and values[3].tolist() == [2, 1, 5, 1, 1]
    with pytest.raises(DataError, match="'c': no training sample has a value"):
        fit(["...", "", "red"], "c:text", 2)
    with pytest.raises(
        DataError, match=r"c='red red .*\.\.\.' in row 2 of the data: has 257 words, .* 256"
    ):
        fit(["red", "red " * 257], "c:text", 1)
    with pytest.raises(DataError, match="too many to be taken for categories.*or :text"):
        fit([f"sentence number {row}" for row in range(30)], "c")


def test_vectors_are_standardised_by_the_training_rows_number_by_number():
    rows = np.array([[1.0, 5.0], [3.0, 5.0], [9.0, 6.0], [np.nan, np.nan]])
    texts = ["1 5", " 3\t5e0 ", "9 6", "nan"]
    for column, request in (
        (rows, "c"),
        (rows.astype(np.float32), "c:vector"),
        (texts, "c:vector"),
    ):
        condition, values = fit(column, request, 2)
        assert condition.kind == "vector" and condition.width == 2
        assert (condition.mean, condition.std) == ((2.0, 5.0), (1.0, 1.0))
        assert values[:3].tolist() == [[-1, 0], [1, 0], [7, 1]] and np.isnan(values[3]).all()


@pytest.mark.parametrize(
    ("column", "request_", "sentence"),
    [
        (["1 2", "1 2 3"], "c:vector", "c='1 2 3' in row 2 of the data: has 3 numbers, needs 2"),
        (["1 2", "1 nan"], "c:vector", "c='1 nan' in row 2 of the data: needs a finite number"),
        (
            np.array([[1, 2], [np.nan, 3]]),
            "c",
            "c='nan 3' in row 2 of the data: number 1 is nan, needs finite",
        ),
        (
            np.array([[1, 2], [3, np.inf]]),
            "c",
            "c='3 inf' in row 2 of the data: number 2 is inf, needs finite",
        ),
        (np.ones((2, 3)), "c:category", "column 'c': 3 numbers a sample are a vector, no category"),
        (np.ones((2, 3)), "c:text", "column 'c': 3 numbers a sample are a vector, no text"),
    ],
    ids=str,
)
def test_a_bad_vector_is_named_with_its_row(column, request_, sentence):
    with pytest.raises(DataError, match=sentence):
        fit(column, request_, 1)


def test_settled_conditions_read_other_data_by_their_own_words_and_sizes():
    columns = {"caption": ["red cat"], "emb": np.array([[1.5, -2.0]])}
    assert encode_columns(columns, [CAPTION, VECTOR]).tolist() == [[5, 1, 0, 0, 0, 1, -1]]
    with pytest.raises(
        DataError, match="caption='a a a a a a' in row 1 of the data: has 6 words.*room for 5"
    ):
        encode_columns({"caption": ["a a a a a a"]}, [CAPTION])
    with pytest.raises(
        DataError, match="age='1.5 -2' in row 1 of the data: 2 numbers are a vector"
    ):
        encode_columns({"age": columns["emb"]}, [AGE])


def test_what_a_user_types(tmp_path):
    np.save(tmp_path / "e.npy", np.array([2.0, 10.0]))
    told = []
    row = condition_row(
        [CAPTION, AGE, VECTOR],
        {"caption": "Red over a sqare", "emb": f"@{tmp_path}/e.npy"},
        tell=told.append,
    )
    assert row[:5].tolist() == [5, 4, 2, 1, 0] and math.isnan(row[5]) and row[6:].tolist() == [2, 2]
    assert told == ["caption: 'sqare' (like 'square'?) was never seen and is read as unknown"]
    assert np.isnan(condition_row([CAPTION], {"caption": " "})).all()
    assert parse_value(VECTOR, "2 10").tolist() == [2, 2]
    np.save(tmp_path / "bad.npy", np.zeros((2, 2)))
    for text, rule in [
        ("1", "emb='1': has 1 numbers, needs 2"),
        ("1 x", "emb='1 x': needs a finite number"),
        (f"@{tmp_path}/bad.npy", r"holds float64 of shape \(2, 2\), needs a row of numbers"),
    ]:
        with pytest.raises(UsageError, match=rule):
            parse_value(VECTOR, text)
    with pytest.raises(UsageError, match="emb='@none.npy': none.npy: cannot be read"):
        parse_value(VECTOR, "@none.npy")
    with pytest.raises(UsageError, match="has 6 words, there is room for 5"):
        parse_value(CAPTION, "a a a a a a")
    assert format_value(CAPTION, parse_value(CAPTION, "Red cat, a square")) == "red ? a square"
    assert format_value(VECTOR, [2.0, 2.0]) == "2 10" and format_value(VECTOR, [np.nan] * 2) == ""


def test_they_survive_json_and_the_narrow_ones_are_written_as_before():
    assert conditions_from_json(conditions_to_json([CAPTION, VECTOR, AGE]), "f") == (
        CAPTION,
        VECTOR,
        AGE,
    )
    assert list(conditions_to_json([AGE])[0]) == [
        *("name", "kind", "categories", "mean", "std", "period", "unit")
    ]
    text, vector, age = conditions_to_json([CAPTION, VECTOR, AGE])
    for broken in (
        {**text, "width": 0},
        {**text, "width": 257},
        {**age, "width": 2},
        {**vector, "width": True},
        {**vector, "mean": [1.0]},
        {**vector, "std": [1.0, 0.0]},
        {**vector, "mean": [1.0, math.nan]},
        {**vector, "mean": 3},
        {**age, "mean": [1.0]},
    ):
        with pytest.raises(FormatError, match="f: conditions"):
            conditions_from_json([broken], "f")


def test_a_sentence_is_read_in_its_order_and_nothing_after_its_end_counts():
    torch.manual_seed(0)
    read = TextReader(num_words=5, dim=16)
    rows = torch.tensor([[5.0, 4, 3, 0, 0], [3, 4, 5, 0, 0], [5, 4, 3, 0, 6], [5, 4, 0, 0, 0]])
    found = read(rows)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    assert not torch.allclose(found[0], found[3], atol=1e-3)
    torch.testing.assert_close(found[2], found[0])
    torch.testing.assert_close(read(rows[:1, :3]), found[:1])  # room does not matter either
    assert read(rows[:0]).shape == (0, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(read(rows), found)
    for wrong in (7.0, -1.0, 2.5):
        with pytest.raises(ValueError, match=rf"{wrong:g} is none of 0\.\.6"):
            read(torch.tensor([[wrong]]))


def test_an_unknown_word_says_nothing_before_and_after_training():
    features = ConditionFeatures((CAPTION,))
    optimizer = torch.optim.AdamW(features.parameters(), lr=0.1, weight_decay=0.1)
    features(torch.tensor([[1.0, 5, 0, 0, 0]])).square().sum().backward()
    optimizer.step()
    assert (features.readers[0].embed.weight[1] == 0).all()


def test_features_of_a_row_and_of_what_is_not_told():
    conditioner = Conditioner((AGE, VECTOR, CAPTION), dim=8)
    assert conditioner.feature_dim == (7 + 1) + (2 + 1) + (64 + 1)
    row = torch.tensor([[0.5, -1, 2, 5, 4, 3, 0, 0]])
    full = conditioner.features(row)[0]
    assert full[8:11].tolist() == [-1, 2, 0] and full[-1] == 0 and full[11:75].abs().sum() > 0
    untold = row.clone()
    untold[0, 1], untold[0, 5] = math.nan, math.nan  # a part that is missing hides the whole
    features = conditioner.features(untold)[0]
    assert features[8:11].tolist() == [0, 0, 1] and features[-1] == 1
    assert features[11:75].abs().sum() == 0 and torch.equal(features[:8], full[:8])
    with pytest.raises(ValueError, match="width=2 of a number"):
        ConditionFeatures((Condition(name="a", kind="number", width=2),))
    with pytest.raises(ValueError, match=r"2 columns: it needs 8 \(age, emb, caption\)"):
        conditioner(torch.zeros(1, 2))


@pytest.mark.parametrize("config", PRIORS, ids=case_name)
def test_every_prior_takes_wide_conditions(config, tmp_path):
    torch.manual_seed(0)
    prior = make(config, conditions=(AGE, VECTOR, CAPTION))
    cond = torch.tensor([[0.5, -1, 2, 5, 4, 3, 0, 0], [math.nan] * 8, [1, 1, 1, 3, 4, 5, 0, 0]])
    tokens = random_tokens(prior, 3)
    nll = prior.nll(tokens, cond)
    listens = config["name"] not in ("uniform", "unigram")
    alone = prior.nll(tokens)
    assert torch.allclose(alone[1], nll[1]) and torch.allclose(alone[0], nll[0]) != listens
    prior.sample(3, cond, seed=1, guidance=2.0)
    save_model(prior, tmp_path / "prior")
    again = load_model(tmp_path / "prior")
    assert again.conditions == prior.conditions and torch.equal(again.nll(tokens, cond), nll)
    with pytest.raises(ValueError, match=r"needs \[3, 8\], the raw numbers of"):
        prior.nll(tokens, cond[:, :3])


def test_token_files_and_compressed_bytes_hold_wide_conditions(tmp_path):
    wide = Condition(name="v", kind="vector", mean=(0.0,) * 20, std=(1.0,) * 20, width=20)
    cond = np.arange(3 * 25, dtype=np.float32).reshape(3, 25)
    facts = {"grid": (2,), "codebook_sizes": (8,), "tokenizer_hash": "ab"}
    tokens = np.zeros((3, 2), np.int64)
    write_tokens(tmp_path / "t", {"train": (tokens, cond)}, conditions=(wide, CAPTION), **facts)
    data = TokenData(tmp_path / "t")
    assert data.spec.conditions == (wide, CAPTION)
    assert np.array_equal(data.train().batch(np.array([2, 0])).cond, cond[[2, 0]])

    for width in (15, 16, 20):
        vector = Condition(
            name="v", kind="vector", mean=(0.0,) * width, std=(1.0,) * width, width=width
        )
        tokenizer = make_tokenizer(conditions=(vector,))
        prior, told = prior_of(tokenizer), torch.randn(width)
        found = compress(torch.rand(1, 16, 16), tokenizer=tokenizer, prior=prior, cond=told)
        assert found.data[2] == (1 if width == 15 else 2)
        again = decompress(found.data, tokenizer=tokenizer, prior=prior)
        assert torch.equal(again.tokens, found.tokens)


COLOURS = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0)}
SHAPES = ("square", "cross")
PHRASES = ("a {} {}", "{} is the colour of the {}", "look, the {} {}!")


def picture(colour, shape, side=16):
    """A filled square or a cross on white, [3, side, side]."""
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    far = abs(rows), abs(columns)
    ink = (np.maximum(*far) < 5) if shape == "square" else (np.minimum(*far) < 2)
    return np.where(ink, np.array(COLOURS[colour])[:, None, None], 1.0).astype(np.float32)


def drawings(num):
    """Pictures at random places of 4 kinds, with a sentence each; the last phrase names last."""
    random = np.random.default_rng(0)
    for _ in range(num):
        colour, shape = random.choice(list(COLOURS)), random.choice(SHAPES)
        shift = random.integers(-2, 3, 2)
        pixels = np.roll(picture(colour, shape), shift, (1, 2))
        yield pixels, random.choice(PHRASES).format(colour, shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawings")
    with open(root / "metadata.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "caption"])
        for i, (pixels, caption) in enumerate(drawings(160)):
            image = (pixels * 255).astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(image).save(root / f"{i}.png")
            rows.writerow([f"{i}.png", caption])
    return root


def nearest(x):
    """Return the colour and shape of the template that a picture [3, 16, 16] is closest to."""
    found = {
        (colour, shape): min(
            np.square(np.roll(picture(colour, shape), (down, right), (1, 2)) - x).sum()
            for down in range(-2, 3)
            for right in range(-2, 3)
        )
        for colour in COLOURS
        for shape in SHAPES
    }
    return min(found, key=found.get)


def told(conditions, **values):
    return torch.from_numpy(condition_row(conditions, values))


def test_a_conditional_vae_draws_what_a_sentence_asks_for():
    x, captions = zip(*drawings(400), strict=True)
    x = torch.from_numpy(np.stack(x))
    (condition,), cond = fit_conditions(
        {"caption": list(captions)}, parse_requests("caption:text"), np.arange(400)
    )
    torch.manual_seed(0)
    parts = {
        "conditional": True,
        "encoder": {"name": "mlp", "hidden": [64], "latent_dim": 8},
        "bottleneck": {"name": "gaussian", "dim": 4},
        "decoder": {"name": "mlp", "hidden": [128], "latent_dim": 4},
        "likelihood": {"name": "bernoulli"},
    }
    spec = DataSpec(shape=(3, 16, 16), conditions=(condition,), levels=2)
    model = build_autoencoder(parts, spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(80):
        rows = torch.arange(64 * step, 64 * step + 64) % 400
        optimizer.zero_grad()
        model(Batch(x=x[rows], cond=torch.from_numpy(cond[rows]))).total.backward()
        optimizer.step()
    right = 0
    for phrase in PHRASES:
        for asked in [(colour, shape) for colour in COLOURS for shape in SHAPES]:
            row = told([condition], caption=phrase.format(*asked))
            drawn = sample_latents(model.eval(), 4, row.expand(4, -1))
            right += sum(nearest(picture.numpy()) == asked for picture in drawn)
    assert right >= 46, f"{right} of 48"


def test_a_prior_hears_the_order_of_the_same_words():
    names = ("red", "blue", "green")
    pairs = [(i, j) for i in range(3) for j in range(3)]
    captions = [f"{names[i]} over {names[j]}" for i, j in pairs]
    (condition,), cond = fit_conditions(
        {"c": captions}, parse_requests("c:text"), np.arange(len(pairs))
    )
    torch.manual_seed(0)
    config = {"name": "transformer", "num_layers": 1, "dim": 32, "num_heads": 2}
    prior = build_prior(config, vocab_size=3, num_tokens=2, conditions=(condition,))
    batch = Batch(x=torch.tensor(pairs).repeat(8, 1), cond=torch.from_numpy(cond).repeat(8, 1))
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        prior(batch).total.backward()
        optimizer.step()
    prior.eval()
    for guidance in (1.0, 2.0):
        drawn = prior.sample(len(pairs), batch.cond[: len(pairs)], seed=1, guidance=guidance)
        assert drawn.tolist() == [list(pair) for pair in pairs]


def test_the_whole_way_from_a_folder_with_captions(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = "--encoder.hidden 16 --encoder.spots 16 --encoder.latents 16 --decoder.hidden 32"
    words = f"{small} --decoder.num_blocks 2 --model.edge_weight 0 --train.eval_samples 16"
    words += " --data.size null"
    first = ["conditional_images", "--data", folder, "--cond", "caption:text", "--run", "first"]
    second = ["token_prior", "--data", "tokens", "--run", "prior", "--prior.num_layers", "1"]
    shape = "--prior.dim 32 --prior.num_heads 2 --train.batch_size 32 --train.steps 80"
    for command in (
        ["train", *first, *words.split(), "--train.steps", "120"],
        ["encode", "first", "-o", "tokens"],
        ["train", *second, *shape.split(), "--train.eval_samples", "16"],
    ):
        assert main([str(word) for word in command]) == 0, capsys.readouterr().err
    right = 0
    for asked in [(colour, shape) for colour in COLOURS for shape in SHAPES]:
        out = tmp_path / "-".join(asked)
        caption = "caption=a {} {}".format(*asked)
        assert main(["sample", "prior", "--cond", caption, "-n", "4", "-o", str(out)]) == 0
        for file in out.iterdir():
            right += nearest(np.array(Image.open(file)).transpose(2, 0, 1) / 255) == asked
    assert right >= 14, f"{right} of 16"
    capsys.readouterr()
    assert main(["sample", "prior", "--cond", "caption=a redd cat", "-o", "x"]) == 0
    assert "caption: 'redd' (like 'red'?), 'cat' was never seen" in capsys.readouterr().err
    assert main(["score", "prior", str(folder / "0.png"), "--cond", "caption=red cat"]) == 0
    assert "'cat' was never seen" in capsys.readouterr().err
    assert main(["eval", "prior"]) == 0
    capsys.readouterr()
    assert main(["sample", "prior", "--cond", f"caption={'red ' * 9}", "-o", "y"]) == 2
    assert "has 9 words, there is room for 7" in capsys.readouterr().err


def test_an_npz_brings_its_vectors(tmp_path):
    random = np.random.default_rng(0)
    x = random.integers(0, 255, (40, 4, 4), dtype=np.uint8)
    emb = random.normal(3, 2, (40, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, emb=emb, y=np.arange(40) % 2)
    data = Images(tmp_path / "x.npz", cond="emb;label")
    assert [item.kind for item in data.spec.conditions] == ["vector", "category"]
    cond = torch.cat([split.batch(np.arange(len(split))).cond for split in (data.train(),)])
    assert cond.shape[1] == cond_width(data.spec.conditions) == 7
    assert cond[:, :6].mean(0).abs().max() < 1e-5
    assert (cond[:, :6].std(0, correction=0) - 1).abs().max() < 1e-5
    conditions = data.spec.conditions
    emb[7, 2] = np.nan
    np.savez(tmp_path / "y.npz", x=x, emb=emb, y=np.arange(40) % 2)
    with pytest.raises(DataError, match=r"emb='.*' in row 8 of .*: number 3 is nan, needs finite"):
        Images(tmp_path / "y.npz", cond="emb")
    np.savez(tmp_path / "z.npz", x=x, emb=emb[:, :3], y=np.arange(40) % 2)
    other = Images(tmp_path / "z.npz")
    with pytest.raises(DataError, match=r"emb='.*' in row 1 of .*: has 3 numbers, needs 6"):
        other.use_conditions(conditions)
    with pytest.raises(
        DataError, match="cond='embb': no such column in .*x.npz; did you mean 'emb'"
    ):
        Images(tmp_path / "x.npz", cond="embb")
