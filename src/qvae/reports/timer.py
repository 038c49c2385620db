"""Note how long the stages of a report took."""

import time

__all__ = ["Timer"]


class Timer:
    """Put the wall-clock seconds of a ``with`` block under a name, rounded to tenths.

    Example:
        >>> seconds: dict[str, float] = {}
        >>> with Timer(seconds, "nothing"):
        ...     pass
        >>> seconds
        {'nothing': 0.0}
    """

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._name] = round(time.monotonic() - self._start, 1)
