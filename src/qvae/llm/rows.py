"""Interleaved text and images as rows of ids, in the columns that trainers expect, and back.

A row is ``{"input_ids": [...], "labels": [...], "attention_mask": [...]}``: plain lists, so a list
of rows is a ``datasets.Dataset`` by ``Dataset.from_list(rows)``, or a Parquet file. ``labels`` are
the ids, not shifted, with -100 where nothing is to be learned: on prompts and on the first id.
Sequences of both directions are the same thing: which part is a prompt makes the difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from qvae.errors import FormatError
from qvae.llm.grammar import Grammar, flat_ids
from qvae.llm.vocabulary import Vocabulary

__all__ = [
    "IGNORED",
    "Picture",
    "Text",
    "TextTokenizer",
    "encode_text",
    "from_row",
    "parse",
    "read_columns",
    "to_row",
]

IGNORED = -100
"""The label of what is not learned, as torch's cross-entropy and every trainer have it."""


@runtime_checkable
class TextTokenizer(Protocol):
    """What is asked of a text tokenizer; those of ``transformers`` have it."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Turn text into ids."""
        ...

    def decode(self, ids: Any, *, skip_special_tokens: bool = False) -> str:
        """Turn ids into text."""
        ...


@dataclass(frozen=True, slots=True)
class Text:
    """A stretch of text."""

    text: str
    is_prompt: bool = False
    """Whether it is given, not learned."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image by its tokens, ``[N]`` integers of the image tokenizer."""

    tokens: np.ndarray
    is_prompt: bool = False
    """Whether it is given, not learned."""


def to_row(
    parts: Sequence[Text | Picture], vocabulary: Vocabulary, tokenizer: TextTokenizer
) -> dict[str, list[int]]:
    """Write text and images as one row, between the tokenizer's first and last token.

    Args:
        parts: in their order.
        vocabulary: of the model.
        tokenizer: of the text; tokens that it has not, first or last, are left out.

    Raises:
        ValueError: a part that is neither, an image token out of range, or text that would become
            image ids.

    Example:
        >>> class Letters:
        ...     bos_token_id, eos_token_id = 0, 1
        ...     def encode(self, text, *, add_special_tokens=True): return [ord(c) for c in text]
        ...     def decode(self, ids, *, skip_special_tokens=False): return "".join(map(chr, ids))
        >>> words = Vocabulary(codebook_sizes=(8,), grid=(2,), tokenizer_hash="", text_size=128)
        >>> parts = [Text("hi", is_prompt=True), Picture(np.array([3, 4]))]
        >>> to_row(parts, words, Letters())["labels"]
        [-100, -100, -100, 128, 133, 134, 129, 1]
    """
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = [] if first is None else [int(first)]
    labels = [IGNORED] * len(ids)
    for index, part in enumerate(parts):
        if isinstance(part, Picture):
            tokens = flat_ids(part.tokens, f"parts[{index}].tokens")
            found = vocabulary.to_ids(tokens).tolist()
        elif isinstance(part, Text) and isinstance(part.text, str):
            found = encode_text(part.text, vocabulary, tokenizer)
        else:
            raise ValueError(f"parts[{index}]={part!r}: must be a Text of a string, or a Picture")
        ids += found
        labels += [IGNORED] * len(found) if part.is_prompt else found
    if last is not None:
        ids.append(int(last))
        labels.append(int(last))
    return {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)}


def encode_text(text: str, vocabulary: Vocabulary, tokenizer: TextTokenizer) -> list[int]:
    """Encode text that must stay text: a marker written in it is refused, not obeyed.

    Raises:
        ValueError: the text holds the name of an image token.
    """
    ids = [int(value) for value in tokenizer.encode(text, add_special_tokens=False)]
    start, stop = vocabulary.text_first, vocabulary.text_first + vocabulary.text_size
    for value in ids:
        if not start <= value < stop:
            name = vocabulary.describe(value)
            raise ValueError(f"text {text!r}: holds {name} (id {value}), which is no text")
    return ids


def parse(ids: Any, vocabulary: Vocabulary, tokenizer: TextTokenizer) -> list[Text | Picture]:
    """Read ids as text and images; the tokenizer's own special tokens are left out.

    Args:
        ids: ``[T]`` integers, such as one row of what ``generate()`` returned.
        vocabulary: of the model.
        tokenizer: of the text.

    Raises:
        FormatError: no row of integers, or a span that breaks the grammar: where, what was
            expected, what came.

    Example:
        >>> class Letters:
        ...     bos_token_id, eos_token_id = 0, 1
        ...     def encode(self, text, *, add_special_tokens=True): return [ord(c) for c in text]
        ...     def decode(self, ids, *, skip_special_tokens=False):
        ...         return "".join(chr(i) for i in ids if i > 1)
        >>> words = Vocabulary(codebook_sizes=(8,), grid=(2,), tokenizer_hash="", text_size=128)
        >>> text, picture = parse([0, 104, 105, 128, 133, 134, 129], words, Letters())
        >>> text.text, picture.tokens.tolist()
        ('hi', [3, 4])
    """
    row = flat_ids(ids)
    return _parts(row, np.zeros(len(row), dtype=bool), vocabulary, tokenizer)


def from_row(
    row: Mapping[str, Any], vocabulary: Vocabulary, tokenizer: TextTokenizer
) -> list[Text | Picture]:
    """Read a row back into the parts that it was made from.

    Text without an image between is one part for each run of equal ``is_prompt``.

    Raises:
        FormatError: columns of unlike length, labels that are not the ids, or broken grammar.

    Example:
        >>> class Letters:
        ...     bos_token_id, eos_token_id = 0, 1
        ...     def encode(self, text, *, add_special_tokens=True): return [ord(c) for c in text]
        ...     def decode(self, ids, *, skip_special_tokens=False):
        ...         return "".join(chr(i) for i in ids if i > 1)
        >>> words = Vocabulary(codebook_sizes=(8,), grid=(2,), tokenizer_hash="", text_size=128)
        >>> row = to_row([Text("hi", is_prompt=True), Text("ho")], words, Letters())
        >>> from_row(row, words, Letters())
        [Text(text='hi', is_prompt=True), Text(text='ho', is_prompt=False)]
    """
    ids, is_prompt = read_columns(row)
    if len(ids) > 1 and ids[0] == tokenizer.bos_token_id:
        is_prompt[0] = is_prompt[1]  # never learned, so it says nothing
    return _parts(ids, is_prompt, vocabulary, tokenizer)


def read_columns(
    row: Mapping[str, Any],
) -> tuple[Int[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    """Return a row's ids, and where nothing is learned; without labels all of it is.

    Raises:
        FormatError: no row with ``input_ids``, no integers, columns of unlike length, or labels
            that are not the ids.

    Example:
        >>> read_columns({"input_ids": [5, 6], "labels": [-100, 6]})
        (array([5, 6]), array([ True, False]))
    """
    if not isinstance(row, Mapping):
        raise FormatError(f"{type(row).__name__}: must be a mapping with input_ids")
    if "input_ids" not in row:
        raise FormatError(f"columns {', '.join(row)}: needs input_ids")
    ids = flat_ids(row["input_ids"], "input_ids")
    labels = flat_ids(row.get("labels", ids), "labels")
    if labels.shape != ids.shape:
        raise FormatError(f"labels: {labels.shape}, needs the shape of input_ids, {ids.shape}")
    is_prompt = labels == IGNORED
    wrong = ~is_prompt & (labels != ids)
    if wrong.any():
        at = int(wrong.argmax())
        raise FormatError(
            f"labels: {labels[at]} at position {at}, needs the id there ({ids[at]}) or {IGNORED}"
        )
    return ids, is_prompt


def _parts(
    ids: np.ndarray, is_prompt: np.ndarray, vocabulary: Vocabulary, tokenizer: TextTokenizer
) -> list[Text | Picture]:
    found: list[Text | Picture] = []
    position = 0
    for start, stop in [*Grammar(vocabulary).spans(ids), (len(ids), len(ids))]:
        found += _texts(ids[position:start], is_prompt[position:start], tokenizer)
        if stop > start:
            tokens = vocabulary.to_tokens(ids[start:stop])
            found.append(Picture(tokens, is_prompt=bool(is_prompt[start])))
        position = stop
    return found


def _texts(ids: np.ndarray, is_prompt: np.ndarray, tokenizer: TextTokenizer) -> list[Text]:
    """Decode a stretch without images, one part for each run of equal ``is_prompt``."""
    bounds = [0, *(np.flatnonzero(np.diff(is_prompt)) + 1).tolist(), len(ids)]
    texts = [
        Text(tokenizer.decode(ids[a:b].tolist(), skip_special_tokens=True), bool(is_prompt[a]))
        for a, b in pairwise(bounds)
        if b > a
    ]
    return [text for text in texts if text.text]
