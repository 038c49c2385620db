import dataclasses
import time

import numpy as np
import pytest

from qvae.data.clock_renderer import _numeral_bitmaps, render_clocks, sample_styles
from qvae.data.clock_times import (
    BLOCK_TIMES,
    MINUTE_TIMES,
    RANDOM_TIMES,
    TRAIN_TIMES,
    format_time,
    parse_time,
    split_of,
)


@pytest.fixture(scope="module")
def styles():
    return sample_styles(720, seed=11)


def test_style_depends_on_seed_and_number_only(styles):
    later = sample_styles(100, seed=11, start=600)
    other = sample_styles(720, seed=12)
    for field in dataclasses.fields(styles):
        whole, part = getattr(styles, field.name), getattr(later, field.name)
        np.testing.assert_array_equal(whole[600:700], part, err_msg=field.name)
        assert (whole != getattr(other, field.name)).any(), field.name


def test_styles_of_neighbouring_seeds_are_not_shifted_copies():
    radii = [set(sample_styles(200, seed=seed).radius.tolist()) for seed in range(5)]
    assert all(not a & b for i, a in enumerate(radii) for b in radii[:i])


def test_picture_depends_on_its_own_time_and_style_only(styles):
    minutes = np.linspace(0, 719.9, 50)
    whole = render_clocks(minutes, styles.take(slice(0, 50)))
    alone = [render_clocks(minutes[i : i + 1], styles.take([i]))[0] for i in range(50)]
    odd = [3, 49, 20, 21, 22]
    np.testing.assert_array_equal(whole, alone)
    np.testing.assert_array_equal(whole[odd], render_clocks(minutes[odd], styles.take(odd)))


def test_styles_cover_their_ranges(styles):
    radius = styles.radius
    for values, low, high in [
        (radius, 25, 30),
        (styles.hour_length / radius, 0.34, 0.46),
        (styles.minute_length / radius, 0.66, 0.76),
        (styles.centre - 31.5, -2, 2),
    ]:
        assert low - 1e-5 <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high + 1e-5
    assert set(styles.tick_count.tolist()) == {0, 4, 12, 60}
    assert set(styles.numeral_count.tolist()) == {0, 4, 12}
    assert 0.5 < (styles.face.mean(axis=1) > 0.5).mean() < 0.8  # light and dark faces
    for hand in (styles.hour_colour, styles.minute_colour):
        assert (np.ptp(hand, axis=1) > 0.4).mean() > 0.5  # most hands are coloured


def _ink(pictures, styles, degrees, low, high):
    """RGB distance, along the hand between two radii, from the ring's median colour."""
    radii = np.linspace(low, high, 3) * styles.radius[:, None]
    along = np.radians(degrees)[:, None]

    def nearest(angle):
        x = np.rint(styles.centre[:, :1] + radii * np.sin(angle)).astype(int)
        y = np.rint(styles.centre[:, 1:] - radii * np.cos(angle)).astype(int)
        return pictures[np.arange(len(pictures))[:, None], y, x] / 255

    ring = np.concatenate([nearest(np.radians(a) + 0 * along) for a in range(0, 360, 5)], axis=1)
    return np.linalg.norm(nearest(along).mean(axis=1) - np.median(ring, axis=1), axis=1)


def test_hands_stand_off_the_face(styles):
    minutes = np.arange(720.0)
    pictures = render_clocks(minutes, styles)
    minute = _ink(pictures, styles, minutes * 6, 0.61, 0.64)
    hour = _ink(pictures, styles, minutes / 2, 0.22, 0.30)
    assert np.percentile(minute, 1) > 0.55
    assert np.percentile(hour, 1) > 0.55


def test_hour_hand_moves_continuously():
    plain = sample_styles(200, seed=3)
    bare = plain.take(np.flatnonzero((plain.tick_count == 0) & (plain.numeral_count == 0))[:1])

    gone = ("minute_length", "minute_width", "minute_tail", "hour_tail", "hub_radius")
    alone = dataclasses.replace(bare, **dict.fromkeys(gone, 0 * bare.radius))

    def hour_hand(minutes):  # its angle, from the centroid of its ink
        picture = render_clocks(np.array([minutes]), alone)[0] / 255
        ink = np.linalg.norm(picture - bare.face[0], axis=2)
        y, x = np.mgrid[:64, :64] - bare.centre[0, ::-1, None, None]
        ink[np.hypot(x, y) > 0.6 * bare.radius[0]] = 0
        return np.degrees(np.arctan2((ink * x).sum(), -(ink * y).sum())) % 360

    for minutes in (185.0, 200.0, 215.0, 230.0):
        assert hour_hand(minutes) == pytest.approx(minutes / 2, abs=1.5)


def test_ticks_and_numerals_are_drawn_only_where_asked(styles):
    minutes = np.full(720, 222.0)
    for field in ("tick", "numeral"):
        count = getattr(styles, f"{field}_count")
        recoloured = dataclasses.replace(styles, **{f"{field}_colour": styles.face})
        changed = (render_clocks(minutes, styles) != render_clocks(minutes, recoloured)).any(
            axis=(1, 2, 3)
        )
        np.testing.assert_array_equal(changed, count > 0)


def test_numerals_and_ticks_leave_the_reading_rings_clear(styles):
    minutes = np.full(720, 222.0)
    bare = dataclasses.replace(styles, tick_count=styles.tick_count * 0, numeral_count=0 * minutes)
    changed = (render_clocks(minutes, styles) != render_clocks(minutes, bare)).any(axis=3)
    y, x = np.mgrid[:64, :64]
    radius = np.hypot(x - styles.centre[:, 0, None, None], y - styles.centre[:, 1, None, None])
    assert not changed[radius < 0.67 * styles.radius[:, None, None] - 0.5].any()


def test_every_numeral_is_a_different_bitmap():
    bitmaps, widths = _numeral_bitmaps()
    assert len({bitmap.tobytes() for bitmap in bitmaps}) == 12
    assert bitmaps.sum(axis=(1, 2)).min() > 5
    assert widths.tolist() == [6, 2, 3, 3, 3, 3, 3, 3, 3, 3, 6, 5]


def test_renders_1500_clocks_a_second():
    styles, minutes = sample_styles(256, seed=0), np.arange(256.0)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        render_clocks(minutes, styles)
        seconds.append(time.process_time() - start)
    assert 256 / min(seconds) > 1500


@pytest.mark.parametrize("minutes", [[1.0, 2.0], [[1.0]], [720.0], [-0.5], [np.nan]])
def test_bad_minutes_are_refused(minutes):
    with pytest.raises(ValueError, match="minutes must"):
        render_clocks(np.array(minutes), sample_styles(1, seed=0))


def test_bad_styles_are_refused():
    with pytest.raises(ValueError, match="num must be at least 0, got -1"):
        sample_styles(-1, seed=0)
    style = sample_styles(2, seed=0)
    with pytest.raises(ValueError, match="face must have one entry per clock"):
        dataclasses.replace(style, face=style.face[:1])


def test_no_clocks_are_no_pictures():
    assert render_clocks(np.zeros(0), sample_styles(0, seed=0)).shape == (0, 64, 64, 3)


def test_held_out_sets_part_the_720_times():
    sets = {"train": TRAIN_TIMES, "random": RANDOM_TIMES, "minute": MINUTE_TIMES}
    sets["block"] = BLOCK_TIMES
    assert {name: len(times) for name, times in sets.items()} == {
        "train": 534,
        "random": 100,
        "minute": 46,
        "block": 40,
    }
    assert sorted(np.concatenate(list(sets.values())).tolist()) == list(range(720))
    assert (BLOCK_TIMES[0], BLOCK_TIMES[-1]) == (250, 289)
    assert set((MINUTE_TIMES % 60).tolist()) == {8, 23, 37, 52}
    for name, times in sets.items():
        assert set(split_of(times).tolist()) == {name}
        with pytest.raises(ValueError, match="read-only"):
            times[0] = 1


def test_random_times_are_the_committed_ones():
    assert RANDOM_TIMES[:5].tolist() == [3, 16, 17, 47, 49]
    assert int((RANDOM_TIMES * np.arange(1, 101)).sum()) == 2462203


def test_split_of_goes_by_the_whole_minute():
    assert split_of(np.array([289.99, 290.0, 8.5])).tolist() != ["train"] * 3
    assert split_of(np.array([249.99, 250.0, 289.99])).tolist()[1:] == ["block", "block"]
    with pytest.raises(ValueError, match=r"minutes must lie in \[0, 720\), got 720"):
        split_of(np.array([720]))


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("4:20", 260), ("16:20", 260), ("4h20", 260), ("04:20:30", 260.5), ("0:00", 0), ("12:05", 5)],
)
def test_parse_time(text, minutes):
    assert parse_time(text) == minutes
    assert parse_time(format_time(minutes)) == minutes


@pytest.mark.parametrize(
    "text", ["25:61", "abc", "", "4", "4:5", "24:00", "4:60", "-4:20", "4:20:60", "4:20pm", "٤:٢٠"]
)
def test_impossible_time_is_one_clear_sentence(text):
    with pytest.raises(ValueError, match="^time must be H:MM.*got") as error:
        parse_time(text)
    assert repr(text) in str(error.value) and "\n" not in str(error.value)


def test_format_time_rounds_to_a_second_around_the_dial():
    assert format_time(719.9999) == "12:00"
    assert format_time(59.5) == "12:59:30"
    with pytest.raises(ValueError, match="minutes must be finite"):
        format_time(float("nan"))
