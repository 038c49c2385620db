"""Tell the time from pictures of analog clocks: analytic, no network, numpy only.

The reader knows the layout of the dials, not how they are drawn, and shares no code with the
renderer. ``clock_geometry`` finds the dial, ``clock_hands`` the hands.
"""

import dataclasses
import os

import numpy as np
from PIL import Image

from qvae.metrics.clock_geometry import SIZE, find_dials
from qvae.metrics.clock_hands import find_hands

__all__ = ["ClockReading", "load_clock_image", "read_clocks"]

_CHUNK = 32  # pictures worked on at a time, for the cache's sake


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClockReading:
    """What was read from N pictures; angles in degrees clockwise from 12 o'clock."""

    minutes: np.ndarray
    """``[N]`` after 12:00 in ``[0, 720)``, by the minute hand and the hour that fits best."""
    minute_angle: np.ndarray
    """``[N]`` in ``[0, 360)``."""
    hour_angle: np.ndarray
    """``[N]`` in ``[0, 360)``, whatever the minute hand says."""
    contrast: np.ndarray
    """``[N]`` RGB distance (channels 0-1) of the minute hand from the face, both in .60-.67 R."""
    ghost: np.ndarray
    """``[N]`` ink elsewhere in that ring, as a share of the minute hand's; 0 on a clean clock."""
    minute_colour: np.ndarray
    """``[N, 3]`` RGB in 0-1, like ``hour_colour`` and ``face``."""
    hour_colour: np.ndarray
    face: np.ndarray
    centre: np.ndarray
    """``[N, 2]`` x and y of the dial's centre in pixels."""
    radius: np.ndarray
    """``[N]`` pixels."""


def read_clocks(images: np.ndarray) -> ClockReading:
    """Read the time off pictures of clocks.

    Never fails on a picture without a clock: its reading means nothing, and its contrast is low or
    its ghost large.

    Args:
        images: ``[N, 64, 64, 3]`` uint8 RGB, dials of radius 24-31 within 3 pixels of the middle.

    Raises:
        TypeError: ``images`` is not uint8; a float could tell the time by 1e-8 of ink.
        ValueError: ``images`` is not ``[N, 64, 64, 3]``.

    Example:
        >>> read_clocks(np.zeros((1, 64, 64, 3), dtype=np.uint8)).contrast.tolist()
        [0.0]
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"images must have shape [N, {SIZE}, {SIZE}, 3], got {images.shape}")
    # No pictures at all: a blank one gives the empty fields their shapes.
    some = images if len(images) else np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8)
    parts = [_read_chunk(some[at : at + _CHUNK]) for at in range(0, len(some), _CHUNK)]
    return ClockReading(
        **{name: np.concatenate([p[name] for p in parts])[: len(images)] for name in parts[0]}
    )


def load_clock_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Open a picture file as ``[64, 64, 3]`` uint8; a larger square is averaged down to 64x64.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no picture, not square, or smaller than 64x64.
    """
    picture = _open(path)
    width, height = picture.size
    if width != height or width < SIZE:
        raise ValueError(
            f"{os.fspath(path)}: is {width}x{height} pixels, must be a square of at least "
            f"{SIZE}x{SIZE}"
        )
    return np.array(picture.resize((SIZE, SIZE), Image.Resampling.BOX))


def _open(path: str | os.PathLike[str]) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise
    # Decoders raise these on a damaged file, and not one of them names it.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{os.fspath(path)}: cannot be read as a picture") from error


def _read_chunk(images: np.ndarray) -> dict[str, np.ndarray]:
    pictures = images.astype(np.float32) / 255
    centre, radius = find_dials(pictures)
    return find_hands(pictures, centre, radius) | {"centre": centre, "radius": radius}
