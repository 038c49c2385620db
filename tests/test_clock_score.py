import dataclasses

import numpy as np
import pytest

from qvae.data.clock_renderer import render_clocks, sample_styles
from qvae.data.clock_times import split_of
from qvae.metrics.clock_reader import ClockReading, read_clocks
from qvae.metrics.clock_score import (
    circular_error,
    hand_colour_error,
    score_clocks,
    score_reading,
    style_variance_ratio,
)

TIMES = np.arange(0.0, 720.0, 5)
SPLITS = split_of(TIMES)


@pytest.fixture(scope="module")
def styles():
    return sample_styles(len(TIMES), seed=23)


@pytest.fixture(scope="module")
def clocks(styles):
    return render_clocks(TIMES, styles)


def _reading(minutes, *, contrast=1.0):
    minutes = np.asarray(minutes, dtype=np.float64)
    num = len(minutes)
    return ClockReading(
        minutes=minutes,
        minute_angle=minutes * 6 % 360,
        hour_angle=minutes / 2,
        contrast=np.full(num, contrast),
        ghost=np.zeros(num),
        minute_colour=np.zeros((num, 3)),
        hour_colour=np.zeros((num, 3)),
        face=np.ones((num, 3)),
        centre=np.full((num, 2), 31.5),
        radius=np.full(num, 28.0),
    )


def test_circular_error_goes_the_short_way_round():
    assert circular_error(
        np.array([0.5, 10, 400]), np.array([719.5, 4, 0]), period=720
    ).tolist() == [
        1,
        6,
        320,
    ]


def test_right_clocks_score_full_marks(clocks):
    rows = score_clocks(clocks, TIMES, SPLITS)
    for name, row in rows.items():
        right = ("within_1", "within_1_no_floor", "dial_right")
        assert [row[key] for key in right] == [1, 1, 1], name
        assert [row[key] for key in ("gross", "hour_slips", "low_contrast")] == [0, 0, 0]
        assert row["median"] < 0.05 and row["p99"] < 0.3 and row["hour_hand_error"] < 1
    assert rows["all"]["n"] == len(TIMES)
    assert rows["off_block"]["n"] + rows["block"]["n"] == len(TIMES)
    parts = [row["n"] for name, row in rows.items() if name not in ("all", "off_block")]
    assert sum(parts) == len(TIMES)


def test_clocks_an_hour_late_are_hour_slips(styles):
    late = render_clocks((TIMES + 60) % 720, styles)
    row = score_clocks(late, TIMES, SPLITS)["all"]
    assert (row["hour_slips"], row["within_1"], row["dial_right"], row["gross"]) == (1, 0, 0, 1)
    assert row["median"] == pytest.approx(60, abs=0.1)
    assert row["hour_hand_error"] == pytest.approx(30, abs=1)


def test_row_by_hand():
    asked = np.array([0, 100, 250, 300, 610])
    read = [719.5, 102, 370, 325, 610]  # .5 off, 2 off, two hours, 25 off, right
    splits = np.array(["train", "random", "block", "train", "train"])
    rows = score_reading(_reading(read), asked, splits)
    assert rows["all"] == pytest.approx(
        {
            "n": 5,
            "median": 2,
            "p99": np.percentile([0.5, 2, 120, 25, 0], 99),
            "within_1": 2 / 5,
            "within_1_no_floor": 2 / 5,
            "dial_right": 3 / 5,
            "gross": 2 / 5,
            "hour_slips": 1 / 5,
            "hour_hand_error": 1,
            "low_contrast": 0,
            "ghost": 0,
            "share_ten_ten": 1 / 5,
        }
    )
    assert rows["off_block"]["n"] == 4 and rows["off_block"]["hour_slips"] == 0
    assert rows["block"]["hour_slips"] == 1
    assert set(rows) == {"train", "random", "block", "off_block", "all"}


def test_dial_is_right_only_if_both_hands_are():
    reading = _reading([100.0, 100.0, 100.0])
    minute_angle = reading.minute_angle + np.array([31, 0, 29])
    hour_angle = reading.hour_angle + np.array([0, 19, 17])
    reading = dataclasses.replace(reading, minute_angle=minute_angle, hour_angle=hour_angle)
    row = score_reading(reading, np.full(3, 100.0), np.full(3, "train"))["all"]
    assert row["dial_right"] == pytest.approx(1 / 3)


def test_contrast_floor_counts_pale_hands_as_wrong():
    minutes = np.array([5.0, 6.0])
    row = score_reading(_reading(minutes, contrast=0.4), minutes, np.full(2, "train"))["all"]
    assert (row["within_1"], row["within_1_no_floor"], row["dial_right"]) == (0, 1, 0)
    assert row["low_contrast"] == 1
    lower = score_reading(
        _reading(minutes, contrast=0.4), minutes, np.full(2, "train"), contrast_floor=0.3
    )
    assert lower["all"]["within_1"] == 1


def test_uniform_pictures_fail():
    blank = np.full((len(TIMES), 64, 64, 3), 127, dtype=np.uint8)
    row = score_clocks(blank, TIMES, SPLITS)["all"]
    assert row["within_1"] == 0 and row["low_contrast"] == 1 and row["gross"] > 0.8


def test_ten_past_ten_everywhere_shows(styles):
    images = render_clocks(np.full(len(TIMES), 610.0), styles)
    assert score_clocks(images, TIMES, SPLITS)["all"]["share_ten_ten"] == 1
    assert score_reading(_reading(np.arange(720)), np.arange(720), np.full(720, "train"))["all"][
        "share_ten_ten"
    ] == pytest.approx(11 / 720)


def test_one_style_only_has_less_variance(clocks, styles):
    same = render_clocks(TIMES, styles.take(np.zeros(len(TIMES), dtype=int)))
    assert style_variance_ratio(clocks, clocks) == 1
    assert style_variance_ratio(same, clocks) < 0.15
    fresh = render_clocks(TIMES, sample_styles(len(TIMES), seed=99))
    assert style_variance_ratio(fresh, clocks) == pytest.approx(1, abs=0.1)


def test_halving_the_range_quarters_the_variance_and_noise_is_no_style(clocks):
    assert style_variance_ratio(clocks // 2, clocks) == pytest.approx(0.25, abs=0.01)
    noise = np.random.default_rng(0).integers(256, size=clocks.shape, dtype=np.uint8)
    assert style_variance_ratio(noise, clocks) < 0.1


def test_hand_colour_error(clocks, styles):
    reading = read_clocks(clocks)
    assert hand_colour_error(reading, reading) == {"minute": 0, "hour": 0, "mean": 0}
    moved = dataclasses.replace(reading, minute_colour=reading.minute_colour + 0.2)
    assert hand_colour_error(moved, reading) == pytest.approx(
        {"minute": 0.2, "hour": 0, "mean": 0.1}
    )
    grey = dataclasses.replace(styles, minute_colour=0 * styles.face, hour_colour=0 * styles.face)
    error = hand_colour_error(read_clocks(render_clocks(TIMES, grey)), reading)
    assert error["minute"] > 0.25 and error["hour"] > 0.25


def test_shapes_and_ranges_are_checked(clocks):
    with pytest.raises(ValueError, match="minutes must have shape"):
        score_clocks(clocks, TIMES[:3], SPLITS)
    with pytest.raises(ValueError, match="splits must have shape"):
        score_clocks(clocks, TIMES, SPLITS[:3])
    with pytest.raises(ValueError, match=r"minutes must lie in \[0, 720\)"):
        score_clocks(clocks, TIMES + 10, SPLITS)
    with pytest.raises(ValueError, match="at least one clock"):
        score_clocks(clocks[:0], TIMES[:0], SPLITS[:0])
    with pytest.raises(ValueError, match="images must have shape"):
        style_variance_ratio(clocks[:1], clocks)
    with pytest.raises(ValueError, match="real_images must differ"):
        style_variance_ratio(clocks, np.zeros_like(clocks))
    with pytest.raises(ValueError, match="source must hold as many"):
        hand_colour_error(read_clocks(clocks[:2]), read_clocks(clocks[:3]))
