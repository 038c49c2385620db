"""Splits: obeyed if told, else a hash that never moves a sample."""

import hashlib

import numpy as np
import pytest

from qvae.data.base import ArraySplit, checked_indices
from qvae.data.images import Images
from qvae.data.splits import (
    PARTS,
    column_parts,
    folder_parts,
    hash_fraction,
    part_of,
    split_rows,
)
from qvae.errors import DataError


def keys_of(num: int) -> list[bytes]:
    return [f"folder/{row:05}.png".encode() for row in range(num)]


def parts_by_key(keys: list[bytes]) -> dict[bytes, str]:
    return {keys[row]: part for part, rows in split_rows(keys).items() for row in rows.tolist()}


def test_hash_is_the_one_that_was_published():
    # A golden value: changing the hash would move everybody's test samples into training.
    assert hash_fraction(b"0") == int(hashlib.sha256(b"0").hexdigest()[:12], 16) / 2**48
    expected = {"train": 902, "valid": 55, "test": 43}
    assert {part: len(rows) for part, rows in split_rows(keys_of(1000)).items()} == expected


def test_every_sample_is_in_exactly_one_part_and_shares_are_90_5_5():
    rows = split_rows([str(row).encode() for row in range(20000)])
    assert np.array_equal(np.sort(np.concatenate([rows[p] for p in PARTS])), np.arange(20000))
    shares = [len(rows[part]) / 20000 for part in PARTS]
    assert np.allclose(shares, [0.90, 0.05, 0.05], atol=0.006)


def test_a_sample_stays_where_it_is_when_others_come_and_go():
    keys = keys_of(400)
    few, many = parts_by_key(keys[::2]), parts_by_key(keys[::-1])
    assert all(many[key] == part for key, part in few.items())


@pytest.mark.parametrize("num", range(3, 40))
def test_no_part_is_empty_however_small_the_data(num: int):
    for salt in range(5):
        rows = split_rows([f"{salt}-{row}".encode() for row in range(num)])
        assert min(len(rows[part]) for part in PARTS) >= 1
        assert sum(len(rows[part]) for part in PARTS) == num


@pytest.mark.parametrize("num", [0, 1, 2])
def test_too_few_samples_are_refused(num: int):
    with pytest.raises(DataError, match=f"{num} samples cannot be split .* at least 3"):
        split_rows(keys_of(num))


def test_told_parts_are_obeyed_and_only_missing_ones_are_taken_from_train():
    told = ["train"] * 1200 + ["test"] * 100
    rows = split_rows(keys_of(1300), told)
    assert np.array_equal(rows["test"], np.arange(1200, 1300))
    assert abs(len(rows["valid"]) - 100) < 30 and rows["valid"].max() < 1200
    all_told = ["train", "valid", "test", "test"]
    assert {p: r.tolist() for p, r in split_rows(keys_of(4), all_told).items()} == {
        "train": [0],
        "valid": [1],
        "test": [2, 3],
    }
    with pytest.raises(DataError, match="none of 2 samples is of train"):
        split_rows(keys_of(2), ["valid", "test"])


def test_words_for_parts():
    words = ["train", "Training", "val", "valid", " validation ", "dev", "TEST", "testing"]
    expected = ["train", "train", "valid", "valid", "valid", "valid", "test", "test"]
    assert [part_of(word) for word in words] == expected
    assert column_parts({"split": ["val", "test"]}, "f") == ["valid", "test"]
    assert column_parts({"label": ["val"]}, "f") is None
    with pytest.raises(DataError, match="f: split='tset' in row 2"):
        column_parts({"split": ["test", "tset"]}, "f")


def test_folders_tell_only_when_they_are_meant_to():
    assert folder_parts(["train/a.png", "val/b.png", "test/x/c.png"]) == ["train", "valid", "test"]
    assert folder_parts(["a.png", "b/c.png"]) is None
    # One class among others may be called "train": a locomotive, not a split.
    assert folder_parts(["car/a.png", "train/b.png"]) is None
    assert folder_parts([]) is None
    with pytest.raises(DataError, match="'extra/c.png' lies outside"):
        folder_parts(["train/a.png", "test/b.png", "extra/c.png"])


@pytest.mark.parametrize("bad", [[-1], [3], [0, 1.5], [[0]], [True], ["0"]])
def test_indices_that_are_no_positions_are_refused(bad: list):
    with pytest.raises(ValueError, match="indices"):
        checked_indices(bad, 3)


def test_array_split_is_random_access_and_does_not_change_its_array():
    x = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 5), dtype=np.uint8)
    before = x.copy()
    cond = np.arange(40, dtype=np.float64).reshape(20, 2)
    split = ArraySplit(x, cond=cond, names=[str(row) for row in range(20)], rows=np.array([7, 2]))
    one, two = split.batch(np.array([1, 0])), split.batch(np.array([0]))
    one.x.add_(5)
    assert np.array_equal(x, before)
    assert np.array_equal(two.x[0].numpy(), x[7].astype(np.float32) / 255)
    assert one.cond.tolist() == [[4, 5], [14, 15]] and one.ids.tolist() == [1, 0]
    assert split.names == ["7", "2"] and len(split) == 2
    assert len(split.batch(np.array([], dtype=np.int64))) == 0


def test_eight_bit_values_are_exactly_k_over_255():
    split = ArraySplit(np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1))
    x = split.batch(np.arange(256)).x.ravel()
    assert x.dtype.is_floating_point and (x * 255).round().int().tolist() == list(range(256))
    assert np.array_equal(x.numpy(), (np.arange(256) / np.float32(255)).astype(np.float32))


@pytest.mark.parametrize("dtype", ["bool", ">f4", "float16", "float64"])
def test_other_types_become_float32(dtype: str):
    x = (np.arange(8).reshape(2, 1, 2, 2) % 2).astype(dtype)
    assert ArraySplit(x).batch(np.arange(2)).x.ravel().tolist() == [0, 1] * 4


def test_array_split_refuses_what_does_not_fit():
    x = np.zeros((3, 1, 2, 2), np.uint8)
    for wrong in (
        {"cond": np.zeros((2, 1))},
        {"cond": np.zeros(3)},
        {"names": ["a"]},
        {"rows": np.array([3])},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong)) if "rows" not in wrong else "indi"):
            ArraySplit(x, **wrong)
    with pytest.raises(ValueError, match="int64"):
        ArraySplit(x.astype(np.int64))


def test_data_that_never_say_train_are_named(tmp_path):
    with pytest.raises(
        DataError, match="split: none of 2 samples is of train, they are of test and v"
    ):
        split_rows([b"a", b"b"], ["valid", "test"])
    path = tmp_path / "x.npz"
    np.savez(path, x=np.arange(48, dtype=np.uint8).reshape(3, 4, 4), split=["dev"] * 3)
    with pytest.raises(DataError, match="x.npz: split: none of 3 samples is of train"):
        Images(path)
