"""The words of the clock's sentences as a vocabulary, and what is known of its numbers.

A sentence and the time that it means stand around a sign: ``a quarter to four = 3:45``. The right
side is what a model works out before it draws, or reads off before it speaks; it is text like any
other, outside the image, and the model writes it itself.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from qvae.data.clock_sentences import sentence_words
from qvae.llm.words import text_tokens

__all__ = ["SIGN", "clock_tokens", "minute_features", "note"]

SIGN = "="
"""Between a sentence and its time."""
_MINUTES = [f":{minute:02d}" for minute in range(60)]
_NUMBERS = [str(number) for number in range(31)]


def clock_tokens() -> list[str]:
    """List the text tokens in the order of their ids."""
    words = [word for word in sentence_words() if not word.isdigit()]
    return text_tokens([SIGN, ",", *_MINUTES, *_NUMBERS, *words])


def note(minutes: int) -> str:
    """Write a time as the model does for itself.

    Example:
        >>> note(225), note(5)
        ('3:45', '12:05')
    """
    hour, minute = divmod(int(minutes), 60)
    return f"{hour or 12}:{minute:02d}"


def minute_features(harmonics: int) -> Float[Tensor, "T F"]:
    """Return Fourier features of the minute tokens ``:00`` to ``:59``; other rows are zero.

    A minute is an angle. With few harmonics a minute's row lies where its neighbours' rows say,
    so the pictures of :07 and :09 teach something about :08.

    Args:
        harmonics: multiples of the angle, 0..30; 0 gives no features at all.

    Raises:
        ValueError: out of range.

    Example:
        >>> minute_features(8).shape[1], int((minute_features(8).abs().sum(1) > 0).sum())
        (17, 60)
    """
    if not 0 <= harmonics <= 30:
        raise ValueError(f"harmonics={harmonics}: must be in 0..30")
    tokens = clock_tokens()
    features = torch.zeros(len(tokens), 2 * harmonics + 1 if harmonics else 0)
    if harmonics:
        for minute, token in enumerate(_MINUTES):
            angles = [2 * math.pi * k * minute / 60 for k in range(1, harmonics + 1)]
            waves = [wave(angle) for angle in angles for wave in (math.cos, math.sin)]
            features[tokens.index(token)] = torch.tensor([1.0, *waves])
    return features
