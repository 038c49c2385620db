"""Draw clocks with the model that ships in the package."""

from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from qvae.reports.clocks import draw_times
from qvae.runs.loading import open_run

__all__ = ["CLOCK_RUN", "draw_clocks"]

CLOCK_RUN = Path(str(files("qvae") / "weights" / "clock"))
"""The shipped prior and its tokenizer, a run folder that ``benchmarks/clocks.py`` made."""


def draw_clocks(
    minutes: list[float], *, num: int = 4, seed: int = 0
) -> UInt8[np.ndarray, "T num 64 64 3"]:
    """Draw ``num`` clocks for each time, the model's own pixels.

    Args:
        minutes: times in minutes after twelve, each in [0, 720).
        num: clocks a time, >= 1. Clock i of a time looks the same whatever else is asked for.
        seed: of the styles, >= 0.

    Raises:
        ValueError: a time outside [0, 720), no time at all, or num below 1.

    Example:
        >>> draw_clocks([610.0], num=2).shape
        (1, 2, 64, 64, 3)
    """
    if not minutes or num < 1:
        raise ValueError(f"minutes={minutes}, num={num}: needs at least one time and one clock")
    wrong = [value for value in minutes if not 0 <= value < 720]
    if wrong:
        raise ValueError(f"minutes={wrong[0]}: must lie in [0, 720)")
    run = open_run(CLOCK_RUN)
    rows = [draw_times(run, np.full(num, value), seed=seed) for value in minutes]
    return np.stack(rows)
