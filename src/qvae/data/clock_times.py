"""The 720 times of a twelve-hour clock: which are held out, how they are written and read.

A time is a number of minutes after 12:00 in ``[0, 720)``. Three sets are never seen in training;
each asks a harder question than the one before it:

- ``RANDOM_TIMES`` (100): both hand angles were seen, though never together.
- ``MINUTE_TIMES`` (46): :08, :23, :37 and :52 of every hour; the minute-hand angle is new.
- ``BLOCK_TIMES`` (40): 4:10 to 4:49; the hour-hand angle is new.
"""

import re

import numpy as np

__all__ = [
    "BLOCK_TIMES",
    "MINUTES_PER_TURN",
    "MINUTE_TIMES",
    "RANDOM_TIMES",
    "TRAIN_TIMES",
    "format_time",
    "parse_time",
    "split_of",
]

MINUTES_PER_TURN = 720

_TIME = re.compile(r"(\d{1,2})[:h](\d{2})(?::(\d{2}))?", re.ASCII)


def _frozen(times: np.ndarray) -> np.ndarray:
    times = np.sort(times).astype(np.int64)
    times.setflags(write=False)
    return times


def _draw_random_times(candidates: np.ndarray) -> np.ndarray:
    # RandomState, not Generator: numpy promises that its stream never changes between versions.
    return _frozen(np.random.RandomState(1010).choice(candidates, 100, replace=False))


_ALL = np.arange(MINUTES_PER_TURN)
BLOCK_TIMES = _frozen(np.arange(4 * 60 + 10, 4 * 60 + 50))
MINUTE_TIMES = _frozen(np.setdiff1d(_ALL[np.isin(_ALL % 60, (8, 23, 37, 52))], BLOCK_TIMES))
RANDOM_TIMES = _draw_random_times(np.setdiff1d(_ALL, np.union1d(BLOCK_TIMES, MINUTE_TIMES)))
TRAIN_TIMES = _frozen(np.setdiff1d(_ALL, np.concatenate([BLOCK_TIMES, MINUTE_TIMES, RANDOM_TIMES])))

_SPLITS = np.full(MINUTES_PER_TURN, "train", dtype="<U6")
_SPLITS[RANDOM_TIMES] = "random"
_SPLITS[MINUTE_TIMES] = "minute"
_SPLITS[BLOCK_TIMES] = "block"


def split_of(minutes: np.ndarray) -> np.ndarray:
    """Name the set each time belongs to; 4:20:30 belongs where 4:20 does.

    Args:
        minutes: ``[...]`` minutes after 12:00 in ``[0, 720)``, whole or not.

    Returns:
        ``[...]`` strings, one of "train", "random", "minute" or "block".

    Raises:
        ValueError: a time outside ``[0, 720)``.

    Example:
        >>> split_of(np.array([4 * 60 + 20, 8])).tolist()
        ['block', 'minute']
    """
    minutes = np.asarray(minutes, dtype=np.float64)
    wrong = ~((minutes >= 0) & (minutes < MINUTES_PER_TURN))
    if wrong.any():
        raise ValueError(f"minutes must lie in [0, 720), got {minutes[wrong].flat[0]}")
    return _SPLITS[minutes.astype(np.int64)]


def parse_time(text: str) -> float:
    """Read a time of day as minutes after 12:00.

    Args:
        text: H:MM, H:MM:SS or HhMM with hours 0-23; morning and afternoon look alike on a dial.

    Returns:
        Minutes in ``[0, 720)``.

    Raises:
        ValueError: ``text`` is no time of day.

    Example:
        >>> parse_time("4:20"), parse_time("16:20"), parse_time("4h20"), parse_time("4:20:30")
        (260.0, 260.0, 260.0, 260.5)
    """
    match = _TIME.fullmatch(text.strip())
    hour, minute, second = (int(part or 0) for part in match.groups()) if match else (99, 99, 99)
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError(
            f"time must be H:MM, H:MM:SS or HhMM with hours 0-23, minutes and seconds 0-59, "
            f"got {text!r}"
        )
    return hour % 12 * 60 + minute + second / 60


def format_time(minutes: float | int) -> str:
    """Write minutes after 12:00 as H:MM, or as H:MM:SS where whole seconds are left over.

    Args:
        minutes: any finite number of minutes; it is taken modulo 720 and rounded to a second.

    Raises:
        ValueError: ``minutes`` is not finite.

    Example:
        >>> format_time(260), format_time(5), format_time(260.5)
        ('4:20', '12:05', '4:20:30')
    """
    if not np.isfinite(minutes):
        raise ValueError(f"minutes must be finite, got {minutes}")
    whole, second = divmod(round(float(minutes) * 60) % (MINUTES_PER_TURN * 60), 60)
    hour, minute = divmod(whole, 60)
    return f"{hour or 12}:{minute:02d}" + (f":{second:02d}" if second else "")
