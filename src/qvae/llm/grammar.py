"""The grammar of image spans: text, or ``begin``, exactly the grid's codes with markers, ``end``.

As a finite-state machine: place 0 is text, where the next id is text or ``begin``; place p of a
span takes what the p-th place of :attr:`Vocabulary.span` allows. Spans have one length, so the
place follows from how long ago the last ``begin`` was, and nothing has to be remembered.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from qvae.errors import FormatError
from qvae.llm.vocabulary import Vocabulary

__all__ = ["Grammar", "flat_ids"]


def flat_ids(ids: Any, name: str = "ids") -> Int[np.ndarray, " T"]:
    """Return one row of ids as int64, ``[T]``.

    Raises:
        FormatError: no integers, or rows of rows.

    Example:
        >>> flat_ids([[0, 1]])
        Traceback (most recent call last):
        qvae.errors.FormatError: ids: int64 of shape (1, 2), needs integers and one axis
    """
    try:
        row = np.asarray(ids)
    except ValueError:  # lists of unlike lengths
        raise FormatError(f"{name}: no row of numbers, needs integers and one axis") from None
    if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
        raise FormatError(f"{name}: {row.dtype} of shape {row.shape}, needs integers and one axis")
    return row.astype(np.int64)


class Grammar:
    """Say what may come next, and refuse what must not be there.

    Args:
        vocabulary: whose ids.

    Example:
        >>> words = Vocabulary(codebook_sizes=(8,), grid=(2,), tokenizer_hash="", text_size=9)
        >>> grammar = Grammar(words)
        >>> grammar.places(torch.tensor([[3, 4, 9], [9, 11, 12]])).tolist()
        [1, 3]
        >>> list(grammar.spans(np.array([3, 9, 11, 12, 10, 4])))
        [(1, 5)]
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        low, high = vocabulary.span
        self.low, self.high = torch.from_numpy(low), torch.from_numpy(high)

    def places(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, " B"]:
        """Return the place of a span that the next id of each grammatical row takes; 0 is text."""
        length = ids.shape[1]
        steps = torch.arange(1, length + 1, device=ids.device)
        last = (
            (steps * (ids == self.vocabulary.begin)).amax(1) if length else ids.new_zeros(len(ids))
        )
        ago = length + 1 - last
        return torch.where((last > 0) & (ago < len(self.low)), ago, 0)

    def allowed(self, places: Int[Tensor, " B"], num_ids: int) -> Bool[Tensor, "B V"]:
        """Say which of ``num_ids`` ids may come at each place; ids beyond the vocabulary never."""
        words, ids = self.vocabulary, torch.arange(num_ids, device=places.device)
        low, high = self.low.to(places.device)[places], self.high.to(places.device)[places]
        in_span = (ids >= low[:, None]) & (ids < high[:, None])
        is_text = (ids >= words.text_first) & (ids < words.text_first + words.text_size)
        # The first place of a span is `begin`, which text may be followed by.
        return in_span | (is_text & (places == 0)[:, None])

    def spans(self, ids: Any, *, may_go_on: bool = False) -> Iterator[tuple[int, int]]:
        """Find the image spans ``[start, stop)`` of one row, ``[T]``.

        Args:
            ids: of one row, ``[T]`` integers.
            may_go_on: whether the row may end inside a span, which is then not among the results.

        Raises:
            FormatError: no row of integers, an id outside the vocabulary, a code or marker outside
                a span, or a span that breaks the grammar: with its position, what was expected,
                what came.
        """
        ids, words = flat_ids(ids), self.vocabulary
        low, high = words.span
        position = 0
        while position < len(ids):
            value = int(ids[position])
            if value != words.begin:
                if not words.text_first <= value < words.text_first + words.text_size:
                    raise self._error(0, value, position)
                position += 1
                continue
            part = ids[position : position + len(low)]
            wrong = (part < low[: len(part)]) | (part >= high[: len(part)])
            if wrong.any():
                place = int(wrong.argmax())
                raise self._error(place, int(part[place]), position + place)
            if len(part) < len(low):
                if may_go_on:
                    return
                raise self._error(len(part), None, len(ids))
            yield position, position + len(low)
            position += len(low)

    def _error(self, place: int, value: int | None, position: int) -> FormatError:
        words = self.vocabulary
        low, high = int(self.low[place]), int(self.high[place])
        expected = f"text or {words.describe(words.begin)}"
        if place:
            expected = words.describe(low)
            if high - low > 1:
                expected += f" to {words.describe(high - 1)} (ids {low}..{high - 1})"
            expected += f" at place {place} of {len(self.low)} of an image"
        came = "the end" if value is None else f"id {value} ({words.describe(value)})"
        return FormatError(f"position {position}: expected {expected}, came {came}")
