"""Packed rows: what is no row is not written, and what was damaged is not read."""

import json
import re
from pathlib import Path

import pytest

from qvae.errors import FormatError, UsageError
from qvae.llm.packed import PackedRows, write_packed
from test_llm_vocabulary import words


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"input_ids": [1, 2], "labels": [2]}, "labels: .1,., needs the shape of input_ids"),
        ({"input_ids": [1, 2], "labels": [1, 3]}, "labels: 3 at position 1, needs the id there"),
        ({"input_ids": [1.5, 2.0]}, "input_ids: float64 of shape .2,., needs integers"),
        ({"input_ids": [[1, 2], [3, 4]]}, "and one axis"),
        ({"labels": [1]}, "columns labels: needs input_ids"),
        ({"input_ids": [[1], [2, 3]]}, "input_ids: no row of numbers, needs integers"),
        ([1, 2], "list: must be a mapping with input_ids"),
    ],
)
def test_packed_rows_are_written_as_they_are_or_refused(as_users_call, row, text, tmp_path):
    good = {"input_ids": [1], "labels": [1]}
    with pytest.raises(FormatError, match=f"train: row 1: .*{text}"):
        write_packed(tmp_path / "rows", {"train": [good, row]}, words())


@pytest.mark.parametrize("name", ["../train", "a/b", "", ".", "-x", 3], ids=repr)
def test_a_split_s_name_is_a_word(as_users_call, name, tmp_path):
    """It names files in the folder, and nothing outside of it."""
    with pytest.raises(UsageError, match=f"^split {re.escape(repr(name))}: must be letters"):
        write_packed(tmp_path / "in" / "rows", {name: [{"input_ids": [1]}]}, words())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "damage", "text"),
    [
        ("train.bin", Path.unlink, "train.bin: cannot be read"),
        ("train.bin", lambda file: file.write_bytes(b""), "0 bytes, meta.json promises 2 numbers"),
        ("train.bin", lambda file: file.write_bytes(b"123"), "3 bytes, meta.json promises"),
        ("meta.json", lambda file: edit(file, splits={"train": {"ids": 2}}), "train needs rows"),
        ("meta.json", lambda file: edit(file, splits=None), "no split 'train', only none"),
    ],
)
def test_damaged_packed_rows_are_refused(name, damage, text, tmp_path):
    write_packed(tmp_path / "rows", {"train": [{"input_ids": [1, 2]}]}, words())
    damage(tmp_path / "rows" / name)
    with pytest.raises(FormatError, match=text):
        PackedRows(tmp_path / "rows", "train")
