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

__all__ = ["SIGN", "clock_tokens", "number_features", "note"]

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


def number_features(harmonics: int) -> Float[Tensor, "T F"]:
    """Return features of the numbers among the text tokens; other rows are zero.

    The first column says that it is a number. A minute, ``:00`` to ``:59``, is an angle: cosines
    and sines of its multiples. With few of them a minute's row lies where its neighbours' rows
    say, so the pictures of :07 and :09 teach something about :08. The other numbers, 0 to 30,
    have a column each.

    Args:
        harmonics: multiples of the angle, 0..30; 0 gives no features at all.

    Raises:
        ValueError: out of range.

    Example:
        >>> number_features(8).shape[1], int((number_features(8)[:, 0] > 0).sum())
        (48, 91)
    """
    if not 0 <= harmonics <= 30:
        raise ValueError(f"harmonics={harmonics}: must be in 0..30")
    tokens = clock_tokens()
    if not harmonics:
        return torch.zeros(len(tokens), 0)
    # The first column is as long as all waves of a minute together, and so is a number's own.
    num_waves, size = 2 * harmonics, math.sqrt(harmonics)
    features = torch.zeros(len(tokens), 1 + num_waves + len(_NUMBERS))
    for minute, token in enumerate(_MINUTES):
        angles = [2 * math.pi * k * minute / 60 for k in range(1, harmonics + 1)]
        waves = [wave(angle) for angle in angles for wave in (math.cos, math.sin)]
        features[tokens.index(token), : 1 + num_waves] = torch.tensor([size, *waves])
    for number, token in enumerate(_NUMBERS):
        features[tokens.index(f"▁{token}"), [0, 1 + num_waves + number]] = size
    return features
