"""Conditions: from a column of text to one raw number a sample, and back.

A request such as ``time:cyclic(12h)``, ``label`` or ``age:number`` names a column and, if it
likes, a kind; :func:`fit_conditions` turns requests and columns into
:class:`~qvae.types.Condition` objects and an array ``[n, M]``. An empty cell (and "nan" in a
numeric column) is NaN, "not told".
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from qvae.data.condition_values import (
    condition_row,
    conditions_from_json,
    conditions_to_json,
    did_you_mean,
    format_value,
    is_number,
    number_of,
    parse_value,
    wrap_cyclic,
)
from qvae.errors import DataError, UsageError
from qvae.types import Condition

__all__ = [
    "ConditionRequest",
    "condition_row",
    "conditions_from_json",
    "conditions_to_json",
    "encode_columns",
    "fit_conditions",
    "format_value",
    "parse_requests",
    "parse_value",
]

_KIND = re.compile(r"(category|number|cyclic)(?:\(\s*(\d+(?:\.\d+)?)\s*([^\W\d_]{0,8})\s*\))?")
_MANY = 20  # a column with more distinct numbers than this is a number, not a category


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionRequest:
    """What a user asked for: a column and perhaps its kind."""

    name: str
    kind: Literal["category", "number", "cyclic"] | None = None
    period: float = 1.0
    unit: str = ""


def parse_requests(cond: str | Sequence[str] | None) -> tuple[ConditionRequest, ...]:
    """Read requests from text such as ``"time:cyclic(12h); label"`` or a list of such texts.

    Kinds: ``category``, ``number``, ``cyclic(PERIOD[UNIT])``; without one it is inferred.

    Raises:
        UsageError: an unknown kind, a period that is missing or zero, a column named twice.

    Example:
        >>> parse_requests("time:cyclic(12h)")[0].period
        12.0
    """
    texts = [cond] if isinstance(cond, str) else list(cond or ())
    pieces = [piece.strip() for text in texts for piece in text.split(";")]
    requests = tuple(_parse_request(piece) for piece in pieces if piece)
    names = [request.name for request in requests]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"cond: the column {name!r} is named twice")
    return requests


def _parse_request(text: str) -> ConditionRequest:
    name, colon, kind = (part.strip() for part in text.rpartition(":"))
    if not colon:
        return ConditionRequest(name=text)
    match = _KIND.fullmatch(kind)
    rule = "COLUMN, COLUMN:category, COLUMN:number or COLUMN:cyclic(PERIOD[UNIT])"
    if not match or not name or (match[2] is not None) != (match[1] == "cyclic"):
        raise UsageError(f"cond={text!r}: needs {rule}, for example time:cyclic(12h)")
    period = float(match[2] or 1)
    if period <= 0 or not math.isfinite(period):
        raise UsageError(f"cond={text!r}: the period must be above 0")
    word: Any = match[1]
    return ConditionRequest(name=name, kind=word, period=period, unit=match[3] or "")


def _column(columns: Mapping[str, Sequence[str]], name: str) -> Sequence[str]:
    if name not in columns:
        raise DataError(f"no column {name!r} in the data; {did_you_mean(name, list(columns))}")
    return columns[name]


def fit_conditions(
    columns: Mapping[str, Sequence[str]],
    requests: Sequence[ConditionRequest],
    train_rows: np.ndarray,
    *,
    names: Sequence[str] | None = None,
) -> tuple[tuple[Condition, ...], np.ndarray]:
    """Settle each request on the training rows and encode every row.

    Categories and the mean and deviation of a number come from the training rows alone; a
    category that only other rows have becomes NaN, because nothing can be learned about it.
    Without a kind, a column of more than 20 different numbers is a number, else a category.

    Args:
        columns: text by column name, ``n`` rows each.
        requests: which columns, and their kinds.
        train_rows: indices of the training rows.
        names: what errors call the rows; None counts them.

    Returns:
        The conditions, and float32 ``[n, M]`` in their order.

    Raises:
        DataError: a missing column, a value that its kind refuses, no value in any training row,
            or a column of texts that are nearly all different and no kind.

    Example:
        >>> requests = parse_requests("label")
        >>> fit_conditions({"label": ["b", "a", "b"]}, requests, np.arange(3))[1].ravel()
        array([1., 0., 1.], dtype=float32)
    """
    conditions = []
    for request in requests:
        column = _column(columns, request.name)
        told = {row: text for row in train_rows.tolist() if (text := column[row].strip())}
        if not told:
            raise DataError(f"column {request.name!r}: no training sample has a value")
        conditions.append(_fit(request, told, names))
    encoded = encode_columns(columns, conditions, can_be_new=True, names=names)
    return tuple(conditions), encoded


def _fit(request: ConditionRequest, told: dict[int, str], names: Sequence[str] | None) -> Condition:
    distinct = set(told.values())
    kind = request.kind
    if kind is None:
        numeric = all(is_number(text) or text.lower() == "nan" for text in distinct)
        kind = "number" if numeric and len(distinct) > _MANY else "category"
        if kind == "category" and len(distinct) > max(_MANY, len(told) / 2):
            raise DataError(
                f"column {request.name!r}: {len(distinct)} different values such as "
                f"{min(distinct)!r} are too many to be taken for categories; "
                f"say {request.name}:category, :number or :cyclic(PERIOD[UNIT])"
            )
    blank = Condition(name=request.name, kind=kind, period=request.period, unit=request.unit)
    if kind == "category":
        return replace(blank, categories=tuple(sorted(distinct, key=_natural)))
    if kind == "cyclic":
        return blank
    values = np.array([_cell(blank, text, _place(row, names), False) for row, text in told.items()])
    values = values[~np.isnan(values)]
    if not len(values):
        raise DataError(f"column {request.name!r}: no training sample has a value")
    mean, std = float(values.mean()), float(values.std())
    return replace(blank, mean=mean, std=std if std > 1e-12 * abs(mean) else 1.0)


def _natural(text: str) -> tuple[int, float, str]:
    """Sort numbers by value, before texts."""
    if is_number(text):
        return (0, float(text), text)
    return (1, 0.0, text)


def _place(row: int, names: Sequence[str] | None) -> str:
    return f"row {row + 1}" if names is None else names[row]


def _cell(condition: Condition, text: str, place: str, can_be_new: bool) -> float:
    text = text.strip()
    if not text or (condition.kind != "category" and text.lower() == "nan"):
        return math.nan
    if can_be_new and condition.kind == "category" and text not in condition.categories:
        return math.nan
    try:
        return number_of(condition, text)
    except ValueError as error:
        raise DataError(f"{condition.name}={text!r} in {place}: {error}") from None


def encode_columns(
    columns: Mapping[str, Sequence[str]],
    conditions: Sequence[Condition],
    *,
    can_be_new: bool = False,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Encode columns of text with conditions that are settled, for instance a trained model's.

    Args:
        columns: text by column name, ``n`` rows each.
        conditions: what the numbers mean.
        can_be_new: take an unknown category for "not told" instead of refusing it.
        names: what errors call the rows; None counts them.

    Returns:
        float32 ``[n, M]``.

    Raises:
        DataError: a missing column or a value that breaks the rule of its kind.
    """
    encoded = []
    for condition in conditions:
        column = _column(columns, condition.name)
        numbers: dict[str, float] = {}
        for row, text in enumerate(column):
            if text not in numbers:
                numbers[text] = _cell(condition, text, _place(row, names), can_be_new)
        encoded.append([numbers[text] for text in column])
    return wrap_cyclic(np.array(encoded, dtype=np.float32).T, conditions)
