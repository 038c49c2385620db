"""Write token files as a stream: a batch at a time, whole or not at all.

Everything goes to a temporary folder beside the target; only :meth:`TokenWriter.close`, at the end
of the ``with`` block, flushes it to the disk and renames it. A run that is killed leaves no
half-written folder under the real name, and running it again writes the same bytes.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from torch import Tensor

from qvae.data.conditions import conditions_to_json
from qvae.data.splits import PARTS
from qvae.data.token_format import (
    LENGTH_DTYPE,
    PLAIN,
    WITH_LENGTHS,
    check_lengths,
    check_tokens,
    token_dtype,
)
from qvae.errors import UsageError
from qvae.store import fsync_path, write_json
from qvae.types import Condition, cond_width

__all__ = ["TokenWriter", "write_tokens"]

_ROWS = 16384


class _HashedFile:
    """A file whose SHA-256 is known when it is closed."""

    def __init__(self, path: Path) -> None:
        self.file: IO[bytes] = path.open("wb")
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)

    def finish(self) -> str:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return self.digest.hexdigest()


class TokenWriter:
    """Write a folder of tokens, to be used in a ``with`` block.

    Args:
        path: the folder to make; it may exist only if it is empty.
        grid: axes of the latent grid; ``()`` for one latent a sample.
        codebook_sizes: sizes of the codebooks in one cell; ids of the k-th are offset by the sum
            of the sizes before it, so the vocabulary is their sum.
        tokenizer_hash: whose tokens these are.
        conditions: what the rows of ``cond`` mean.

    Raises:
        UsageError: ``path`` is in use.
        ValueError: an argument or a batch breaks a rule.
        FormatError: an id outside the vocabulary.

    Example:
        >>> import tempfile
        >>> from qvae.data.tokens import TokenData
        >>> folder = tempfile.mkdtemp() + "/tokens"
        >>> with TokenWriter(folder, grid=(2,), codebook_sizes=(8,), tokenizer_hash="ab") as writer:
        ...     writer.write("train", np.array([[7, 0], [1, 2]]))
        >>> TokenData(folder).train().batch(np.array([1])).x
        tensor([[1, 2]])
    """

    def __init__(
        self,
        path: str | Path,
        *,
        grid: Sequence[int],
        codebook_sizes: Sequence[int],
        tokenizer_hash: str,
        conditions: Sequence[Condition] = (),
    ) -> None:
        for name, sizes in [("grid", grid), ("codebook_sizes", codebook_sizes)]:
            if any(size < 1 for size in sizes):
                raise ValueError(f"{name}={tuple(sizes)}: every size must be at least 1")
        if not codebook_sizes:
            raise ValueError("codebook_sizes=(): needs at least one codebook")
        self.path = Path(path)
        if self.path.exists() and not _is_empty_folder(self.path):
            raise UsageError(f"{self.path}: exists; give a new folder for the tokens")
        self._grid, self._codebook_sizes = list(grid), list(codebook_sizes)
        self._conditions = tuple(conditions)
        self._hash = tokenizer_hash
        self._vocab_size = sum(codebook_sizes)
        self._num_tokens = math.prod(grid) * len(codebook_sizes)
        self._dtype = token_dtype(self._vocab_size)
        self._counts: dict[str, int] = {}
        self._has_lengths: bool | None = None
        self._files: dict[str, _HashedFile] = {}
        self.folder = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        """Where the files are until the end; what is put here comes along (``tokenizer/``)."""

    def __enter__(self) -> "TokenWriter":
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self

    def write(
        self,
        split: str,
        tokens: np.ndarray | Tensor,
        cond: np.ndarray | Tensor | None = None,
        *,
        lengths: np.ndarray | Tensor | None = None,
    ) -> None:
        """Append a batch to a split.

        Args:
            split: train, valid or test.
            tokens: ``[B, N]`` integers in the vocabulary.
            cond: ``[B, M]`` raw numbers, NaN = not told; needed if there are conditions.
            lengths: ``[B]`` tokens of each row, whole cells of a grid with one axis; what follows
                may be anything and is written as the first id of its codebook. In every call or
                in none.
        """
        if split not in PARTS:
            raise ValueError(f"split={split!r}: must be one of {', '.join(PARTS)}")
        ids = _as_array(tokens)
        if ids.ndim != 2 or ids.shape[1] != self._num_tokens or ids.dtype.kind not in "iu":
            raise ValueError(
                f"tokens: {ids.dtype} of shape {ids.shape}, needs integers [B, {self._num_tokens}]"
            )
        done = self._counts.get(split, 0)
        places = np.arange(done, done + len(ids))
        counts = self._checked_lengths(lengths, split, places)
        if counts is not None:
            is_told = np.arange(self._num_tokens) < counts[:, None]
            ids = np.where(is_told, ids.astype(np.int64), self._first_ids())
        check_tokens(ids, self._vocab_size, split, places)
        rows = self._checked_cond(cond, len(ids))
        self._append(f"{split}.bin", ids.astype(self._dtype))
        if self._conditions:
            self._append(f"{split}.cond.bin", rows)
        if counts is not None:
            self._append(f"{split}.length.bin", counts.astype(LENGTH_DTYPE))
        self._counts[split] = done + len(ids)

    def _checked_cond(self, cond: np.ndarray | Tensor | None, num: int) -> np.ndarray:
        shape = (num, cond_width(self._conditions))
        rows = np.empty((num, 0)) if cond is None else _as_array(cond)
        if rows.shape != shape:
            raise ValueError(f"cond: shape {rows.shape}, needs {shape}")
        if np.isinf(rows).any():
            raise ValueError("cond: holds Inf, needs finite values or NaN")
        return rows.astype("<f4")

    def _checked_lengths(
        self, lengths: np.ndarray | Tensor | None, split: str, places: np.ndarray
    ) -> np.ndarray | None:
        has = lengths is not None
        if self._has_lengths not in (None, has):
            raise ValueError("lengths: given for some rows only, needs all or none")
        self._has_lengths = has
        if lengths is None:
            return None
        if len(self._grid) != 1:
            raise ValueError(f"lengths: a grid of {len(self._grid)} axes is always full, needs one")
        found = _as_array(lengths)
        if found.shape != places.shape or found.dtype.kind not in "iu":
            raise ValueError(
                f"lengths: {found.dtype} of shape {found.shape}, needs {len(places)} integers"
            )
        check_lengths(found, self._num_tokens, len(self._codebook_sizes), split, places)
        return found

    def _first_ids(self) -> np.ndarray:
        """Return the first id of each position's codebook."""
        return np.resize(np.cumsum([0, *self._codebook_sizes[:-1]]), self._num_tokens)

    def _append(self, name: str, rows: np.ndarray) -> None:
        if name not in self._files:
            self._files[name] = _HashedFile(self.folder / name)
        self._files[name].write(np.ascontiguousarray(rows).tobytes())

    def close(self) -> None:
        """Flush everything to the disk and give the folder its name."""
        if not self._counts:
            raise ValueError("no split was written")
        hashes = {name: file.finish() for name, file in self._files.items()}
        splits: dict[str, dict[str, Any]] = {}
        for part in (part for part in PARTS if part in self._counts):
            splits[part] = {"count": self._counts[part], "sha256": hashes[f"{part}.bin"]}
            if self._conditions:
                splits[part]["cond_sha256"] = hashes[f"{part}.cond.bin"]
            if self._has_lengths:
                splits[part]["length_sha256"] = hashes[f"{part}.length.bin"]
        facts = {
            "format_version": WITH_LENGTHS if self._has_lengths else PLAIN,
            "grid": self._grid,
            "codebook_sizes": self._codebook_sizes,
            "vocab_size": self._vocab_size,
            "num_tokens": self._num_tokens,
            "dtype": self._dtype.name,
            "tokenizer_hash": self._hash,
            "conditions": conditions_to_json(self._conditions),
            "splits": splits,
        }
        write_json(self.folder / "tokens.json", facts)
        fsync_path(self.folder)
        os.replace(self.folder, self.path)
        fsync_path(self.path.parent)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            for file in self._files.values():
                file.file.close()
            shutil.rmtree(self.folder, ignore_errors=True)


def _as_array(values: np.ndarray | Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def write_tokens(
    path: str | Path,
    splits: Mapping[str, Sequence[np.ndarray | Tensor | None]],
    *,
    grid: Sequence[int],
    codebook_sizes: Sequence[int],
    tokenizer_hash: str,
    conditions: Sequence[Condition] = (),
) -> None:
    """Write whole splits, ``{"train": (tokens, cond, lengths)}``; see :class:`TokenWriter`.

    Conditions and lengths may be None, and lengths left out.
    """
    with TokenWriter(
        path,
        grid=grid,
        codebook_sizes=codebook_sizes,
        tokenizer_hash=tokenizer_hash,
        conditions=conditions,
    ) as writer:
        for split, (tokens, *others) in splits.items():
            assert tokens is not None
            for start in range(0, max(len(tokens), 1), _ROWS):
                part = slice(start, start + _ROWS)
                cond, lengths = ([None if a is None else a[part] for a in others] + [None])[:2]
                writer.write(split, tokens[part], cond, lengths=lengths)
