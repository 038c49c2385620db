import ast
import dataclasses
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qvae.metrics
from qvae.data.clock_renderer import render_clocks, sample_styles
from qvae.metrics.clock_reader import ClockReading, load_clock_image, read_clocks
from qvae.metrics.clock_score import circular_error

TIMES = np.tile(np.arange(720.0), 4)
RNG_SEED = 5


def _bytes(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _blur(pictures, sigma):
    offset = np.arange(-4 * sigma, 4 * sigma + 1)
    kernel = np.exp(-(offset**2) / (2 * sigma**2))
    matrix = np.zeros((64, 64))  # rows: weights of the pixels, the border's repeated outside
    for pixel in range(64):
        np.add.at(matrix[pixel], np.clip(pixel + offset, 0, 63), kernel / kernel.sum())
    matrix = matrix.astype(np.float32)
    down = matrix @ pictures.astype(np.float32).reshape(-1, 64, 64 * 3)
    return _bytes(matrix @ down.reshape(-1, 64, 3)).reshape(pictures.shape)


def _noisy(pictures, sigma):
    noise = np.random.default_rng(RNG_SEED).normal(0, sigma * 255, pictures.shape)
    return _bytes(pictures + noise)


def _error(reading, minutes):
    return circular_error(reading.minutes, minutes, period=720)


def _hour_error(reading, minutes):
    return circular_error(reading.hour_angle, minutes / 2, period=360)


@pytest.fixture(scope="module")
def styles():
    return sample_styles(2880, seed=41)


@pytest.fixture(scope="module")
def clocks(styles):
    return render_clocks(TIMES, styles)


@pytest.fixture(scope="module")
def clean(clocks):
    return read_clocks(clocks)


def test_clean_clocks_are_read_to_a_third_of_a_minute(clean):
    assert _error(clean, TIMES).max() <= 0.3
    assert np.median(_error(clean, TIMES)) <= 0.03
    assert np.median(_hour_error(clean, TIMES)) <= 0.5
    assert _hour_error(clean, TIMES).max() <= 8


def test_clean_clocks_are_found_and_their_colours_read(clean, styles):
    assert np.linalg.norm(clean.centre - styles.centre, axis=1).max() <= 0.3
    assert np.abs(clean.radius - styles.radius).max() <= 1.5
    assert np.abs(clean.face - styles.face).mean() <= 0.01
    assert np.abs(clean.minute_colour - styles.minute_colour).mean() <= 0.04
    assert np.abs(clean.hour_colour - styles.hour_colour).mean() <= 0.05
    assert np.percentile(clean.contrast, 1) > 0.55
    assert np.percentile(clean.ghost, 99) <= 0.05


def test_the_faintest_hour_hands_are_read():
    many = sample_styles(100_000, seed=77)
    contrast = np.linalg.norm(many.hour_colour - many.face, axis=1)
    faint = many.take(np.argsort(contrast)[:360])
    minutes = np.arange(0.0, 720.0, 2.0)
    assert _error(read_clocks(render_clocks(minutes, faint)), minutes).max() <= 0.3


def test_times_between_minutes(styles):
    minutes = np.random.default_rng(RNG_SEED).uniform(0, 720, 400)
    reading = read_clocks(render_clocks(minutes, styles.take(slice(0, 400))))
    assert _error(reading, minutes).max() <= 0.3


def test_blurred_clocks_are_read(clocks):
    chosen = slice(720, 2160)  # every time in two styles
    reading = read_clocks(_blur(clocks[chosen], 2))
    assert _error(reading, TIMES[chosen]).max() <= 0.7


def test_noisy_clocks_are_read(clocks):
    reading = read_clocks(_noisy(clocks[:720], 0.1))
    assert _error(reading, TIMES[:720]).max() <= 0.5
    assert np.median(reading.ghost) <= 0.1
    noisier = read_clocks(_noisy(clocks[:720], 0.2))
    assert np.mean(_error(noisier, TIMES[:720]) <= 1) >= 0.99


def test_reading_does_not_depend_on_the_batch(clocks, clean):
    alone = read_clocks(clocks[100:101])
    for field in dataclasses.fields(ClockReading):
        np.testing.assert_allclose(
            getattr(alone, field.name)[0], getattr(clean, field.name)[100], atol=1e-4
        )


def test_mirrored_clock_reads_mirrored(clocks):
    mirrored = np.ascontiguousarray(clocks[:720:3, :, ::-1])
    assert _error(read_clocks(mirrored), (720 - TIMES[:720:3]) % 720).max() <= 0.3


@pytest.mark.parametrize("level", [0, 128, 255])
def test_uniform_picture_has_no_contrast(level):
    reading = read_clocks(np.full((2, 64, 64, 3), level, dtype=np.uint8))
    assert reading.contrast.max() < 0.01
    for field in dataclasses.fields(ClockReading):
        assert np.isfinite(getattr(reading, field.name)).all(), field.name


def test_noise_is_no_clock():
    noise = np.random.default_rng(RNG_SEED).integers(256, size=(64, 64, 64, 3), dtype=np.uint8)
    reading = read_clocks(noise)
    minutes = np.arange(64) * 11.25
    assert (_error(reading, minutes) <= 1).mean() < 0.1
    assert np.median(reading.contrast) < 0.5
    assert ((reading.minutes >= 0) & (reading.minutes < 720)).all()


def test_faint_hands_fall_below_the_floor(styles):
    styles = styles.take(slice(0, 200))
    faint = {
        f"{hand}_colour": styles.face + 0.05 * (getattr(styles, f"{hand}_colour") - styles.face)
        for hand in ("minute", "hour")
    }
    reading = read_clocks(render_clocks(TIMES[:200], dataclasses.replace(styles, **faint)))
    assert reading.contrast.max() < 0.2


def test_double_exposure_leaves_a_ghost(clocks, styles, clean):
    other = render_clocks((TIMES[:360] + 197) % 720, styles.take(slice(0, 360)))
    both = read_clocks(_bytes(0.7 * clocks[:360] + 0.3 * other))
    assert np.percentile(both.ghost, 5) > 0.2 > 10 * np.percentile(clean.ghost, 95)


def test_snapped_hour_hand_shows_in_its_angle(styles):
    styles = styles.take(slice(0, 720))
    hidden = {"hour_colour": styles.face, "hub_radius": 0 * styles.radius}
    minute_only = render_clocks(TIMES[:720], dataclasses.replace(styles, **hidden))
    # The hour hand of the full hour, under the minute hand of the time itself.
    hidden = {"minute_colour": styles.face, "hub_radius": 0 * styles.radius}
    hour_only = render_clocks(TIMES[:720] // 60 * 60, dataclasses.replace(styles, **hidden))
    paint = np.abs(minute_only / 255 - styles.face[:, None, None]).max(axis=3, keepdims=True)
    snapped = np.where(paint > 0.02, minute_only, hour_only)
    reading = read_clocks(snapped)
    assert np.median(_hour_error(reading, TIMES[:720])) > 8


def test_reader_shares_no_code_with_the_renderer():
    folder = Path(qvae.metrics.__file__).parent
    for path in folder.glob("clock_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [getattr(node, "module", "") or "", *(a.name for a in node.names)]
                assert not any("qvae.data" in name or "torch" in name for name in names), path


def test_reads_500_clocks_a_second(clocks):
    seconds = []
    for _ in range(4):
        start = time.process_time()
        read_clocks(clocks[:128])
        seconds.append(time.process_time() - start)
    assert 128 / min(seconds) > 500


def test_wrong_pictures_are_refused(clocks):
    with pytest.raises(TypeError, match="images must be uint8, got float64"):
        read_clocks(clocks[:1] / 255)
    for shape in [(64, 64, 3), (1, 32, 32, 3), (1, 3, 64, 64), (1, 64, 64, 4)]:
        with pytest.raises(ValueError, match="images must have shape"):
            read_clocks(np.zeros(shape, dtype=np.uint8))


def test_no_pictures_are_an_empty_reading():
    reading = read_clocks(np.zeros((0, 64, 64, 3), dtype=np.uint8))
    assert reading.minutes.shape == (0,) and reading.minute_colour.shape == (0, 3)


def test_load_clock_image(tmp_path, clocks):
    Image.fromarray(clocks[5]).save(tmp_path / "clock.png")
    np.testing.assert_array_equal(load_clock_image(tmp_path / "clock.png"), clocks[5])
    Image.fromarray(clocks[5].repeat(3, axis=0).repeat(3, axis=1)).save(tmp_path / "large.png")
    np.testing.assert_array_equal(load_clock_image(str(tmp_path / "large.png")), clocks[5])
    Image.fromarray(clocks[5]).save(tmp_path / "clock.jpg", quality=95)
    assert abs(read_clocks(load_clock_image(tmp_path / "clock.jpg")[None]).minutes[0] - 5) < 0.5
    Image.fromarray(clocks[5]).convert("RGBA").save(tmp_path / "alpha.png")
    assert load_clock_image(tmp_path / "alpha.png").shape == (64, 64, 3)


def test_unusable_files_are_named(tmp_path, clocks):
    Image.fromarray(clocks[0][:32]).save(tmp_path / "flat.png")
    Image.fromarray(clocks[0][:32, :32]).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "flat.png").read_bytes()[:90])
    whole = (tmp_path / "flat.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[:40] + b"IDAX" + whole[44:])  # a SyntaxError
    rule = "pixels, must be a square of at least 64x64"
    unread = "cannot be read as a picture"
    reasons = {"flat": f"is 64x32 {rule}", "small": f"is 32x32 {rule}", "text": unread}
    for name, reason in {**reasons, "cut": unread, "torn": unread}.items():
        path = tmp_path / f"{name}.png"
        with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {reason}')}$"):
            load_clock_image(path)
    with pytest.raises(FileNotFoundError):
        load_clock_image(tmp_path / "none.png")
