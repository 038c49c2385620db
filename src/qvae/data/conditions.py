"""Conditions: from a column of the data to raw numbers of each sample, and back.

A request such as ``time:cyclic(12h)``, ``label`` or ``caption:text`` names a column and, if it
likes, a kind; :func:`fit_conditions` turns requests and columns into
:class:`~qvae.types.Condition` objects and an array ``[n, M]``. An empty cell (and "nan" in a
numeric column, or a vector of nothing but NaN) is NaN, "not told".
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

from qvae.data.condition_values import (
    condition_row,
    conditions_from_json,
    conditions_to_json,
    did_you_mean,
    format_value,
    is_number,
    numbers_of,
    parse_value,
    shorten,
    wrap_cyclic,
)
from qvae.data.condition_words import MAX_WORDS, known_words, words_of
from qvae.errors import DataError, UsageError
from qvae.types import Condition

__all__ = [
    "Column",
    "ConditionRequest",
    "condition_row",
    "conditions_from_json",
    "conditions_to_json",
    "encode_columns",
    "fit_conditions",
    "format_value",
    "parse_requests",
    "parse_value",
    "refuse_unseen",
]

Kind = Literal["category", "number", "cyclic", "vector", "text"]
Column = Sequence[str] | Shaped[np.ndarray, "_ _"]
"""A text for each sample, or a vector for each."""
Place = Callable[[int], str]
"""What errors call a row."""
_KIND = re.compile(
    r"(category|number|cyclic|vector|text)(?:\(\s*(\d+(?:\.\d+)?)\s*([^\W\d_]{0,8})\s*\))?"
)
_MANY = 20  # a column with more distinct numbers than this is a number, not a category


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionRequest:
    """What a user asked for: a column and perhaps its kind."""

    name: str
    kind: Kind | None = None
    period: float = 1.0
    unit: str = ""


def parse_requests(cond: str | Sequence[str] | None) -> tuple[ConditionRequest, ...]:
    """Read requests from text such as ``"time:cyclic(12h); label"`` or a list of such texts.

    Kinds: ``category``, ``number``, ``cyclic(PERIOD[UNIT])``, ``vector``, ``text``; without one
    it is inferred.

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
    rule = "COLUMN, or COLUMN:KIND with category, number, cyclic(PERIOD[UNIT]), vector or text"
    if not match or not name or (match[2] is not None) != (match[1] == "cyclic"):
        raise UsageError(f"cond={text!r}: needs {rule}, for example time:cyclic(12h)")
    period = float(match[2] or 1)
    if period <= 0 or not math.isfinite(period):
        raise UsageError(f"cond={text!r}: the period must be above 0")
    word: Any = match[1]
    return ConditionRequest(name=name, kind=word, period=period, unit=match[3] or "")


def _column(columns: Mapping[str, Column], name: str, where: str) -> Column:
    if name not in columns:
        raise DataError(
            f"cond={name!r}: no such column in {where}; {did_you_mean(name, list(columns))}"
        )
    return columns[name]


def fit_conditions(
    columns: Mapping[str, Column],
    requests: Sequence[ConditionRequest],
    train_rows: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    where: str = "the data",
) -> tuple[tuple[Condition, ...], Float[np.ndarray, "n M"]]:
    """Settle each request on the training rows and encode every row.

    Categories, words, and the mean and deviation of numbers come from the training rows alone. A
    category that only other rows have becomes NaN (:func:`refuse_unseen` is for training), and such
    a word is an unknown one. How many words there is room for follows from all rows. Without a
    kind, a column of vectors is a vector, one of more than 20 different numbers a number, and any
    other a category.

    Args:
        columns: by their names, ``n`` rows each.
        requests: which columns, and their kinds.
        train_rows: indices of the training rows.
        names: what errors call the rows; None counts them.
        where: what errors call the data.

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
    place = _placer(names, where)
    conditions = [
        _fit(request, _column(columns, request.name, where), train_rows, place)
        for request in requests
    ]
    encoded = encode_columns(columns, conditions, can_be_new=True, names=names, where=where)
    return tuple(conditions), encoded


def refuse_unseen(
    columns: Mapping[str, Column],
    conditions: Sequence[Condition],
    *,
    names: Sequence[str] | None = None,
    where: str = "the data",
) -> None:
    """Refuse a category that only samples outside training have: nothing is learned about it.

    Args:
        columns: by their names, ``n`` rows each.
        conditions: settled on the training rows.
        names: what errors call the rows; None counts them.
        where: what errors call the data.

    Raises:
        DataError: the first such sample, and how many categories there are of the kind.
    """
    place = _placer(names, where)
    for condition in conditions:
        if condition.kind != "category":
            continue
        known = set(condition.categories)
        texts = [str(value).strip() for value in _column(columns, condition.name, where)]
        unseen = dict.fromkeys(text for text in texts if text and text not in known)
        if not unseen:
            continue
        first = next(iter(unseen))
        more = f", nor of {len(unseen) - 1} other such values" if len(unseen) > 1 else ""
        number = ""
        if all(is_number(text) for text in known):
            number = f", or say {condition.name}:number"
        raise DataError(
            f"{condition.name}={shorten(first)!r} in {place(texts.index(first))}: no training "
            f"sample has it{more} ({len(known)} values are known), so nothing can be learned about "
            "it; put such samples into train, by a column split or folders train, valid and test, "
            f"or leave them out{number}"
        )


def _fit(
    request: ConditionRequest,
    column: Column,
    train_rows: np.ndarray,
    place: Place,
) -> Condition:
    told = {row: column[row] for row in train_rows.tolist() if _is_told(column[row])}
    kind = request.kind or _guess_kind(request.name, list(told.values()))
    if isinstance(column, np.ndarray) and kind != "vector":
        raise DataError(
            f"column {request.name!r}: {column.shape[1]} numbers a sample are a vector, no {kind}"
        )
    told = {row: value for row, value in told.items() if _is_told(value, kind)}
    if not told:
        raise DataError(f"column {request.name!r}: no training sample has a value")
    blank = Condition(name=request.name, kind=kind, period=request.period, unit=request.unit)
    if kind == "cyclic":
        return blank
    if kind == "category":
        distinct = {str(value).strip() for value in told.values()}
        return replace(blank, categories=tuple(sorted(distinct, key=_natural)))
    if kind == "text":
        words = known_words(str(value) for value in told.values())
        return replace(blank, categories=words, width=_room(request.name, column, place))
    return _fit_numbers(blank, told, place)


def _guess_kind(name: str, told: Sequence[str | np.ndarray]) -> Kind:
    if told and isinstance(told[0], np.ndarray):
        return "vector"
    distinct = {str(value).strip() for value in told}
    if len(distinct) <= _MANY:
        return "category"
    if all(is_number(text) or text.lower() == "nan" for text in distinct):
        return "number"
    if len(distinct) > len(told) / 2:
        raise DataError(
            f"column {name!r}: {len(distinct)} different values such as {min(distinct)!r} are too "
            f"many to be taken for categories; say {name}:category, :number, :cyclic(PERIOD[UNIT])"
            ", :vector or :text"
        )
    return "category"


def _fit_numbers(blank: Condition, told: Mapping[int, str | np.ndarray], place: Place) -> Condition:
    """Standardise each number of a vector, or the one there is, by the training rows."""
    first = next(iter(told.values()))
    if blank.kind == "vector":
        blank = replace(blank, width=len(first.split() if isinstance(first, str) else first))
    rows = np.stack([_cell(blank, value, place(row), False) for row, value in told.items()])
    means = tuple(float(column.mean()) for column in rows.T)
    widths = (float(column.std()) for column in rows.T)
    stds = tuple(
        std if std > 1e-12 * abs(mean) else 1.0 for mean, std in zip(means, widths, strict=True)
    )
    if blank.kind == "number":
        return replace(blank, mean=means[0], std=stds[0])
    return replace(blank, mean=means, std=stds)


def _room(name: str, column: Column, place: Place) -> int:
    """Return how many words the longest text of all rows has."""
    counts = [len(words_of(str(text))) for text in column]
    row = int(np.argmax(counts))
    if counts[row] > MAX_WORDS:
        raise DataError(
            f"{name}={shorten(str(column[row]))!r} in {place(row)}: has {counts[row]} "
            f"words, a sentence has up to {MAX_WORDS}"
        )
    return counts[row]


def _natural(text: str) -> tuple[int, float, str]:
    """Sort numbers by value, before texts."""
    if is_number(text):
        return (0, float(text), text)
    return (1, 0.0, text)


def _placer(names: Sequence[str] | None, where: str) -> Place:
    return lambda row: f"row {row + 1} of {where}" if names is None else names[row]


def _is_told(value: str | np.ndarray, kind: Kind | None = None) -> bool:
    if isinstance(value, np.ndarray):
        return not np.isnan(value).all()
    if kind == "text":
        return bool(words_of(value))
    text = value.strip().lower()
    return bool(text) and (kind in (None, "category") or text != "nan")


def _cell(
    condition: Condition, value: str | np.ndarray, place: str, can_be_new: bool
) -> Float[np.ndarray, " W"]:
    untold = np.full(condition.width, math.nan)
    if not _is_told(value, condition.kind):
        return untold
    is_name = condition.kind == "category" and isinstance(value, str)
    if can_be_new and is_name and str(value).strip() not in condition.categories:
        return untold
    try:
        return numbers_of(condition, value)
    except ValueError as error:
        text = value.strip() if isinstance(value, str) else " ".join(f"{item:g}" for item in value)
        raise DataError(f"{condition.name}={shorten(text)!r} in {place}: {error}") from None


def encode_columns(
    columns: Mapping[str, Column],
    conditions: Sequence[Condition],
    *,
    can_be_new: bool = False,
    names: Sequence[str] | None = None,
    where: str = "the data",
) -> Float[np.ndarray, "n M"]:
    """Encode columns with conditions that are settled, for instance a trained model's.

    Args:
        columns: by their names, ``n`` rows each.
        conditions: what the numbers mean.
        can_be_new: take an unknown category for "not told" instead of refusing it.
        names: what errors call the rows; None counts them.
        where: what errors call the data.

    Returns:
        float32 ``[n, M]``.

    Raises:
        DataError: a missing column or a value that breaks the rule of its kind.
    """
    place = _placer(names, where)
    blocks = [
        _encode(_column(columns, condition.name, where), condition, place, can_be_new)
        for condition in conditions
    ]
    if not blocks:
        return np.empty((0, 0), np.float32)
    return wrap_cyclic(np.concatenate(blocks, axis=1), conditions)


def _encode(
    column: Column, condition: Condition, place: Place, can_be_new: bool
) -> Float[np.ndarray, "n W"]:
    rows = np.empty((len(column), condition.width), np.float32)
    known: dict[str, np.ndarray] = {}
    for row, value in enumerate(column):
        found = known.get(value) if isinstance(value, str) else None
        if found is None:
            found = _cell(condition, value, place(row), can_be_new)
            if isinstance(value, str):
                known[value] = found
        rows[row] = found
    return rows
