"""One condition's value: from what a user typed to a raw number, and back; and as JSON.

See :class:`~qvae.types.Condition` for what the raw number of each kind means.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from qvae.errors import FormatError, UsageError
from qvae.types import Condition

__all__ = [
    "condition_row",
    "conditions_from_json",
    "conditions_to_json",
    "did_you_mean",
    "format_value",
    "is_number",
    "number_of",
    "parse_value",
    "wrap_cyclic",
]

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?", re.ASCII)
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
    """Read "4:20", "16:20:30", "4.5" or "4.5h" as a number of units modulo the period."""
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


def number_of(condition: Condition, text: str) -> float:
    """Turn a text into a condition's raw number.

    Raises:
        ValueError: the rule that the text breaks, without its name and value.
    """
    text = text.strip()
    if condition.kind == "category":
        if text not in condition.categories:
            raise ValueError(f"is not a category; {did_you_mean(text, condition.categories)}")
        return float(condition.categories.index(text))
    if condition.kind == "cyclic":
        return _cyclic(text, condition.period, condition.unit)
    return (_number(text) - condition.mean) / condition.std


def parse_value(condition: Condition, text: str) -> float:
    """Turn what a user typed for a condition into its raw number.

    Raises:
        UsageError: an unknown category, an impossible time, not a number.

    Example:
        >>> clock = Condition(name="time", kind="cyclic", period=12.0, unit="h")
        >>> round(parse_value(clock, "16:20"), 3)
        4.333
    """
    try:
        return number_of(condition, text)
    except ValueError as error:
        raise UsageError(f"{condition.name}={text!r}: {error}") from None


def format_value(condition: Condition, value: float) -> str:
    """Write a raw number the way a user would type it; NaN ("not told") is an empty text.

    Hours are written as a time, to the second.

    Example:
        >>> format_value(Condition(name="time", kind="cyclic", period=12.0, unit="h"), 4 + 1 / 3)
        '4:20'
    """
    if math.isnan(value):
        return ""
    if condition.kind == "category":
        return condition.categories[round(value)]
    if condition.kind == "number":
        return f"{value * condition.std + condition.mean:.6g}"
    if condition.unit != "h" or condition.period > 24:
        return f"{value:.6g}"
    minutes, seconds = divmod(round(value * 3600) % round(condition.period * 3600), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}" + (f":{seconds:02}" if seconds else "")


def condition_row(conditions: Sequence[Condition], values: Mapping[str, str]) -> np.ndarray:
    """Turn ``{"time": "4:20"}`` into one row ``[M]``; what is not named is NaN, "not told".

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
    row = [
        parse_value(condition, values[condition.name]) if condition.name in values else math.nan
        for condition in conditions
    ]
    return wrap_cyclic(np.array([row], dtype=np.float32), conditions)[0]


def wrap_cyclic(values: np.ndarray, conditions: Sequence[Condition]) -> np.ndarray:
    """Keep cyclic values below their period: float32 may round 11.99999999 up to 12."""
    for column, condition in enumerate(conditions):
        if condition.kind == "cyclic":
            values[values[:, column] >= condition.period, column] = 0
    return values


def conditions_to_json(conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    """Write conditions as plain JSON values."""
    return [{**asdict(item), "categories": list(item.categories)} for item in conditions]


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


def _condition(item: Mapping[str, Any]) -> Condition:
    texts = (item["name"], item["unit"], *item["categories"])
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a name, unit or category is no text")
    if item["kind"] not in ("category", "number", "cyclic"):
        raise ValueError(f"kind {item['kind']!r}")
    mean, std, period = (float(item[name]) for name in ("mean", "std", "period"))
    if not (math.isfinite(mean) and 0 < std < math.inf and 0 < period < math.inf):
        raise ValueError(f"mean {mean}, std {std}, period {period}")
    return Condition(
        name=item["name"],
        kind=item["kind"],
        categories=tuple(item["categories"]),
        mean=mean,
        std=std,
        period=period,
        unit=item["unit"],
    )
