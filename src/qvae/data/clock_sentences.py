"""Sentences that tell a time, and may say how the clock looks: a small grammar, both ways.

    sentence = [frame] phrase ["," clause]
    frame    = "it is" | "the time is" | "a clock at" | "a clock that shows"
    clause   = "on a" face "face" | "with a" face "face"
    face     = "white" | "black" | ["pale" | "dark"] hue

A phrase says one of the 720 times in one of eight ways, each of which can say any time:

    digital 4:05   digital24 16:05   meridiem 4:05 pm   numerals 5 past 4   words four oh five
    past five past four, half past four, [a] quarter to five, exactly four
    after five after four, five till four   minutes five minutes past four

For every time, two of the eight are held out: no training sentence says that time in that way.
"""

import random
from collections.abc import Callable
from functools import lru_cache

import numpy as np

__all__ = [
    "FACES",
    "HELD_OUT",
    "PHRASINGS",
    "face_names",
    "parse_sentence",
    "phrase",
    "say",
    "sentence_words",
    "train_phrasings",
]

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty")
_FRAMES = ("", "it is ", "the time is ", "a clock at ", "a clock that shows ")
_HUES = ("red", "yellow", "green", "cyan", "blue", "purple")
_FRAME_SHARE, _CLAUSE_SHARE = 0.5, 0.5

FACES = ("white", "black", *(f"{s}{h}" for h in _HUES for s in ("", "pale ", "dark ")))
"""What a clause may call a face; a bare hue is either shade of it."""


def _number(value: int) -> str:
    if value < 20:
        return _ONES[value]
    tens, ones = divmod(value, 10)
    return _TENS[tens - 2] + (f" {_ONES[ones]}" if ones else "")


def _hour(hour: int) -> str:
    return _number(hour % 12 or 12)


def _relative(hour: int, minute: int, *, to: str, past: str) -> tuple[int, str, int]:
    """Split a time as so many minutes past an hour, or to the next one."""
    return (minute, past, hour) if minute <= 30 else (60 - minute, to, hour + 1)


def _digital24(hour: int, minute: int) -> str:
    return f"{hour + 12 if hour else 0}:{minute:02d}"


def _numerals(hour: int, minute: int) -> str:
    if not minute:
        return f"{hour or 12} o'clock"
    count, side, near = _relative(hour, minute, to="to", past="past")
    return f"{count} {side} {near % 12 or 12}"


def _words(hour: int, minute: int) -> str:
    if not minute:
        return f"{_hour(hour)} o'clock"
    return f"{_hour(hour)} {'oh ' if minute < 10 else ''}{_number(minute)}"


def _past(hour: int, minute: int) -> str:
    if not minute:
        return f"exactly {_hour(hour)}"
    count, side, near = _relative(hour, minute, to="to", past="past")
    said = {15: "quarter", 30: "half"}.get(count, _number(count))
    return f"{said} {side} {_hour(near)}"


def _after(hour: int, minute: int) -> str:
    if not minute:
        return f"{_hour(hour)} sharp"
    count, side, near = _relative(hour, minute, to="till", past="after")
    return f"{_number(count)} {side} {_hour(near)}"


def _minutes(hour: int, minute: int) -> str:
    count, side, near = _relative(hour, minute, to="to", past="past")
    return f"{_number(count)} minutes {side} {_hour(near)}"


PHRASINGS: dict[str, Callable[[int, int], str]] = {
    "digital": lambda hour, minute: f"{hour or 12}:{minute:02d}",
    "digital24": _digital24,
    "meridiem": lambda hour, minute: f"{hour or 12}:{minute:02d} pm",
    "numerals": _numerals,
    "words": _words,
    "past": _past,
    "after": _after,
    "minutes": _minutes,
}
"""Name -> what (hour 0-11, minute) is called; every one can say every time, no two alike."""


def _draw_held_out() -> np.ndarray:
    # RandomState, not Generator: numpy promises that its stream never changes between versions.
    draws = np.random.RandomState(720).random_sample((720, len(PHRASINGS)))
    chosen = np.argsort(draws, axis=1, kind="stable")[:, :2]
    chosen.setflags(write=False)
    return chosen


HELD_OUT = _draw_held_out()
"""``[720, 2]``: for every time, the two phrasings (by their place in the table) of the test."""


@lru_cache(maxsize=720)
def train_phrasings(minutes: int) -> tuple[str, ...]:
    """Name the phrasings of a time that training may use.

    Example:
        >>> len(train_phrasings(610))
        6
    """
    held_out = set(HELD_OUT[minutes].tolist())
    return tuple(name for i, name in enumerate(PHRASINGS) if i not in held_out)


def phrase(minutes: int, phrasing: str) -> str:
    """Say a time in one way.

    Args:
        minutes: after 12:00, in 0..719.
        phrasing: a key of :data:`PHRASINGS`.

    Example:
        >>> [phrase(610, name) for name in ("digital24", "words", "past")]
        ['22:10', 'ten ten', 'ten past ten']
    """
    return PHRASINGS[phrasing](*divmod(int(minutes), 60))


def say(
    minutes: int, phrasings: tuple[str, ...], rng: random.Random, *, face: str | None = None
) -> str:
    """Make a sentence: one of the phrasings, perhaps in a frame, perhaps with a clause.

    Args:
        minutes: after 12:00, in 0..719.
        phrasings: to choose from.
        rng: what is chosen.
        face: the face's colour by :func:`face_names`; None leaves the clause out.

    Example:
        >>> say(225, ("past",), random.Random(4), face="pale green")
        'a quarter to four, on a green face'
    """
    text = phrase(minutes, rng.choice(phrasings))
    if text.startswith("quarter") and rng.random() < 0.5:
        text = f"a {text}"
    if text.endswith(" pm") and rng.random() < 0.5:
        text = text.removesuffix("pm") + "am"
    if rng.random() < _FRAME_SHARE:
        text = rng.choice(_FRAMES[1:]) + text
    if face is not None and rng.random() < _CLAUSE_SHARE:
        name = face.rpartition(" ")[2] if rng.random() < 0.5 else face
        text += f", {rng.choice(('on', 'with'))} a {name} face"
    return text


@lru_cache(maxsize=1)
def _phrases() -> dict[str, int]:
    return {phrase(minutes, name): minutes for name in PHRASINGS for minutes in range(720)}


def parse_sentence(text: str) -> tuple[int, str | None] | None:
    """Understand a sentence: its time and its face, or None where the grammar has no such.

    Example:
        >>> parse_sentence("a quarter to four, on a green face"), parse_sentence("22:10")
        ((225, 'green'), (610, None))
        >>> parse_sentence("five past twenty") is None
        True
    """
    text, _, clause = " ".join(text.lower().split()).partition(", ")
    face = None
    if clause:
        words = clause.split()
        face = " ".join(words[2:-1])
        if words[:1] not in (["on"], ["with"]) or words[1:2] != ["a"] or words[-1] != "face":
            return None
        if face not in FACES:
            return None
    for frame in _FRAMES[1:]:
        text = text.removeprefix(frame)
    text = text.removeprefix("a ") if text.startswith("a quarter") else text
    text = text.removesuffix("am") + "pm" if text.endswith(" am") else text
    minutes = _phrases().get(text)
    return None if minutes is None else (minutes, face)


def face_names(faces: np.ndarray) -> list[str]:
    """Name colours of faces as a clause does, most precisely.

    Args:
        faces: ``[N, 3]`` RGB in 0-1.

    Example:
        >>> face_names(np.array([[0.99, 0.98, 0.97], [0.8, 1.0, 0.8], [0.0, 0.0, 0.2]]))
        ['white', 'pale green', 'dark blue']
    """
    names = []
    for red, green, blue in np.asarray(faces, dtype=np.float64).tolist():
        high, low = max(red, green, blue), min(red, green, blue)
        is_light = high > 0.5
        if high - low < (0.06 * high if is_light else 0.02):
            names.append("white" if is_light else "black")
            continue
        parts = {red: (green - blue), green: 2 * (high - low) + blue - red}
        turn = parts.get(high, 4 * (high - low) + red - green) / (high - low)
        hue = _HUES[round(turn) % 6]
        names.append(f"{'pale' if is_light else 'dark'} {hue}")
    return names


def sentence_words() -> list[str]:
    """List the words that sentences are made of, sorted; digital times are no words."""
    texts = [*_phrases(), *_FRAMES, "a", "am", "on", "with", "face", *FACES]
    return sorted({word for text in texts for word in text.split() if ":" not in word})
