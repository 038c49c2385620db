"""One condition's value: from what a user typed to raw numbers, and back; and as JSON.

See :class:`~qvae.types.Condition` for what the raw numbers of each kind mean.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from qvae.data.arrays import open_npy
from qvae.data.condition_words import MAX_WORDS, unknown_words, word_numbers
from qvae.errors import FormatError, UsageError
from qvae.types import Condition

__all__ = [
    "condition_row",
    "conditions_from_json",
    "conditions_to_json",
    "did_you_mean",
    "format_value",
    "is_number",
    "numbers_of",
    "parse_value",
    "shorten",
    "wrap_cyclic",
]

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_CLOCK = re.compile(r"(\d{1,2})[:h](\d{2})(?::(\d{2}(?:\.\d+)?))?", re.ASCII)
# How many of a unit make one hour, for clock times such as 4:20.
_PER_HOUR = {"h": 1.0, "min": 60.0, "s": 3600.0, "d": 1 / 24}


def is_number(text: str) -> bool:
    """Tell whether a text is a plain decimal number.

    Example:
        >>> is_number("-1.5e3"), is_number("nan")
        (True, False)
    """
    return _NUMBER.fullmatch(text) is not None


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Say which known name is close to a wrong one, and which there are."""
    close = difflib.get_close_matches(name, known, n=1)
    shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return (f"did you mean {close[0]!r}? " if close else "") + f"there are: {shown or 'none'}"


def _number(text: str) -> float:
    value = float(text) if is_number(text) else math.nan
    if not abs(value) < 1e30:
        raise ValueError("needs a finite number")
    return value


def _cyclic(text: str, period: float, unit: str) -> float:
    """Read "4:20", "16:20:30", "4h20", "4.5" or "4.5h" as a number of units modulo the period."""
    clock = _CLOCK.fullmatch(text)
    if clock and unit in _PER_HOUR:
        hours, minutes, seconds = int(clock[1]), int(clock[2]), float(clock[3] or 0)
        if hours > 23 or minutes > 59 or seconds >= 60:
            raise ValueError("hours go from 0 to 23, minutes and seconds from 0 to 59")
        value = (hours + minutes / 60 + seconds / 3600) * _PER_HOUR[unit]
    else:
        try:
            value = _number(text.removesuffix(unit).strip())
        except ValueError:
            also = " or a time such as 4:20" if unit in _PER_HOUR else ""
            raise ValueError(f"needs a finite number{also}") from None
    # Twice: the remainder of a tiny negative number rounds up to the period itself.
    return value % period % period


def numbers_of(condition: Condition, value: str | np.ndarray) -> Float[np.ndarray, " W"]:
    """Turn a text, or the numbers of a vector, into a condition's raw numbers.

    Raises:
        ValueError: the rule that the value breaks, without its name and value.
    """
    kind = condition.kind
    if isinstance(value, np.ndarray):
        if kind != "vector":
            raise ValueError(f"{len(value)} numbers are a vector, needs a {kind}")
        return _standardised(condition, value.astype(np.float64))
    text = value.strip()
    if kind == "category":
        if text not in condition.categories:
            raise ValueError(f"is not a category; {did_you_mean(text, condition.categories)}")
        return np.array([float(condition.categories.index(text))])
    if kind == "cyclic":
        return np.array([_cyclic(text, condition.period, condition.unit)])
    if kind == "text":
        return word_numbers(condition, text)
    words = text.split() if kind == "vector" else [text]
    return _standardised(condition, np.array([_number(word) for word in words]))


def _standardised(condition: Condition, values: np.ndarray) -> np.ndarray:
    if len(values) != condition.width:
        raise ValueError(f"has {len(values)} numbers, needs {condition.width}")
    if not (abs(values) < 1e30).all():
        place = int(np.argmin(abs(values) < 1e30))
        raise ValueError(f"number {place + 1} is {values[place]}, needs finite numbers")
    return (values - condition.mean) / condition.std


def parse_value(condition: Condition, text: str) -> Float[np.ndarray, " W"]:
    """Turn what a user typed for a condition into its raw numbers.

    A vector may also be ``@FILE``, an .npy file of its numbers.

    Raises:
        UsageError: an unknown category, an impossible time, not a number, numbers or words that
            are too many or too few, a file that cannot be read.

    Example:
        >>> clock = Condition(name="time", kind="cyclic", period=12.0, unit="h")
        >>> parse_value(clock, "16:20").round(3)
        array([4.333])
    """
    is_file = condition.kind == "vector" and text.startswith("@")
    try:
        return numbers_of(condition, _read_vector(text[1:]) if is_file else text)
    except ValueError as error:
        raise UsageError(f"{condition.name}={shorten(text)!r}: {error}") from None


def _read_vector(name: str) -> np.ndarray:
    values = open_npy(Path(name))
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise ValueError(f"holds {values.dtype} of shape {values.shape}, needs a row of numbers")
    return values


def shorten(text: str) -> str:
    """Cut a long value for a message.

    Example:
        >>> shorten("0.125 " * 20)
        '0.125 0.125 0.125 0.125 0.125 0.125 0.12...'
    """
    return text if len(text) <= 60 else text[:40] + "..."


def format_value(condition: Condition, value: float | Sequence[float] | np.ndarray) -> str:
    """Write raw numbers the way a user would type them; NaN ("not told") is an empty text.

    Hours are written as a time, to the second; a word that is not known as ``?``.

    Example:
        >>> format_value(Condition(name="time", kind="cyclic", period=12.0, unit="h"), 4 + 1 / 3)
        '4:20'
    """
    row = np.atleast_1d(np.asarray(value, np.float64))
    if np.isnan(row).any():
        return ""
    if condition.kind == "category":
        return condition.categories[round(row[0])]
    if condition.kind == "text":
        names = ("", "?", *condition.categories)
        return " ".join(names[round(word)] for word in row).strip()
    if condition.kind in ("number", "vector"):
        return " ".join(f"{item:.6g}" for item in row * condition.std + condition.mean)
    if condition.unit != "h" or condition.period > 24:
        return f"{row[0]:.6g}"
    minutes, seconds = divmod(round(row[0] * 3600) % round(condition.period * 3600), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}" + (f":{seconds:02}" if seconds else "")


def condition_row(
    conditions: Sequence[Condition],
    values: Mapping[str, str],
    *,
    tell: Callable[[str], None] = lambda _: None,
) -> Float[np.ndarray, " M"]:
    """Turn ``{"time": "4:20"}`` into one row; what is not named is NaN, "not told".

    Args:
        conditions: what there is to be told.
        values: what is told, as text.
        tell: called with a sentence about words that are not known.

    Raises:
        UsageError: a name that is no condition, or a value that :func:`parse_value` refuses.

    Example:
        >>> age = Condition(name="age", kind="number", mean=40.0, std=10.0)
        >>> condition_row([age], {"age": "50"})
        array([1.], dtype=float32)
    """
    known = [condition.name for condition in conditions]
    for name in values:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(f"{name}={values[name]!r}: no such condition; {hint}")
    row = [np.zeros(0)]
    for item in conditions:
        is_told = item.name in values
        row.append(parse_value(item, values[item.name]) if is_told else np.full(item.width, np.nan))
        if item.kind == "text" and (strange := unknown_words(item, values.get(item.name, ""))):
            tell(f"{item.name}: {', '.join(strange)} was never seen and is read as unknown")
    return wrap_cyclic(np.concatenate(row).astype(np.float32)[None], conditions)[0]


def wrap_cyclic(
    values: Float[np.ndarray, "n M"], conditions: Sequence[Condition]
) -> Float[np.ndarray, "n M"]:
    """Keep cyclic values below their period: float32 may round 11.99999999 up to 12."""
    column = 0
    for condition in conditions:
        if condition.kind == "cyclic":
            values[values[:, column] >= condition.period, column] = 0
        column += condition.width
    return values


def conditions_to_json(conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    """Write conditions as plain JSON values; a width of 1 goes without saying."""
    rows = []
    for item in conditions:
        facts = asdict(item)
        if item.width == 1:
            del facts["width"]
        rows.append({k: list(v) if isinstance(v, tuple) else v for k, v in facts.items()})
    return rows


def conditions_from_json(value: Any, where: str) -> tuple[Condition, ...]:
    """Read what :func:`conditions_to_json` wrote; ``where`` names the file in errors.

    Raises:
        FormatError: another shape, an unknown kind, a number that makes no sense.
    """
    try:
        conditions = tuple(_condition(item) for item in value)
        if len({item.name for item in conditions}) < len(conditions):
            raise ValueError("two have the same name")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{where}: conditions cannot be read ({error})") from None
    return conditions


_KINDS = ("category", "number", "cyclic", "vector", "text")
_MOST = {"vector": 2**20, "text": MAX_WORDS}  # the other kinds are one number wide


def _condition(item: Mapping[str, Any]) -> Condition:
    texts = (item["name"], item["unit"], *item["categories"])
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a name, unit or category is no text")
    kind, width = item["kind"], item.get("width", 1)
    if kind not in _KINDS:
        raise ValueError(f"kind {kind!r}")
    if type(width) is not int or not 1 <= width <= _MOST.get(kind, 1):
        raise ValueError(f"width {width!r} of a {kind}")
    size = width if kind == "vector" else None
    mean, std = _floats(item["mean"], size), _floats(item["std"], size)
    period = float(item["period"])
    if not ((np.asarray(std) > 0).all() and 0 < period < math.inf):
        raise ValueError(f"std {std}, period {period}")
    return Condition(
        name=item["name"],
        kind=kind,
        categories=tuple(item["categories"]),
        mean=mean,
        std=std,
        period=period,
        unit=item["unit"],
        width=width,
    )


def _floats(value: Any, size: int | None) -> float | tuple[float, ...]:
    """Read a finite number, or for a vector a list of as many as it is wide."""
    found = tuple(float(item) for item in (value if size else [value]))
    if len(found) != (size or 1) or not all(math.isfinite(item) for item in found):
        raise ValueError(f"{value!r} needs to be {size or 1} finite numbers")
    return found if size else found[0]
