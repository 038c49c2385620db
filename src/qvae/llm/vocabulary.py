"""Which ids of a language model are image tokens: offsets, markers, text before or after.

    text before:   0 .. text_size-1 | begin end [row] codes
    text after:    begin end [row] codes | text_size ids of text

An image is ``begin``, the codes in the tokenizer's order, perhaps ``row`` between two rows of the
grid, ``end``. As in Emu3 (arXiv:2409.18869) a code is a special token with a name of its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qvae.arguments import check_whole, is_whole
from qvae.data.token_format import token_dtype
from qvae.errors import FormatError
from qvae.store import read_json

__all__ = ["CONFIG_KEY", "Vocabulary"]

CONFIG_KEY = "qvae"
"""The key of a model's config.json that holds the vocabulary; stock loaders carry it along."""
_FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Map the tokens of an image tokenizer into the ids of a language model, and back.

    Args:
        codebook_sizes: sizes of the K codebooks of a cell; token ids of codebook k are offset by
            the sum of the sizes before it, as the tokenizer writes them.
        grid: axes of the latent grid; the last one is a row.
        tokenizer_hash: whose tokens these are.
        text_size: ids of the text, >= 0.
        is_text_first: whether text ids come before the image ids, as they must in a vocabulary
            that was there before, or after them.
        has_rows: whether a marker stands between two rows of the grid.
        repeat: blocks of ids that the codes have, in 1..cells; cell n takes its ids from block
            ``n % repeat``. With one a cell, an embedding says where its code stands, which
            helps a small model that knows relative positions only.

    Raises:
        ValueError: a size out of range, or a value of another type.

    Example:
        >>> words = Vocabulary(
        ...     codebook_sizes=(8,), grid=(2, 2), tokenizer_hash="ab", text_size=100, has_rows=True
        ... )
        >>> words.to_ids(np.array([7, 0, 1, 2])).tolist()  # begin, a row, the marker, a row, end
        [100, 110, 103, 102, 104, 105, 101]
        >>> words.dtype, words.size
        (dtype('uint16'), 111)
    """

    codebook_sizes: tuple[int, ...]
    grid: tuple[int, ...]
    tokenizer_hash: str
    text_size: int
    is_text_first: bool = True
    has_rows: bool = False
    repeat: int = 1

    def __post_init__(self) -> None:
        for name in ("codebook_sizes", "grid"):
            object.__setattr__(self, name, _sizes(name, getattr(self, name)))
        if not self.codebook_sizes:
            raise ValueError("codebook_sizes=(): needs at least one codebook")
        for name, least in (("text_size", 0), ("repeat", 1)):
            check_whole(name, getattr(self, name), least=least)
            object.__setattr__(self, name, int(getattr(self, name)))
        if self.repeat > self.num_cells:
            raise ValueError(f"repeat={self.repeat}: must be in 1..{self.num_cells}, the cells")
        for name, kind in (("is_text_first", bool), ("has_rows", bool), ("tokenizer_hash", str)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be a {kind.__name__}")

    @classmethod
    def of(cls, tokenizer: Any, *, text_size: int, **options: Any) -> "Vocabulary":
        """Describe an image tokenizer's tokens beside ``text_size`` ids of text.

        Args:
            tokenizer: a :class:`~qvae.tokenizer.Tokenizer`, or what else has its ``grid``,
                ``codebook_sizes`` and ``hash``.
            text_size: ids of the text.
            **options: ``is_text_first``, ``has_rows``, ``repeat``.
        """
        return cls(
            codebook_sizes=tuple(tokenizer.codebook_sizes),
            grid=tuple(tokenizer.grid),
            tokenizer_hash=tokenizer.hash,
            text_size=text_size,
            **options,
        )

    @property
    def num_cells(self) -> int:
        """Cells of the grid."""
        return math.prod(self.grid)

    @property
    def num_tokens(self) -> int:
        """Codes in an image."""
        return self.num_cells * len(self.codebook_sizes)

    @property
    def num_codes(self) -> int:
        """Codes that there are, over all codebooks."""
        return sum(self.codebook_sizes)

    @property
    def num_image_ids(self) -> int:
        """Ids that are no text: markers and codes."""
        return 2 + self.has_rows + self.repeat * self.num_codes

    @property
    def size(self) -> int:
        """Ids in all."""
        return self.text_size + self.num_image_ids

    @property
    def dtype(self) -> np.dtype:
        """The smaller of uint16 and uint32 that holds every id."""
        return token_dtype(self.size)

    @property
    def first(self) -> int:
        """The first id of the image block, which is ``begin``."""
        return self.text_size if self.is_text_first else 0

    @property
    def begin(self) -> int:
        """The id that opens an image."""
        return self.first

    @property
    def end(self) -> int:
        """The id that closes an image."""
        return self.first + 1

    @property
    def row(self) -> int | None:
        """The id between two rows, or None."""
        return self.first + 2 if self.has_rows else None

    @property
    def code_first(self) -> int:
        """The id of the first code of the first block."""
        return self.first + 2 + self.has_rows

    @property
    def text_first(self) -> int:
        """The first id of the text."""
        return 0 if self.is_text_first else self.num_image_ids

    @property
    def span_length(self) -> int:
        """Ids of one image, markers included."""
        return len(self.span[0])

    @cached_property
    def span(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids that each place of an image may take: ``low <= id < high``, int64 ``[L]``."""
        sizes = np.array(self.codebook_sizes)
        offsets = np.cumsum(sizes) - sizes
        row = self.grid[-1] if self.grid else 1
        low, high = [self.begin], [self.begin + 1]
        for cell in range(self.num_cells):
            if self.row is not None and cell and cell % row == 0:
                low.append(self.row)
                high.append(self.row + 1)
            block = self.code_first + cell % self.repeat * self.num_codes
            low += (block + offsets).tolist()
            high += (block + offsets + sizes).tolist()
        return np.array([*low, self.end]), np.array([*high, self.end + 1])

    @cached_property
    def code_places(self) -> np.ndarray:
        """Where in a span the codes stand, int64 ``[N]``."""
        return np.flatnonzero(self.span[0] >= self.code_first)

    @cached_property
    def code_shift(self) -> np.ndarray:
        """What is added to each of the N tokens to make it an id, int64 ``[N]``."""
        cells = np.arange(self.num_tokens) // len(self.codebook_sizes)
        return self.code_first + cells % self.repeat * self.num_codes

    def to_ids(self, tokens: np.ndarray) -> np.ndarray:
        """Write images as ids with their markers: ``[..., N]`` tokens -> int64 ``[..., L]``.

        Raises:
            ValueError: another number of tokens, or a token outside its codebook, by its position.
        """
        tokens = np.asarray(tokens)
        if tokens.shape[-1:] != (self.num_tokens,) or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"tokens: {tokens.dtype} of shape {tokens.shape}, needs integers"
                f" [..., {self.num_tokens}]"
            )
        low, high = self.span
        ids = np.broadcast_to(low, (*tokens.shape[:-1], len(low))).copy()
        ids[..., self.code_places] = tokens.astype(np.int64) + self.code_shift
        wrong = (ids < low) | (ids >= high)
        if wrong.any():
            *_, place = np.argwhere(wrong)[0]
            n = int(np.searchsorted(self.code_places, place))
            value = tokens.reshape(-1, self.num_tokens)[wrong.reshape(-1, len(low)).any(1)][0, n]
            bounds = low[place] - self.code_shift[n], high[place] - self.code_shift[n] - 1
            raise ValueError(
                f"token {value} at position {n}: must be in {bounds[0]}..{bounds[1]}, its codebook"
            )
        return ids

    def to_tokens(self, ids: np.ndarray) -> np.ndarray:
        """Read images back: int64 ``[..., L]`` grammatical ids -> ``[..., N]`` tokens."""
        return np.asarray(ids)[..., self.code_places].astype(np.int64) - self.code_shift

    def describe(self, value: int) -> str:
        """Say what an id is, for a message.

        Example:
            >>> words = Vocabulary(codebook_sizes=(8,), grid=(2,), tokenizer_hash="", text_size=9)
            >>> words.describe(10), words.describe(3)
            ('<|v_end|>', 'text')
        """
        if self.first <= value < self.first + self.num_image_ids:
            return self.names[value - self.first]
        is_text = self.text_first <= value < self.text_first + self.text_size
        return "text" if is_text else "no id of this vocabulary"

    @cached_property
    def names(self) -> list[str]:
        """What the image ids are called in a tokenizer, in their order."""
        markers = ["<|v_begin|>", "<|v_end|>", *(["<|v_row|>"] if self.has_rows else [])]
        return markers + [f"<|v:{i:05d}|>" for i in range(self.repeat * self.num_codes)]

    def to_json(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_json` takes."""
        values = asdict(self)
        values |= {name: list(values[name]) for name in ("codebook_sizes", "grid")}
        return {"format_version": _FORMAT_VERSION, **values}

    @classmethod
    def from_json(cls, facts: Any, *, source: str | Path = "vocabulary") -> "Vocabulary":
        """Read what :meth:`to_json` wrote.

        Raises:
            FormatError: a missing or unknown key, a value out of range, or a newer format.
        """
        if not isinstance(facts, Mapping) or facts.get("format_version") != _FORMAT_VERSION:
            found = facts.get("format_version") if isinstance(facts, Mapping) else facts
            raise FormatError(f"{source}: format_version={found!r}, must be {_FORMAT_VERSION}")
        values = {key: value for key, value in facts.items() if key != "format_version"}
        kinds = {name: field.type for name, field in cls.__dataclass_fields__.items()}
        if set(values) != set(kinds):
            raise FormatError(f"{source}: keys differ in {sorted(set(values) ^ set(kinds))}")
        wrong = next((name for name in kinds if not _fits(values[name], kinds[name])), None)
        if wrong is not None:
            raise FormatError(f"{source}: {wrong}={values[wrong]!r} is of another type")
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        try:
            return cls(**values)
        except ValueError as error:
            raise FormatError(f"{source}: {error}") from None

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Vocabulary":
        """Read the vocabulary in the config.json of a model folder.

        Raises:
            FormatError: the folder's model knows no image tokens of ours.
        """
        config = read_json(Path(path) / "config.json")
        if not isinstance(config, dict) or CONFIG_KEY not in config:
            raise FormatError(f"{path}/config.json: no key {CONFIG_KEY!r}; no image tokens in it")
        return cls.from_json(config[CONFIG_KEY], source=f"{path}/config.json: {CONFIG_KEY}")

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Refuse an image tokenizer that these ids were not made for.

        Raises:
            FormatError: its hash is another.
        """
        if tokenizer.hash != self.tokenizer_hash:
            raise FormatError(
                f"image tokenizer {tokenizer.hash[:12]}: the language model was made for "
                f"{self.tokenizer_hash[:12]}"
            )


def _sizes(name: str, values: Any) -> tuple[int, ...]:
    """Return sizes as a tuple.

    Raises:
        ValueError: no sequence, or something in it that is no whole number >= 1.
    """
    if isinstance(values, str) or not isinstance(values, (Sequence, np.ndarray)):
        raise ValueError(f"{name}={values!r}: must be a sequence of sizes")
    for size in values:
        if not is_whole(size) or size < 1:
            raise ValueError(f"{name}={tuple(values)}: every size must be a whole number >= 1")
    return tuple(int(size) for size in values)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a field's type."""
    if kind is bool or kind is str:
        return isinstance(value, kind)
    if kind is int:
        return type(value) is int
    return isinstance(value, Sequence) and all(type(item) is int for item in value)
