"""Sprites of the 2-D shapes: 720 little pictures, and a view of them at every position.

A position moves a sprite by whole pixels, so a picture is a window into its sprite's padded canvas.
All 737,280 pictures are one strided view of 720 canvases (6.5 MB); asking for some copies them.
"""

from functools import cache

import numpy as np
from jaxtyping import Int, UInt8

__all__ = ["FACTORS", "SIDE", "SIZES", "ShapePictures", "factor_values"]

SIDE = 64
"""Height and width of a picture."""
FACTORS = ("shape", "scale", "orientation", "pos_x", "pos_y")
"""What varies, slowest first: the order of the rows."""
SIZES = (3, 6, 40, 32, 32)
"""How many values each factor takes."""

_CANVAS = SIDE + SIZES[3] - 1
_CENTRE = _CANVAS // 2  # so a sprite's middle is in pixel 16 at position 0, in 47 at position 31
_REACH = 16  # no shape is wider than this to either side
# The middle lies off the middle of its pixel: a small square that turns about the latter looks the
# same at many angles.
_OFF = (0.19, -0.37)
# Area of every shape at scale 1, in pixels. With it a share of .0425 of all pixels is on, which is
# the mean that the `disent` package quotes for the original's pictures.
_AREA = 294.0
_HEART_AREA = 3.6617  # of (x^2 + y^2 - 1)^3 <= x^2 y^3


def factor_values() -> tuple[np.ndarray, ...]:
    """Return the values of each factor: 0..2, .5..1, 0..2 pi (both ends), 0..1 and 0..1.

    Example:
        >>> [len(values) for values in factor_values()]
        [3, 6, 40, 32, 32]
    """
    ends = ((0, 2), (0.5, 1), (0, 2 * np.pi), (0, 1), (0, 1))
    return tuple(
        np.linspace(low, high, size) for (low, high), size in zip(ends, SIZES, strict=True)
    )


def _is_inside(shape: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Tell which points lie in a shape of scale 1; y points up."""
    if shape == 0:  # a square
        return np.maximum(np.abs(x), np.abs(y)) <= np.sqrt(_AREA) / 2
    if shape == 1:  # an ellipse, twice as long as wide
        return x * x + (2 * y) ** 2 <= 2 * _AREA / np.pi
    unit = np.sqrt(_AREA / _HEART_AREA)
    x, y = x / unit, y / unit + 0.15  # its middle, not its notch, is the centre
    inner = x * x + y * y - 1
    return inner * inner * inner <= x * x * y * y * y


@cache
def _canvases() -> UInt8[np.ndarray, "3 6 40 R C"]:
    """Draw every sprite once, in the middle of a canvas: a pixel is on if its centre is inside."""
    _, scales, angles, _, _ = factor_values()
    offsets = np.arange(-_REACH, _REACH + 1)
    right, up = (offsets - _OFF[0])[None, :], (_OFF[1] - offsets)[:, None]
    near = slice(_CENTRE - _REACH, _CENTRE + _REACH + 1)
    canvases = np.zeros((*SIZES[:3], _CANVAS, _CANVAS), dtype=np.uint8)
    for j, angle in enumerate(angles % (2 * np.pi)):
        cosine, sine = np.cos(angle), np.sin(angle)
        x, y = cosine * right + sine * up, cosine * up - sine * right
        for shape in range(SIZES[0]):
            scaled = _is_inside(shape, x / scales[:, None, None], y / scales[:, None, None])
            canvases[shape, :, j, near, near] = scaled
    return canvases


class ShapePictures:
    """All 737,280 pictures, drawn when they are asked for.

    Example:
        >>> pictures = ShapePictures()
        >>> pictures.take(np.array([0, 737279])).shape
        (2, 64, 64)
    """

    def __init__(self) -> None:
        windows = np.lib.stride_tricks.sliding_window_view(_canvases(), (SIDE, SIDE), axis=(3, 4))
        # A window that starts further right shows its sprite further left.
        flipped = windows[:, :, :, ::-1, ::-1]
        self._view = flipped.swapaxes(3, 4)  # rows are (..., pos_x, pos_y)
        assert self._view.shape == (*SIZES, SIDE, SIDE)

    def take(self, rows: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B 64 64"]:
        """Return the pictures at these rows, of zeros and ones."""
        return self._view[np.unravel_index(rows, SIZES)]
