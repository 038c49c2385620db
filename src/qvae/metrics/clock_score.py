"""Score drawn clocks against the times they were asked for: numpy only.

Pictures are uint8, one a request. A hand that is hardly there could still be read, so a contrast
below the floor counts as wrong wherever a share of right clocks is reported.
"""

import numpy as np

from qvae.metrics.clock_reader import ClockReading, read_clocks

__all__ = [
    "circular_error",
    "hand_colour_error",
    "score_clocks",
    "score_reading",
    "style_variance_ratio",
]

_TURN = 720  # minutes
_GROSS = 20  # minutes
_TEN_TEN = 610  # the time on almost every clock that is for sale
_BLOCK = 4  # pixels a side of the blocks that style variance is taken over


def circular_error(
    read: np.ndarray, asked: np.ndarray | float | int, *, period: float | int
) -> np.ndarray:
    """Shortest way round between two positions on a circle, in ``[0, period / 2]``.

    Example:
        >>> circular_error(np.array([719.0]), np.array([1.0]), period=720).tolist()
        [2.0]
    """
    return np.abs((np.asarray(read) - np.asarray(asked) + period / 2) % period - period / 2)


def score_clocks(
    images: np.ndarray, minutes: np.ndarray, splits: np.ndarray, *, contrast_floor: float = 0.5
) -> dict[str, dict[str, float | int]]:
    """Read the clocks, then score the reading as ``score_reading`` does.

    Args:
        images: ``[N, 64, 64, 3]`` uint8 RGB.
        minutes: ``[N]`` the times asked for, minutes after 12:00 in ``[0, 720)``.
        splits: ``[N]`` name of the split each time belongs to.
        contrast_floor: least hand contrast, in RGB distance, of a clock that counts as right.

    Raises:
        TypeError: ``images`` is not uint8.
        ValueError: shapes that do not fit, a time outside ``[0, 720)``, or no clock at all.
    """
    return score_reading(read_clocks(images), minutes, splits, contrast_floor=contrast_floor)


def score_reading(
    reading: ClockReading, minutes: np.ndarray, splits: np.ndarray, *, contrast_floor: float = 0.5
) -> dict[str, dict[str, float | int]]:
    """Score a reading, one row a split and for "off_block" (all but "block") and "all".

    A row holds, beside the number of clocks ``n``:

    - ``median``, ``p99``: error in minutes around the dial, whatever the contrast.
    - ``within_1``: share within one minute and above the contrast floor;
      ``within_1_no_floor``: share within one minute.
    - ``dial_right``: share with the minute hand within 5 minutes and the hour hand, read by itself,
      within .6 hours of where they belong, above the floor.
    - ``gross``: share more than 20 minutes off.
    - ``hour_slips``: share within 3 minutes of a whole number of hours off, at least one.
    - ``hour_hand_error``: median error of the hour hand's angle, read by itself, in degrees.
    - ``low_contrast``: share below the floor. ``ghost``: median ghost ink.
    - ``share_ten_ten``: share read within 5 minutes of 10:10 (.014 over all 720 times).

    Args:
        reading: of N clocks.
        minutes: ``[N]`` the times asked for, minutes after 12:00 in ``[0, 720)``.
        splits: ``[N]`` name of the split each time belongs to.
        contrast_floor: least hand contrast of a clock that counts as right.

    Raises:
        ValueError: shapes that do not fit, a time outside ``[0, 720)``, or no clock at all.
    """
    minutes, splits = np.asarray(minutes, dtype=np.float64), np.asarray(splits)
    shape = reading.minutes.shape
    if not len(reading.minutes):
        raise ValueError("reading must hold at least one clock, got 0")
    for name, values in {"minutes": minutes, "splits": splits}.items():
        if values.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, one per clock, got {values.shape}")
    wrong = ~((minutes >= 0) & (minutes < _TURN))
    if wrong.any():
        raise ValueError(f"minutes must lie in [0, {_TURN}), got {minutes[wrong][0]}")
    measures = _measure(reading, minutes, contrast_floor)
    rows = {str(name): splits == name for name in np.unique(splits)}
    rows |= {"off_block": splits != "block", "all": np.ones(shape, dtype=bool)}
    return {name: _row(measures, chosen) for name, chosen in rows.items() if chosen.any()}


def _measure(
    reading: ClockReading, minutes: np.ndarray, contrast_floor: float
) -> dict[str, np.ndarray]:
    """Every quantity that a row summarises, one value a clock."""
    error = circular_error(reading.minutes, minutes, period=_TURN)
    minute_hand = circular_error(reading.minute_angle, minutes * 6, period=360) / 6  # minutes
    hour_hand = circular_error(reading.hour_angle, minutes / 2, period=360)  # degrees
    clear = reading.contrast >= contrast_floor
    hours = np.rint(error / 60)
    return {
        "error": error,
        "within_1": (error <= 1) & clear,
        "within_1_no_floor": error <= 1,
        "dial_right": (minute_hand <= 5) & (hour_hand <= 0.6 * 30) & clear,
        "gross": error > _GROSS,
        "hour_slips": (hours >= 1) & (np.abs(error - 60 * hours) <= 3),
        "hour_hand_error": hour_hand,
        "low_contrast": ~clear,
        "ghost": reading.ghost,
        "share_ten_ten": circular_error(reading.minutes, _TEN_TEN, period=_TURN) <= 5,
    }


def _row(measures: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, float | int]:
    row: dict[str, float | int] = {"n": int(chosen.sum())}
    for name, values in measures.items():
        values = values[chosen]
        if name == "error":
            row |= {"median": float(np.median(values)), "p99": float(np.percentile(values, 99))}
        else:
            share = values.dtype == bool
            row[name] = float(values.mean() if share else np.median(values))
    return row


def style_variance_ratio(images: np.ndarray, real_images: np.ndarray) -> float:
    """How varied clocks look, as a share of how varied real ones look; 1 is alike.

    Pictures are averaged over 4x4 blocks, so that noise cannot pass for style. The variance over
    pictures is taken of each block and channel, then averaged; the result is the ratio of the two.
    Both sets should show the same times, or the hands' motion counts as style in one of them.

    Args:
        images: ``[N, 64, 64, 3]`` uint8, N >= 2.
        real_images: ``[M, 64, 64, 3]`` uint8, M >= 2.

    Raises:
        ValueError: fewer than two pictures, unlike shapes, or real pictures that are all the same.

    Example:
        >>> pictures = np.random.RandomState(0).randint(256, size=(3, 64, 64, 3), dtype=np.uint8)
        >>> style_variance_ratio(pictures, pictures)
        1.0
    """
    real = _style_variance(real_images, name="real_images")
    if real == 0:
        raise ValueError("real_images must differ from each other, got copies of one picture")
    return _style_variance(images, name="images") / real


def _style_variance(images: np.ndarray, *, name: str) -> float:
    if images.ndim != 4 or len(images) < 2 or images.shape[1] % _BLOCK or images.shape[2] % _BLOCK:
        raise ValueError(f"{name} must have shape [N >= 2, 64, 64, 3], got {images.shape}")
    num, height, width, channels = images.shape
    blocks = images.reshape(num, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, channels)
    return float(blocks.mean(axis=(2, 4), dtype=np.float32).var(axis=0, dtype=np.float64).mean())


def hand_colour_error(reading: ClockReading, source: ClockReading) -> dict[str, float]:
    """Mean absolute error of the hands' colours, over channels, as a share of full scale.

    Args:
        reading: of N drawn clocks.
        source: of the N clocks whose style they should have.

    Returns:
        ``{"minute", "hour", "mean"}``, each in 0-1.

    Raises:
        ValueError: the two hold different numbers of clocks.
    """
    if reading.minutes.shape != source.minutes.shape:
        raise ValueError(
            f"source must hold as many clocks as reading ({len(reading.minutes)}), "
            f"got {len(source.minutes)}"
        )
    minute = float(np.abs(reading.minute_colour - source.minute_colour).mean())
    hour = float(np.abs(reading.hour_colour - source.hour_colour).mean())
    return {"minute": minute, "hour": hour, "mean": (minute + hour) / 2}
