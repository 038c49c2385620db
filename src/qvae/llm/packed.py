"""Rows as flat files of ids, the way nanoGPT's trainers map them into memory, and back.

    meta.json            format_version, vocab_size, dtype, vocabulary, splits: {train: {...}}
    train.bin            every row's ids one after another: uint16, or uint32 for a large vocabulary
    train.mask.bin       uint8 beside each id: 1 where its label counts, 0 on a prompt
    train.lengths.bin    uint32 a row

A trainer that knows ``train.bin`` and ``meta.json`` only can take the folder as it is.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qvae.errors import FormatError, UsageError
from qvae.llm.rows import IGNORED, read_columns
from qvae.llm.vocabulary import Vocabulary
from qvae.store import fsync_path, read_json, write_json

__all__ = ["PackedRows", "write_packed"]

_FORMAT_VERSION = 1
_PARTS = {"ids": "{}.bin", "mask": "{}.mask.bin", "lengths": "{}.lengths.bin"}


def write_packed(
    path: str | Path,
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    vocabulary: Vocabulary,
) -> None:
    """Write rows of :func:`~qvae.llm.rows.to_row` to a new folder, whole or not at all.

    Args:
        path: the folder; refused if it exists.
        splits: name -> rows, read once and one at a time.
        vocabulary: its size decides the dtype.

    Raises:
        UsageError: the folder exists, or a split's name is no word that names a file.
        FormatError: an id outside the vocabulary, or columns that
            :func:`~qvae.llm.rows.read_columns` refuses; with the row.

    Example:
        >>> import tempfile
        >>> words = Vocabulary(codebook_sizes=(8,), grid=(2,), tokenizer_hash="", text_size=9)
        >>> folder = Path(tempfile.mkdtemp()) / "rows"
        >>> row = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
        >>> write_packed(folder, {"train": [row]}, words)
        >>> np.fromfile(folder / "train.bin", dtype=words.dtype).tolist()
        [1, 2, 3]
        >>> PackedRows(folder, "train")[0]["labels"]
        [-100, 2, 3]
    """
    path = Path(path)
    if path.exists():
        raise UsageError(f"{path}: exists; give a new folder for the rows")
    for name in splits:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name):
            raise UsageError(f"split {name!r}: must be letters, digits, _ and -, such as train")
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        about = {
            name: _write_split(folder, name, rows, vocabulary) for name, rows in splits.items()
        }
        facts = {
            "format_version": _FORMAT_VERSION,
            "vocab_size": vocabulary.size,
            "dtype": vocabulary.dtype.name,
            "vocabulary": vocabulary.to_json(),
            "splits": about,
        }
        write_json(folder / "meta.json", facts)
        fsync_path(folder)
        os.replace(folder, path)
        fsync_path(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_split(
    folder: Path, name: str, rows: Iterable[Mapping[str, Any]], vocabulary: Vocabulary
) -> dict[str, Any]:
    paths = {part: folder / form.format(name) for part, form in _PARTS.items()}
    files = {part: path.open("wb") for part, path in paths.items()}
    digests = {part: hashlib.sha256() for part in files}
    counts = {"rows": 0, "ids": 0}

    def put(part: str, values: np.ndarray) -> None:
        files[part].write(values.tobytes())
        digests[part].update(values.tobytes())

    try:
        for index, row in enumerate(rows):
            try:
                ids, is_prompt = read_columns(row)
            except FormatError as error:
                raise FormatError(f"{name}: row {index}: {error}") from None
            wrong = (ids < 0) | (ids >= vocabulary.size)
            if wrong.any():
                at = int(wrong.argmax())
                raise FormatError(
                    f"{name}: row {index} has id {ids[at]} at position {at}, "
                    f"the vocabulary is 0..{vocabulary.size - 1}"
                )
            put("ids", ids.astype(vocabulary.dtype))
            put("mask", (~is_prompt).astype(np.uint8))
            put("lengths", np.array([len(ids)], dtype="<u4"))
            counts["rows"] += 1
            counts["ids"] += len(ids)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    finally:
        for file in files.values():
            file.close()
    hashes = {f"{part}_sha256": digest.hexdigest() for part, digest in digests.items()}
    return {**counts, **hashes}


class PackedRows(Sequence[dict[str, list[int]]]):
    """Rows of a split, read from the mapped files one at a time.

    Args:
        path: a folder of :func:`write_packed`.
        split: its name.

    Raises:
        FormatError: no such split, a newer format, or a file of another size or content.

    Example:
        >>> import tempfile
        >>> words = Vocabulary(codebook_sizes=(8,), grid=(2,), tokenizer_hash="", text_size=9)
        >>> folder = Path(tempfile.mkdtemp()) / "rows"
        >>> write_packed(folder, {"train": [{"input_ids": [1, 2]}, {"input_ids": [3]}]}, words)
        >>> rows = PackedRows(folder, "train")
        >>> len(rows), rows[1]["input_ids"]
        (2, [3])
    """

    def __init__(self, path: str | Path, split: str) -> None:
        self.path = Path(path)
        facts = read_json(self.path / "meta.json")
        version = facts.get("format_version") if isinstance(facts, dict) else None
        if version != _FORMAT_VERSION:
            raise FormatError(
                f"{self.path}/meta.json: format_version={version!r}, must be {_FORMAT_VERSION}"
            )
        self.vocabulary = Vocabulary.from_json(
            facts.get("vocabulary"), source=f"{self.path}/meta.json"
        )
        about = self._about(facts.get("splits"), split)
        sizes = {"ids": about["ids"], "mask": about["ids"], "lengths": about["rows"]}
        kinds = {"ids": self.vocabulary.dtype, "mask": np.dtype("u1"), "lengths": np.dtype("<u4")}
        found = {part: self._open(part, split, sizes[part], kinds[part], about) for part in _PARTS}
        self._ids, self._mask = found["ids"], found["mask"]
        self._stops = np.cumsum(found["lengths"], dtype=np.int64)
        if (int(self._stops[-1]) if len(self._stops) else 0) != len(self._ids):
            raise FormatError(f"{self.path}: the lengths of {split} do not sum to its ids")

    def _about(self, splits: Any, split: str) -> dict[str, Any]:
        """Return what meta.json says about a split, all of it there."""
        if not isinstance(splits, dict) or split not in splits:
            known = ", ".join(splits) if isinstance(splits, dict) else "none"
            raise FormatError(f"{self.path}: no split {split!r}, only {known}")
        about = splits[split]
        for key in ("rows", "ids", *(f"{part}_sha256" for part in _PARTS)):
            if not isinstance(about, dict) or key not in about:
                raise FormatError(f"{self.path}/meta.json: splits.{split} needs {key}")
        found: dict[str, Any] = about
        return found

    def _open(
        self, part: str, split: str, size: int, kind: np.dtype, about: dict[str, Any]
    ) -> np.ndarray:
        path = self.path / _PARTS[part].format(split)
        try:
            num_bytes = path.stat().st_size
            if num_bytes != size * kind.itemsize:
                raise FormatError(
                    f"{path}: {num_bytes} bytes, meta.json promises {size} numbers of {kind}"
                )
            data = np.memmap(path, kind, mode="r") if size else np.empty(0, kind)
        except OSError as error:
            raise FormatError(f"{path}: cannot be read ({error.strerror})") from None
        digest = hashlib.sha256(np.ascontiguousarray(data).data).hexdigest()
        if digest != about[f"{part}_sha256"]:
            raise FormatError(f"{path}: was changed since it was written")
        return data

    def __len__(self) -> int:
        return len(self._stops)

    def __getitem__(self, index: Any) -> Any:
        """Return a row as :func:`~qvae.llm.rows.to_row` made it, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        stop = int(self._stops[index])
        start = int(self._stops[index - 1]) if index % len(self) else 0
        ids = self._ids[start:stop].astype(np.int64)
        labels = np.where(self._mask[start:stop] == 1, ids, IGNORED)
        return {
            "input_ids": ids.tolist(),
            "labels": labels.tolist(),
            "attention_mask": [1] * len(ids),
        }
