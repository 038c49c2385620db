"""Conditions: what a user types becomes a number, or one clear sentence."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvae.data.conditions import (
    condition_row,
    conditions_from_json,
    conditions_to_json,
    encode_columns,
    fit_conditions,
    format_value,
    parse_requests,
    parse_value,
    refuse_unseen,
)
from qvae.errors import DataError, FormatError, UsageError
from qvae.types import Condition

CLOCK = Condition(name="time", kind="cyclic", period=12.0, unit="h")


def fit(column: list[str], request: str, train: int | None = None):
    rows = np.arange(len(column) if train is None else train)
    conditions, values = fit_conditions({"c": column}, parse_requests(request), rows)
    return conditions[0], values[:, 0]


def test_requests():
    one = parse_requests("time:cyclic( 12 h ); label ;age:number;")
    assert [(r.name, r.kind, r.period, r.unit) for r in one] == [
        ("time", "cyclic", 12.0, "h"),
        ("label", None, 1.0, ""),
        ("age", "number", 1.0, ""),
    ]
    assert parse_requests(["time:cyclic(12h)", "label;age:number"]) == one
    assert parse_requests("angle:cyclic(360)")[0].period == 360.0
    assert parse_requests("day:cyclic(7d)")[0].unit == "d"
    assert parse_requests(None) == parse_requests("") == parse_requests([]) == ()


@pytest.mark.parametrize(
    "text",
    [
        "time:cyclic",
        "time:cyclic()",
        "time:cyclic(0h)",
        "time:cyclic(-3)",
        "time:cyclic(nan)",
        "time:cyclc(12h)",
        "time:",
        ":number",
        "age:number(3)",
        "label:__import__('os')",
        "a;a:number",
        "time:cyclic(" + "9" * 400 + ")",
    ],
)
def test_requests_that_mean_nothing_are_refused(text: str):
    with pytest.raises(UsageError, match="cond"):
        parse_requests(text)


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("4:20", 4 + 1 / 3),
        ("16:20", 4 + 1 / 3),
        ("04:20:30", 4 + 20.5 / 60),
        ("4h20", 4 + 1 / 3),
        ("0:00", 0),
        ("12:00", 0),
        ("23:59", 11 + 59 / 60),
        ("4.5", 4.5),
        (" 4.5h ", 4.5),
        ("-1", 11),
        ("25", 1),
        ("-1e-20", 0),
    ],
)
def test_times(text: str, hours: float):
    assert parse_value(CLOCK, text) == pytest.approx(hours, abs=1e-12)


@pytest.mark.parametrize(
    "text", ["25:61", "25h10", "24:00", "4:60", "4:20:60", "-4:20", "4:2", "noon", ""]
)
def test_impossible_times_name_value_and_rule(text: str):
    with pytest.raises(UsageError) as caught:
        parse_value(CLOCK, text)
    message = str(caught.value)
    assert message.startswith(f"time={text!r}: ") and "\n" not in message
    assert "hours go from 0 to 23" in message or "a time such as 4:20" in message


@pytest.mark.parametrize("text", ["nan", "inf", "1_000", "0x10", "1e999", "٣", "4:20", "1,5"])
def test_numbers_that_are_none_are_refused(text: str):
    for condition in (
        Condition(name="age", kind="number"),
        Condition(name="angle", kind="cyclic", period=360.0),
    ):
        with pytest.raises(UsageError, match="finite number"):
            parse_value(condition, text)


def test_other_periods():
    assert parse_value(Condition(name="a", kind="cyclic", period=360.0), "-10") == 350
    day = Condition(name="a", kind="cyclic", period=24.0, unit="h")
    assert parse_value(day, "16:20") == pytest.approx(16 + 1 / 3)
    week = Condition(name="a", kind="cyclic", period=7.0, unit="d")
    assert parse_value(week, "8.5d") == 1.5 and parse_value(week, "12:00") == 0.5


def test_categories_suggest_what_was_meant():
    condition = Condition(name="label", kind="category", categories=("cat", "dog"))
    assert parse_value(condition, " dog ") == 1
    with pytest.raises(UsageError, match="label='dgo'.*did you mean 'dog'.*cat, dog"):
        parse_value(condition, "dgo")


def test_a_row_of_conditions():
    age = Condition(name="age", kind="number", mean=40.0, std=10.0)
    row = condition_row([CLOCK, age], {"age": "60"})
    assert row.dtype == np.float32 and math.isnan(row[0]) and row[1] == 2
    with pytest.raises(UsageError, match="tme='4:20'.*did you mean 'time'"):
        condition_row([CLOCK, age], {"tme": "4:20"})
    # 11.999999999 rounds to 12 in float32, which is not below the period.
    assert condition_row([CLOCK], {"time": "11.9999999999"})[0] == 0


@given(st.integers(0, 12 * 3600 - 1))
def test_times_round_trip_to_the_second(second: int):
    text = format_value(CLOCK, float(np.float32(second / 3600)))
    assert round(parse_value(CLOCK, text)[0] * 3600) == second


@given(st.floats(-1e6, 1e6, width=32), st.floats(-100, 100), st.floats(0.01, 100))
def test_numbers_round_trip(value: float, mean: float, std: float):
    condition = Condition(name="a", kind="number", mean=mean, std=std)
    text = format_value(condition, (value - mean) / std)
    assert parse_value(condition, text) * std + mean == pytest.approx(value, rel=1e-4, abs=1e-3)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_cyclic_values_lie_in_the_period(value: float):
    number = condition_row([CLOCK], {"time": repr(min(max(value, -1e29), 1e29))})[0]
    assert 0 <= number < 12


def test_kind_is_inferred():
    assert fit([str(row % 20) for row in range(60)], "c")[0].kind == "category"
    assert fit([str(row % 21) for row in range(60)], "c")[0].kind == "number"
    names, values = fit(["10", "9", "b", "a", "9"], "c")
    assert names.categories == ("9", "10", "a", "b") and values.tolist() == [1, 0, 3, 2, 0]
    with pytest.raises(DataError, match="30 different values.*c:cyclic|c:category"):
        fit([f"4:{row:02}" for row in range(30)], "c")
    assert fit([f"4:{row:02}" for row in range(30)], "c:category")[0].kind == "category"


def test_numbers_are_standardised_by_the_training_rows_only():
    condition, values = fit(["1", "3", "1000"], "c:number", train=2)
    assert (condition.mean, condition.std) == (2, 1) and values.tolist() == [-1, 1, 998]
    condition, values = fit(["7", "7"], "c:number")
    assert condition.std == 1 and values.tolist() == [0, 0]


def test_what_is_not_told_is_nan():
    assert np.isnan(fit(["1", "", "nan"], "c:number")[1]).tolist() == [False, True, True]
    condition, values = fit(["a", "b", ""], "c", train=2)
    assert condition.categories == ("a", "b") and np.isnan(values).tolist() == [False, False, True]
    with pytest.raises(DataError, match="no training sample has a value"):
        fit(["", " ", "a"], "c", train=2)
    with pytest.raises(DataError, match="no training sample has a value"):
        fit(["nan", "NaN"], "c:number")


def test_a_category_without_a_training_sample_is_refused_for_training():
    condition, values = fit(["a", "b", "new"], "c", train=2)  # to look at data, and to score it
    assert condition.categories == ("a", "b") and np.isnan(values).tolist() == [False, False, True]
    columns = {"c": ["a", "b", "new", "", "newer", "new"]}
    with pytest.raises(DataError, match="c='new' in row 3 of x.npz: .* nor of 1 other .*2 v"):
        refuse_unseen(columns, [condition], where="x.npz")
    names = [f"{row}.png" for row in range(6)]
    with pytest.raises(DataError, match="c='new' in 2.png: no training sample has it"):
        refuse_unseen(columns, [condition], names=names)
    refuse_unseen({"c": ["a", "b", ""]}, [condition])
    numbers, _ = fit(["1", "2", "3"], "c", train=2)
    with pytest.raises(DataError, match="c='3' in row 3 of the data: .*, or say c:number"):
        refuse_unseen({"c": ["1", "2", "3"]}, [numbers])


def test_a_bad_cell_is_named_with_its_row_also_outside_training():
    for train in (2, 3):
        with pytest.raises(
            DataError, match="c='25:61' in row 3 of the data: hours go from 0 to 23"
        ):
            fit(["4:20", "4:21", "25:61"], "c:cyclic(12h)", train=train)
    with pytest.raises(DataError, match="c='x' in row 2"):
        fit(["4", "x", "5"], "c:number")


def test_a_missing_column_names_those_there_are():
    columns = {"time": ["1"], "label": ["a"]}
    with pytest.raises(DataError, match="'tiem'.*did you mean 'time'.*time, label"):
        fit_conditions(columns, parse_requests("tiem"), np.arange(1))
    with pytest.raises(DataError, match="there are: none"):
        fit_conditions({}, parse_requests("tiem"), np.arange(1))


def test_settled_conditions_encode_other_data_and_refuse_what_they_do_not_know():
    condition, _ = fit(["a", "b"], "c")
    assert encode_columns({"c": ["b", "", "a"]}, [condition])[:, 0].tolist()[::2] == [1, 0]
    with pytest.raises(DataError, match="c='z' in row 1 of the data: is not a category"):
        encode_columns({"c": ["z"]}, [condition])


def test_conditions_survive_json():
    conditions = (
        CLOCK,
        Condition(name="label", kind="category", categories=("a", "é")),
        Condition(name="age", kind="number", mean=1.5, std=2.5),
    )
    assert conditions_from_json(conditions_to_json(conditions), "f") == conditions


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "pickle"},
        {"std": 0},
        {"period": -1},
        {"mean": float("nan")},
        {"mean": 10**400},
        {"mean": "x"},
        {"categories": 3},
        {"categories": [3]},
        {"name": None},
    ],
)
def test_conditions_from_hostile_json_are_refused(change: dict):
    good = conditions_to_json([CLOCK])[0]
    with pytest.raises(FormatError, match="f: conditions"):
        conditions_from_json([{**good, **change}], "f")
    for value in (None, 3, [3], [good, good], [{}], "text"):
        with pytest.raises(FormatError, match="f: conditions"):
            conditions_from_json(value, "f")
