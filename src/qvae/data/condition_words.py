"""Sentences as conditions: the words of a text, and the raw numbers that stand for them.

A word is a run of letters and digits, lowered; an apostrophe may be inside. All else only parts
words, so ``"A red-ish square!"`` has four. This is less than a tokenizer for a language model, and
needs no package: a caption of a few words out of some hundred is all that it is for.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from qvae.types import Condition

__all__ = ["MAX_WORDS", "known_words", "unknown_words", "word_numbers", "words_of"]

MAX_WORDS = 256
"""A text of more words is no short sentence."""
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_UNKNOWN, _FIRST = 1, 2  # see Condition; 0 follows the last word


def words_of(text: str) -> list[str]:
    """Cut a sentence into its words.

    Example:
        >>> words_of("It's a RED square, no 7!")
        ["it's", 'a', 'red', 'square', 'no', '7']
    """
    return _WORD.findall(unicodedata.normalize("NFC", text).replace("’", "'").lower())


def known_words(texts: Iterable[str]) -> tuple[str, ...]:
    """List the words of texts, in the order of the alphabet."""
    return tuple(sorted({word for text in texts for word in words_of(text)}))


def unknown_words(condition: Condition, text: str) -> list[str]:
    """List the words of a sentence that a ``text`` does not know, with one that looks like it.

    Example:
        >>> caption = Condition(name="caption", kind="text", categories=("red", "square"), width=2)
        >>> unknown_words(caption, "red sqare")
        ["'sqare' (like 'square'?)"]
    """
    return [
        repr(word) + _like(word, condition.categories)
        for word in words_of(text)
        if word not in condition.categories
    ]


def _like(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (like {close[0]!r}?)" if close else ""


def word_numbers(condition: Condition, text: str) -> Float[np.ndarray, " W"]:
    """Turn a sentence into raw numbers; one without a word is all NaN, "not told".

    Raises:
        ValueError: more words than the condition has room for.

    Example:
        >>> caption = Condition(name="caption", kind="text", categories=("red", "square"), width=4)
        >>> word_numbers(caption, "a red square")
        array([1., 2., 3., 0.])
    """
    words = words_of(text)
    if len(words) > condition.width:
        raise ValueError(f"has {len(words)} words, there is room for {condition.width}")
    if not words:
        return np.full(condition.width, np.nan)
    ids = {word: float(i) for i, word in enumerate(condition.categories, _FIRST)}
    row = np.zeros(condition.width)
    row[: len(words)] = [ids.get(word, _UNKNOWN) for word in words]
    return row
