"""Token files: every id survives, every fault is refused with its place."""

import json
import os

import numpy as np
import pytest
import torch

from qvae.data.token_writer import TokenWriter, write_tokens
from qvae.data.tokens import TokenData
from qvae.errors import DataError, FormatError, UsageError
from qvae.types import Condition

TIME = Condition(name="time", kind="cyclic", period=12.0, unit="h")
LABEL = Condition(name="label", kind="category", categories=("a", "b"))
RNG = np.random.default_rng(0)


def write(path, tokens, *, size: int = 256, cond=None, **options):
    options = {"grid": (2, 3), "codebook_sizes": (size,), "tokenizer_hash": "abc", **options}
    conditions = () if cond is None else (TIME, LABEL)
    write_tokens(path, {"train": (tokens, cond)}, conditions=conditions, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three splits with conditions."""
    splits = {}
    for part, num in (("train", 50), ("valid", 7), ("test", 5)):
        cond = RNG.random((num, 2)).astype(np.float32)
        cond[0, 1] = np.nan
        splits[part] = (RNG.integers(0, 24, (num, 12)), cond)
    write_tokens(
        tmp_path / "t",
        splits,
        grid=(2, 3),
        codebook_sizes=(16, 8),
        tokenizer_hash="abc",
        conditions=(TIME, LABEL),
    )
    return tmp_path / "t", splits


@pytest.mark.parametrize("size", [2, 255, 256, 257, 32768, 32769, 65535, 65536, 65537, 262144])
def test_every_vocabulary_round_trips(size: int, tmp_path):
    edges = np.array([0, 1, size // 2, size - 2, size - 1, 0])
    tokens = np.stack([edges, edges[::-1], *RNG.integers(0, size, (5, 6))])
    data = TokenData(write(tmp_path / "t", tokens, size=size))
    batch = data.train().batch(np.arange(7))
    assert batch.x.dtype == torch.int64 and np.array_equal(batch.x.numpy(), tokens)
    width = 2 if size <= 65536 else 4
    assert (tmp_path / "t" / "train.bin").stat().st_size == 7 * 6 * width
    assert data.vocab_size == data.spec.levels == size and data.num_tokens == 6


def test_three_splits_with_conditions(folder):
    path, splits = folder
    data = TokenData(path, expected_hash="abc")
    assert data.spec.conditions == (TIME, LABEL) and data.spec.shape == (12,)
    assert (data.grid, data.codebook_sizes, data.vocab_size) == ((2, 3), (16, 8), 24)
    for part, split in (("train", data.train()), ("valid", data.valid()), ("test", data.test())):
        order = RNG.permutation(len(split))
        batch = split.batch(order)
        assert np.array_equal(batch.x.numpy(), splits[part][0][order])
        assert np.array_equal(batch.cond.numpy(), splits[part][1][order], equal_nan=True)
        assert batch.ids.tolist() == order.tolist()


def test_global_tokens_an_empty_split_and_no_conditions(tmp_path):
    with TokenWriter(tmp_path / "t", grid=(), codebook_sizes=(5, 5), tokenizer_hash="h") as writer:
        writer.write("train", torch.tensor([[0, 9]]))
        writer.write("test", np.zeros((0, 2), np.int64))
    data = TokenData(tmp_path / "t")
    assert data.train().batch(np.array([0])).cond is None
    assert len(data.test()) == 0 and len(data.test().batch(np.zeros(0, np.int64))) == 0
    with pytest.raises(DataError, match="no valid split, only train, test"):
        data.valid()
    with pytest.raises(ValueError, match="indices: 1 is not in 0..0"):
        data.train().batch(np.array([1]))


def test_batches_written_one_by_one_are_the_same_bytes(folder, tmp_path):
    path, splits = folder
    with TokenWriter(
        tmp_path / "u",
        grid=(2, 3),
        codebook_sizes=(16, 8),
        tokenizer_hash="abc",
        conditions=(TIME, LABEL),
    ) as writer:
        for row in range(50):
            for part, (tokens, cond) in splits.items():
                writer.write(part, torch.from_numpy(tokens[row : row + 1]), cond[row : row + 1])
    names = sorted(file.name for file in path.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "u").iterdir())
    assert all((path / n).read_bytes() == (tmp_path / "u" / n).read_bytes() for n in names)


def test_another_tokenizer_is_refused_with_both_hashes(folder):
    with pytest.raises(FormatError, match="abc.*def"):
        TokenData(folder[0], expected_hash="def")


@pytest.mark.parametrize("bad", [256, -1, 65536, 2**40, 65536 + 5])
def test_bad_ids_are_never_written(bad: int, tmp_path):
    tokens = np.zeros((4, 6), np.int64)
    tokens[2, 5] = bad
    with pytest.raises(FormatError, match=f"train: sample 2 has id {bad} at position 5.*0..255"):
        write(tmp_path / "t", tokens)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [256, 100_000])
def test_bad_ids_are_never_read(size: int, tmp_path):
    path = write(tmp_path / "t", np.zeros((4, 6), np.int64), size=size)
    dtype = np.uint16 if size == 256 else np.uint32
    ids = np.memmap(path / "train.bin", dtype=dtype, mode="r+", shape=(4, 6))
    ids[3, 1] = size
    ids.flush()
    with pytest.raises(FormatError, match="train.bin: SHA-256"):
        TokenData(path)
    split = TokenData(path, verify=False).train()
    split.batch(np.arange(3))
    with pytest.raises(FormatError, match=f"train.bin: sample 3 has id {size} at position 1"):
        split.batch(np.array([0, 3]))


def test_what_does_not_fit_is_refused_and_nothing_is_left(tmp_path):
    good = np.zeros((4, 6), np.int64)
    cond = np.zeros((4, 2), np.float32)
    wrong = [
        {"tokens": good[:, :5]},
        {"tokens": good[0]},
        {"tokens": good.astype(float)},
        {"tokens": good, "cond": cond[:, :1]},
        {"tokens": good, "cond": cond[:3]},
        {"tokens": good, "cond": cond + np.inf},
        {"tokens": good, "codebook_sizes": ()},
        {"tokens": good, "codebook_sizes": (0,)},
        {"tokens": good, "grid": (2, 0)},
        {"tokens": good, "codebook_sizes": (2**33,)},
    ]
    for options in wrong:
        with pytest.raises(ValueError):
            write(tmp_path / "t", **options)
        assert list(tmp_path.iterdir()) == []
    writer = TokenWriter(tmp_path / "t", grid=(6,), codebook_sizes=(4,), tokenizer_hash="h")
    with pytest.raises(ValueError, match="split='../x'"), writer:
        writer.write("../x", good)
    with pytest.raises(ValueError, match="no split"), writer:
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_and_kept(folder):
    path, _ = folder
    before = (path / "train.bin").read_bytes()
    with pytest.raises(UsageError, match="exists; give a new folder"):
        write(path, np.zeros((4, 6), np.int64))
    assert (path / "train.bin").read_bytes() == before
    (path.parent / "empty").mkdir()
    assert len(TokenData(write(path.parent / "empty", np.zeros((4, 6), np.int64))).train()) == 4


def test_an_interruption_leaves_nothing_under_the_real_name(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        TokenWriter(tmp_path / "t", grid=(6,), codebook_sizes=(4,), tokenizer_hash="h") as writer,
    ):
        writer.write("train", np.zeros((4, 6), np.int64))
        assert not (tmp_path / "t").exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, Python 3.12+
def test_a_killed_writer_leaves_nothing_under_the_real_name(tmp_path):
    child = os.fork()
    if child == 0:
        writer = TokenWriter(tmp_path / "t", grid=(6,), codebook_sizes=(4,), tokenizer_hash="h")
        writer.__enter__().write("train", np.zeros((4, 6), np.int64))
        os.kill(os.getpid(), 9)
    assert os.waitpid(child, 0)[1] == 9
    assert not (tmp_path / "t").exists()
    write(tmp_path / "t", np.zeros((4, 6), np.int64))
    assert len(TokenData(tmp_path / "t").train()) == 4


def test_what_lies_beside_comes_along(tmp_path):
    with TokenWriter(tmp_path / "t", grid=(1,), codebook_sizes=(4,), tokenizer_hash="h") as writer:
        writer.write("train", np.zeros((4, 1), np.int64))
        (writer.folder / "tokenizer").mkdir()
        (writer.folder / "tokenizer" / "config.json").write_text("{}")
    assert (tmp_path / "t" / "tokenizer" / "config.json").exists()
    assert len(TokenData(tmp_path / "t").train()) == 4


def test_one_flipped_bit_or_a_cut_is_detected(folder):
    path, _ = folder
    caught = 0
    for name in ("train.bin", "valid.bin", "train.cond.bin"):
        good = (path / name).read_bytes()
        for at in RNG.integers(0, len(good) * 8, 20):
            data = bytearray(good)
            data[at // 8] ^= 1 << (at % 8)
            (path / name).write_bytes(data)
            with pytest.raises(FormatError, match=f"{name}: SHA-256"):
                TokenData(path)
            caught += 1
        for size in (0, 1, len(good) - 1, len(good) // 2):
            (path / name).write_bytes(good[:size])
            for verify in (True, False):
                with pytest.raises(FormatError, match=f"{name}: {size} bytes.*promises"):
                    TokenData(path, verify=verify)
        (path / name).unlink()
        with pytest.raises(FormatError, match=f"{name}: cannot be read"):
            TokenData(path)
        (path / name).write_bytes(good)
    assert caught == 60
    TokenData(path)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"format_version": None},
        {"format_version": True},
        {"vocab_size": 25},
        {"num_tokens": 11},
        {"dtype": "uint8"},
        {"dtype": "object"},
        {"codebook_sizes": []},
        {"codebook_sizes": [16, -8]},
        {"codebook_sizes": [16, 8.0]},
        {"codebook_sizes": "16"},
        {"codebook_sizes": [2**32 - 1, 8]},
        {"grid": [2, 0]},
        {"grid": None},
        {"grid": [2**31] * 4000},
        {"tokenizer_hash": None},
        {"splits": {}},
        {"splits": []},
        {"splits": {"../../etc/passwd": {"count": 1}}},
        {"splits": {"train": {"count": -1}}},
        {"splits": {"train": {"count": 10**300}}},
        {"splits": {"train": {"count": "50"}}},
        {"splits": {"train": {"count": 50}}},
        {"splits": {"train": 3}},
        {"conditions": None},
        {"conditions": [{"name": "x"}]},
    ],
)
def test_hostile_tokens_json(change: dict, folder):
    path, _ = folder
    facts = json.loads((path / "tokens.json").read_text())
    (path / "tokens.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(FormatError, match="tokens.json|train.bin") as caught:
        TokenData(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "\xff"])
def test_tokens_json_that_is_none(text: str, folder):
    path, _ = folder
    (path / "tokens.json").write_bytes(text.encode("latin1"))
    with pytest.raises(FormatError, match="tokens.json"):
        TokenData(path)
    with pytest.raises(FormatError, match="no such file"):
        TokenData(path.parent)


def test_read_and_write_one_sample(folder, tmp_path):
    data = TokenData(folder[0])
    x = data.train().batch(np.array([3])).x[0]
    data.write(x, tmp_path / "x.npy")
    assert torch.equal(data.read(tmp_path / "x.npy"), x)
    with pytest.raises(FormatError, match="id 24 at position 0"):
        data.write(torch.full((12,), 24), tmp_path / "y.npy")
    np.save(tmp_path / "z.npy", np.zeros(12))
    with pytest.raises(DataError, match="needs 12 integers"):
        data.read(tmp_path / "z.npy")
