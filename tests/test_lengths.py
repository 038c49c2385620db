"""Rows of different lengths: padding is never scored, learned or coded, in files and in priors."""

import json
import math

import numpy as np
import pytest
import torch

from prior_work import COND, PRIORS, case_name, make, random_tokens
from qvae.autoencoder import build_autoencoder
from qvae.coding import decode_tokens as decode_bytes
from qvae.coding import encode_tokens
from qvae.data.tokens import TokenData, TokenWriter, write_tokens
from qvae.errors import FormatError
from qvae.pretrained import save_model
from qvae.priors.unigram import fit_unigram
from qvae.runs.loading import open_run
from qvae.runs.scores import evaluate_run
from qvae.runs.tokens import decode_tokens
from qvae.tokenizer import Tokenizer
from qvae.train import fit
from qvae.train.sources import select
from qvae.types import Batch, DataSpec
from test_coding import CODED

LENGTHS = torch.tensor([2, 6, 12])


@pytest.fixture(params=PRIORS, ids=case_name)
def prior(request):
    torch.manual_seed(0)
    return make(request.param, grid=(6,))


@pytest.mark.parametrize("is_training", [False, True])
def test_the_loss_does_not_depend_on_what_stands_in_the_padding(prior, is_training):
    prior.train(is_training)
    tokens = random_tokens(prior, 3)
    other = tokens.clone()
    other[0, 2:], other[1, 6:] = -7, 10**6
    losses = []
    for x in (tokens, other):
        torch.manual_seed(1)
        losses.append(prior(Batch(x=x, cond=COND, lengths=LENGTHS)))
    first, second = losses
    assert torch.equal(first.nll, second.nll) and torch.equal(first.total, second.total)
    assert all(torch.equal(first.metrics[name], second.metrics[name]) for name in first.metrics)
    if not is_training:
        torch.testing.assert_close(first.nll, prior.nll(tokens, COND, lengths=LENGTHS))
        per_token = float(first.nll.detach().sum()) / float(LENGTHS.sum())
        assert float(first.metrics["nats_per_token"]) == pytest.approx(per_token)
        full = prior(Batch(x=tokens, cond=COND, lengths=torch.full((3,), 12)))
        torch.testing.assert_close(full.nll, prior(Batch(x=tokens, cond=COND)).nll)


TRANSFORMER = {"name": "transformer", "num_layers": 2, "dim": 16, "num_heads": 2}
CAUSAL = [
    TRANSFORMER,
    {**TRANSFORMER, "rope": True},
    {"name": "pixelcnn", "num_layers": 2, "dim": 8, "kernel": 3},
]


@pytest.mark.parametrize("sizes", [(7,), (5, 3)], ids=str)
@pytest.mark.parametrize("config", CAUSAL, ids=case_name)
def test_a_row_costs_what_it_costs_alone_and_unpadded(sizes, config):
    torch.manual_seed(0)
    long = make(config, sizes, grid=(12 // len(sizes),))
    tokens = random_tokens(long, 3)
    loss = long(Batch(x=tokens, cond=COND, lengths=LENGTHS))
    drawn = long.sample(3, COND, seed=[4, 5, 6], lengths=LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        short = make(config, sizes, num_tokens=length, grid=(length // len(sizes),))
        weights = long.state_dict()
        for name, tensor in short.state_dict().items():  # tables of positions are longer
            tensor.copy_(weights[name][tuple(slice(size) for size in tensor.shape)])
        alone = short(Batch(x=tokens[row : row + 1, :length], cond=COND[row : row + 1]))
        torch.testing.assert_close(loss.nll[row], alone.nll[0])
        again = short.sample(1, COND[row : row + 1], seed=[4 + row])
        assert torch.equal(drawn[row, :length], again[0])


def test_padding_gives_no_gradient():
    prior = make(TRANSFORMER, (7,), 12)
    prior(Batch(x=torch.ones(1, 12).long(), lengths=torch.tensor([3]))).total.backward()
    assert (prior.positions.grad[3:] == 0).all() and (prior.positions.grad[:3] != 0).any()


@pytest.mark.parametrize("lengths", [[0, 3], [13, 3]])
def test_lengths_that_are_none_are_refused(prior, lengths):
    batch = Batch(x=random_tokens(prior, 2), lengths=torch.tensor(lengths))
    with pytest.raises(ValueError, match="lengths=.*needs 2 integers in 1..12"):
        prior(batch)


def test_a_batch_takes_its_lengths_along():
    batch = Batch(x=torch.zeros(3, 4), lengths=torch.tensor([1, 2, 3]))
    assert batch.to("cpu").lengths.tolist() == [1, 2, 3]
    assert select(batch, slice(1, 3)).lengths.tolist() == [2, 3]


def rows(num=60, sizes=(5, 3), cells=6, seed=0):
    """Tokens with rubbish in the padding, and lengths of whole cells."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, cells + 1, num) * len(sizes)
    low = np.resize(np.cumsum([0, *sizes[:-1]]), cells * len(sizes))
    tokens = low + random.integers(0, np.resize(sizes, len(low)), (num, len(low)))
    tokens[np.arange(len(low)) >= lengths[:, None]] = -99
    return tokens, lengths


FACTS = {"grid": (6,), "codebook_sizes": (5, 3), "tokenizer_hash": "ab"}


def test_token_files_hold_lengths(tmp_path):
    tokens, lengths = rows()
    write_tokens(tmp_path / "t", {"train": (tokens, None, torch.from_numpy(lengths))}, **FACTS)
    facts = json.loads((tmp_path / "t/tokens.json").read_text())
    assert facts["format_version"] == 2 and "length_sha256" in facts["splits"]["train"]
    data = TokenData(tmp_path / "t")
    batch = data.train().batch(np.array([7, 3]))
    assert batch.lengths.tolist() == lengths[[7, 3]].tolist() and data.has_lengths
    for row, x in zip((7, 3), batch.x, strict=True):
        length = lengths[row]
        assert x[:length].tolist() == tokens[row, :length].tolist()
        assert x[length:].tolist() == [0, 5] * ((12 - length) // 2)
    write_tokens(tmp_path / "old", {"train": (abs(tokens) % 5, None)}, **FACTS)
    assert json.loads((tmp_path / "old/tokens.json").read_text())["format_version"] == 1
    old = TokenData(tmp_path / "old")
    assert not old.has_lengths and old.train().batch(np.array([0])).lengths is None


def test_lengths_that_do_not_fit_are_not_written(tmp_path):
    tokens, lengths = np.zeros((2, 12), np.int64), np.array([4, 12])
    for wrong, error, text in [
        (np.array([4, 3]), FormatError, "sample 1 has length 3, needs 1..12, in cells of 2"),
        (np.array([0, 4]), FormatError, "sample 0 has length 0"),
        (np.array([4, 14]), FormatError, "sample 1 has length 14"),
        (np.array([4.0, 6.0]), ValueError, r"float64 of shape \(2,\), needs 2 integers"),
        (np.array([4]), ValueError, "needs 2 integers"),
    ]:
        with pytest.raises(error, match=text):
            write_tokens(tmp_path / "t", {"train": (tokens, None, wrong)}, **FACTS)
    with pytest.raises(ValueError, match="a grid of 2 axes is always full"):
        write_tokens(
            tmp_path / "t", {"train": (tokens, None, lengths)}, **{**FACTS, "grid": (2, 3)}
        )
    with (
        pytest.raises(ValueError, match="for some rows only"),
        TokenWriter(tmp_path / "t", **FACTS) as writer,
    ):
        writer.write("train", tokens, lengths=lengths)
        writer.write("valid", tokens)
    assert list(tmp_path.iterdir()) == []


def test_damaged_lengths_are_not_read(tmp_path):
    tokens, lengths = rows()
    write_tokens(tmp_path / "t", {"train": (tokens, None, lengths)}, **FACTS)
    file = tmp_path / "t/train.length.bin"
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    with pytest.raises(FormatError, match="length.bin: 239 bytes, tokens.json promises 240"):
        TokenData(tmp_path / "t")
    file.write_bytes((99).to_bytes(4, "little") + good[4:])
    with pytest.raises(FormatError, match="length.bin: SHA-256"):
        TokenData(tmp_path / "t")
    with pytest.raises(FormatError, match="train.bin: sample 0 has length 99, needs 1..12"):
        TokenData(tmp_path / "t", verify=False).train().batch(np.array([1, 0]))
    file.unlink()
    with pytest.raises(FormatError, match="length.bin: cannot be read"):
        TokenData(tmp_path / "t")
    facts = json.loads((tmp_path / "t/tokens.json").read_text())
    (tmp_path / "t/tokens.json").write_text(json.dumps({**facts, "grid": [2, 3]}))
    with pytest.raises(FormatError, match=r"lengths need a grid of one axis, not \(2, 3\)"):
        TokenData(tmp_path / "t")


def test_only_real_tokens_are_counted(tmp_path):
    tokens, lengths = rows()
    write_tokens(tmp_path / "t", {"train": (tokens, None, lengths)}, **FACTS)
    unigram = fit_unigram(TokenData(tmp_path / "t").train(), codebook_sizes=(5, 3), num_tokens=12)
    assert int(unigram.counts.sum()) == lengths.sum()
    assert int(unigram.counts[10].sum()) == (lengths == 12).sum()


@pytest.mark.parametrize("config", CODED, ids=lambda config: config["name"])
def test_a_short_row_is_coded_at_its_own_price(config):
    torch.manual_seed(0)
    prior = make(config, num_tokens=48, grid=(24,))
    for length, tokens in zip((2, 20, 48), prior.sample(3, COND[0]), strict=True):
        data = encode_tokens(prior, tokens[:length], COND[0])
        assert torch.equal(decode_bytes(prior, data, COND[0], length=length), tokens[:length])
        lengths = torch.tensor([length])
        bits = float(prior.nll(tokens[None], COND[:1], lengths=lengths).detach()) / math.log(2)
        assert bits / 8 - 1 < len(data) < bits / 8 + 5
    for wrong in (tokens[:0], torch.cat([tokens, tokens])):
        with pytest.raises(ValueError, match="needs"):
            encode_tokens(prior, wrong, COND[0])


def save_series(run, sizes):
    """Save a run of a prior over series, untrained, and its tokenizer."""
    bottleneck = {"name": "fsq", "levels": list(sizes[:1])}
    if len(sizes) > 1:
        bottleneck = {"name": "residual", "num_quantizers": len(sizes), "quantizer": bottleneck}
    parts = {
        "encoder": {"name": "patch", "patch": 4, "hidden": 8},
        "bottleneck": bottleneck,
        "decoder": {"name": "patch", "patch": 4, "hidden": 8},
        "likelihood": {"name": "gaussian"},
    }
    torch.manual_seed(0)
    tokenizer = Tokenizer(build_autoencoder(parts, DataSpec(shape=(1, 48))).eval())
    prior = make(TRANSFORMER, sizes, 12 * len(sizes), (), grid=(12,))
    save_model(prior, run / "model")
    tokenizer.save_pretrained(run / "tokenizer")
    return prior, tokenizer


@pytest.mark.parametrize("sizes", [(8,), (5, 5)], ids=str)
def test_the_command_line_draws_a_length(tmp_path, call, sizes):
    prior, tokenizer = save_series(tmp_path / "run", sizes)
    words = ["sample", tmp_path / "run", "-n", 2, "-o", tmp_path / "out"]
    code, _, errors = call(*words, "--length", 6)
    assert code == 0, errors
    x = tokenizer.decode(prior.sample(2, lengths=torch.tensor([6, 6])))
    for i, row in enumerate(x):
        drawn = np.load(tmp_path / f"out/{i:06d}.npy")
        assert drawn.shape == (1, 48 * 6 // tokenizer.num_tokens)
        np.testing.assert_allclose(drawn, row[:, : drawn.shape[1]], atol=1e-6)
    wrong = [tokenizer.num_tokens + 1] + [3] * (len(sizes) - 1)
    unit = ", in cells of 2" if len(sizes) > 1 else ""
    for length in wrong:
        code, _, errors = call(*words, "--length", length)
        rule = f"length={length}: must be in 1..{tokenizer.num_tokens}{unit}"
        assert code == 2 and errors == f"qvae: {rule}\n"


def test_series_of_different_lengths_from_files_to_scores(tmp_path):
    """Tokens rise by one from a random start: what is learned has to stop at the length."""
    parts = {
        "encoder": {"name": "patch", "patch": 4, "hidden": 8},
        "bottleneck": {"name": "fsq", "levels": [8]},
        "decoder": {"name": "patch", "patch": 4, "hidden": 8},
        "likelihood": {"name": "gaussian"},
    }
    torch.manual_seed(0)
    tokenizer = Tokenizer(build_autoencoder(parts, DataSpec(shape=(1, 48))).eval())
    assert tokenizer.grid == (12,)
    random = np.random.default_rng(0)
    splits = {}
    for part, num in (("train", 256), ("valid", 32), ("test", 32)):
        tokens = (random.integers(0, 8, (num, 1)) + np.arange(12)) % 8
        lengths = random.integers(1, 13, num)
        tokens[np.arange(12) >= lengths[:, None]] = 7
        splits[part] = (tokens, None, lengths)
    facts = {"grid": (12,), "codebook_sizes": (8,), "tokenizer_hash": tokenizer.hash}
    write_tokens(tmp_path / "t", splits, **facts)
    data = TokenData(tmp_path / "t")
    prior = make({"name": "transformer", "num_layers": 1, "dim": 32, "num_heads": 2}, (8,), 12, ())
    settings = {"steps": 80, "batch_size": 32, "lr": 1e-2, "precision": "float32", "device": "cpu"}
    fit(prior, data, run=tmp_path / "run", progress=False, **settings)
    save_model(prior, tmp_path / "run/model")
    tokenizer.save_pretrained(tmp_path / "run/tokenizer")
    scores = evaluate_run(open_run(tmp_path / "run"), data)
    lengths = splits["test"][2]
    # The first token is uniform over 8, the others follow from it.
    best = 3 * len(lengths) / lengths.sum()
    assert best - 0.1 < scores["bits_per_token"]["value"] < best + 0.15
    assert scores["bits_per_token_unigram"]["value"] > 2.8
    drawn = prior.eval().sample(16, seed=0, lengths=torch.arange(16) % 12 + 1, temperature=0.5)
    for row, length in zip(drawn, torch.arange(16) % 12 + 1, strict=True):
        assert (row[1:length] == (row[: length - 1] + 1) % 8).all() and not row[length:].any()
    decode_tokens(tokenizer, data, tmp_path / "out", splits=("test",))
    sizes = [np.load(tmp_path / f"out/test/{i:06d}.npy").shape for i in range(len(lengths))]
    assert sizes == [(1, 4 * int(length)) for length in lengths]
