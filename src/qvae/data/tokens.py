"""Token files: one flat array a split, memory-mapped, and a JSON that says what it is.

    tokens.json        format_version, grid, codebook_sizes, vocab_size, num_tokens, dtype,
                       tokenizer_hash, conditions, splits: {train: {count, sha256, cond_sha256}}
    train.bin          count x num_tokens little-endian integers, raster order, no header
    train.cond.bin     count x M float32, NaN = not told; only when there are conditions
    train.length.bin   count uint32, tokens of each row; only in format version 2

The dtype is uint16 for a vocabulary of up to 65,536, else uint32. Ids are checked when written and
again in each batch that is read. Other files in the folder (``tokenizer/``) are left alone.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from qvae.data.arrays import open_npy
from qvae.data.base import DataModule, Split, checked_indices
from qvae.data.conditions import conditions_from_json
from qvae.data.splits import PARTS
from qvae.data.token_format import (
    LENGTH_DTYPE,
    PLAIN,
    WITH_LENGTHS,
    check_lengths,
    check_tokens,
    token_dtype,
)
from qvae.data.token_writer import TokenWriter, write_tokens
from qvae.errors import DataError, FormatError
from qvae.store import read_json, sha256_file
from qvae.types import Batch, DataSpec, cond_width

__all__ = ["TokenData", "TokenSplit", "TokenWriter", "Tokens", "write_tokens"]


class TokenSplit(Split):
    """Tokens of one split in a memory-mapped file; ``Batch.x`` is int64 ``[B, N]``."""

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        codebook_sizes: tuple[int, ...],
        name: str,
        cond: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
    ) -> None:
        self._tokens, self._cond, self._lengths = tokens, cond, lengths
        self._codebook_sizes, self._name = codebook_sizes, name

    def __len__(self) -> int:
        return len(self._tokens)

    def batch(self, indices: np.ndarray) -> Batch:
        """Return the tokens at ``indices``.

        Raises:
            FormatError: the file holds an id outside the vocabulary, or a length that is none.
        """
        ids = checked_indices(indices, len(self))
        tokens = self._tokens[ids].astype(np.int64)
        check_tokens(tokens, sum(self._codebook_sizes), self._name, ids)
        cond = None if self._cond is None else torch.from_numpy(self._cond[ids].astype(np.float32))
        lengths = None if self._lengths is None else self._lengths[ids, 0].astype(np.int64)
        if lengths is not None:
            num_codebooks = len(self._codebook_sizes)
            check_lengths(lengths, tokens.shape[1], num_codebooks, self._name, ids)
        return Batch(
            x=torch.from_numpy(tokens),
            cond=cond,
            ids=torch.from_numpy(ids),
            lengths=None if lengths is None else torch.from_numpy(lengths),
        )


class TokenData(DataModule):
    """Read a folder of token files.

    ``spec.shape`` is ``(num_tokens,)`` and ``spec.levels`` the size of the vocabulary.

    Args:
        path: the folder.
        expected_hash: refuse tokens of any other tokenizer than this one.
        verify: compare each file's SHA-256 with the one recorded, which reads every byte once.

    Raises:
        FormatError: a file is missing, damaged, of a newer format, or of another tokenizer.
    """

    def __init__(
        self, path: str | Path, *, expected_hash: str | None = None, verify: bool = True
    ) -> None:
        self.path = Path(path)
        self._about = f"{self.path / 'tokens.json'}"
        facts = read_json(self.path / "tokens.json")
        self._read_facts(facts)
        if expected_hash is not None and expected_hash != self.tokenizer_hash:
            raise FormatError(
                f"{self._about}: tokens are of tokenizer {self.tokenizer_hash}, "
                f"the one in use is {expected_hash}; encode the data again"
            )
        self._splits = {
            part: self._open_split(part, about, verify=verify)
            for part, about in facts["splits"].items()
        }

    def _read_facts(self, facts: Any) -> None:
        """Check everything that tokens.json says before any other file is touched."""
        version = facts.get("format_version") if isinstance(facts, dict) else None
        if type(version) is not int or version not in (PLAIN, WITH_LENGTHS):
            raise FormatError(
                f"{self._about}: format_version={version!r}, this release reads "
                f"{PLAIN} and {WITH_LENGTHS}"
            )
        self.has_lengths = version == WITH_LENGTHS
        """Whether rows may be shorter than ``num_tokens``."""
        self.codebook_sizes = self._sizes(facts, "codebook_sizes")
        self.grid = self._sizes(facts, "grid")
        if self.has_lengths and len(self.grid) != 1:
            raise FormatError(f"{self._about}: lengths need a grid of one axis, not {self.grid}")
        self.vocab_size = sum(self.codebook_sizes)
        self.num_tokens = math.prod(self.grid) * len(self.codebook_sizes)
        if not 1 <= self.vocab_size <= 2**32 or self.num_tokens > 2**32:
            raise FormatError(
                f"{self._about}: grid and codebook_sizes need 1 to 2**32 ids and tokens a sample"
            )
        self._dtype = token_dtype(self.vocab_size)
        for name, value in [
            ("vocab_size", self.vocab_size),
            ("num_tokens", self.num_tokens),
            ("dtype", self._dtype.name),
        ]:
            if facts.get(name) != value:
                raise FormatError(
                    f"{self._about}: {name}={facts.get(name)!r}, grid and codebook_sizes "
                    f"give {value!r}"
                )
        self.tokenizer_hash: str = facts.get("tokenizer_hash")
        if not isinstance(self.tokenizer_hash, str):
            raise FormatError(f"{self._about}: tokenizer_hash={self.tokenizer_hash!r}, needs text")
        splits = facts.get("splits")
        if not isinstance(splits, dict) or not splits or not set(splits) <= set(PARTS):
            raise FormatError(f"{self._about}: splits need to be some of {', '.join(PARTS)}")
        conditions = conditions_from_json(facts.get("conditions"), self._about)
        self.spec = DataSpec(
            shape=(self.num_tokens,), conditions=conditions, levels=self.vocab_size
        )

    def _sizes(self, facts: dict[str, Any], name: str) -> tuple[int, ...]:
        value = facts.get(name)
        if not isinstance(value, list) or len(value) > 4096:
            raise FormatError(f"{self._about}: {name} needs to be a list of up to 4096 sizes")
        if any(type(size) is not int or not 1 <= size < 2**32 for size in value):
            raise FormatError(f"{self._about}: {name} needs whole sizes in 1..2**32-1")
        return tuple(value)

    def _open_split(self, part: str, about: Any, *, verify: bool) -> TokenSplit:
        count = about.get("count") if isinstance(about, dict) else None
        if type(count) is not int or not 0 <= count < 2**48:
            raise FormatError(f"{self._about}: the count of {part} needs to be a number >= 0")
        tokens = self._open(f"{part}.bin", self._dtype, (count, self.num_tokens))
        cond, lengths = None, None
        if self.spec.conditions:
            shape = (count, cond_width(self.spec.conditions))
            cond = self._open(f"{part}.cond.bin", np.dtype("<f4"), shape)
        if self.has_lengths:
            lengths = self._open(f"{part}.length.bin", LENGTH_DTYPE, (count, 1))
        if verify:
            self._verify(f"{part}.bin", about.get("sha256"))
            if cond is not None:
                self._verify(f"{part}.cond.bin", about.get("cond_sha256"))
            if lengths is not None:
                self._verify(f"{part}.length.bin", about.get("length_sha256"))
        return TokenSplit(
            tokens,
            codebook_sizes=self.codebook_sizes,
            name=str(self.path / f"{part}.bin"),
            cond=cond,
            lengths=lengths,
        )

    def _open(self, name: str, dtype: np.dtype, shape: tuple[int, int]) -> np.ndarray:
        path = self.path / name
        promised = math.prod(shape) * dtype.itemsize
        try:
            size = path.stat().st_size
            if size != promised:
                raise FormatError(
                    f"{path}: {size} bytes, tokens.json promises {promised} ({shape[0]} samples)"
                )
            if promised == 0:
                return np.empty(shape, dtype)
            return np.memmap(path, dtype=dtype, mode="r", shape=shape)
        except OSError as error:
            raise FormatError(f"{path}: cannot be read ({error.strerror})") from None

    def _verify(self, name: str, promised: Any) -> None:
        found = sha256_file(self.path / name)
        if found != promised:
            raise FormatError(
                f"{self.path / name}: SHA-256 is {found[:12]}, tokens.json promises "
                f"{str(promised)[:12]}; the file was damaged or swapped"
            )

    def _split(self, part: str) -> TokenSplit:
        if part not in self._splits:
            raise DataError(f"{self.path}: has no {part} split, only {', '.join(self._splits)}")
        return self._splits[part]

    @property
    def splits(self) -> Mapping[str, TokenSplit]:
        """The splits there are, by name."""
        return self._splits

    def train(self) -> TokenSplit:
        """Return the training part."""
        return self._split("train")

    def valid(self) -> TokenSplit:
        """Return the part for choices."""
        return self._split("valid")

    def test(self) -> TokenSplit:
        """Return the part that is reported on."""
        return self._split("test")

    def read(self, path: str | Path) -> Int[Tensor, " N"]:
        """Read one sample's tokens from an .npy file of integers.

        Raises:
            DataError: another number of tokens, or no integers.
            FormatError: an id outside the vocabulary.
        """
        tokens = open_npy(Path(path))
        if tokens.shape != (self.num_tokens,) or tokens.dtype.kind not in "iu":
            raise DataError(
                f"{path}: {tokens.dtype} of shape {tokens.shape}, needs {self.num_tokens} integers"
            )
        check_tokens(tokens[None], self.vocab_size, str(path), np.zeros(1, np.int64))
        return torch.from_numpy(tokens.astype(np.int64))

    def write(self, x: Int[Tensor, " N"], path: str | Path) -> None:
        """Write one sample's tokens as an .npy file.

        Raises:
            FormatError: an id outside the vocabulary.
        """
        tokens = x.detach().cpu().numpy()
        check_tokens(tokens[None], self.vocab_size, str(path), np.zeros(1, np.int64))
        with open(path, "wb") as file:
            np.save(file, tokens.astype(self._dtype), allow_pickle=False)


Tokens = TokenData
