"""What every reader of images returns, whatever the files were, and the array they fill."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from qvae.data.image_files import fit_image, image_to_array, to_channels
from qvae.errors import DataError

__all__ = ["ImageStack", "Samples", "printable", "refit"]


@dataclass(kw_only=True)
class Samples:
    """Images and what is known beside them, one row each."""

    x: np.ndarray
    """``[n, C, H, W]``; uint8 (0..255), bool, or floating in [0, 1]."""
    keys: list[bytes]
    """What decides a sample's part when nothing tells it: path, or index as text."""
    names: list[str] | None = None
    """Printable names of the files."""
    told: list[str] | None = None
    """Each sample's part (train, valid, test) when the data say it."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """Text by column name: what conditions are made from."""
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    """``[n, D]`` numbers by column name: conditions as well."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Files that were left out, each with the reason."""


def printable(name: str | bytes) -> str:
    r"""Return a file name as text that can always be shown and written as UTF-8.

    Example:
        >>> printable(b"caf\xe9.png"), printable("two\nlines.png")
        ('caf\\xe9.png', 'two\\nlines.png')
    """
    data = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    text = data.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class ImageStack:
    """One uint8 array that images are decoded into; the first image settles what is not told.

    Args:
        num: how many images are expected at most.
        size: side of the square that every image is cropped and resized to; None: all images
            must have one size.
        channels: 1 or 3; None: 3 as soon as one image has colour, else 1.
    """

    def __init__(self, num: int, *, size: int | None, channels: int | None) -> None:
        self._num, self._size, self._channels = num, size, channels
        self._array: np.ndarray | None = None
        self._first = ""
        self._filled = 0

    def add(self, image: Image.Image, name: str) -> None:
        """Append a decoded image of mode L or RGB.

        Raises:
            DataError: its size differs from the first one's and no ``size`` was given.
        """
        if self._size is not None:
            image = fit_image(image, self._size, self._size)
        pixels = image_to_array(image)
        if self._channels is not None:
            pixels = to_channels(pixels, self._channels)
        if self._array is None:
            self._first = name
            self._array = np.empty((self._num, *pixels.shape), dtype=np.uint8)
        if pixels.shape[1:] != self._array.shape[2:]:
            (h, w), (h0, w0) = pixels.shape[1:], self._array.shape[2:]
            raise DataError(
                f"{name} is {w}x{h} but {self._first} is {w0}x{h0} pixels: images of different "
                "sizes need --data.size N (they are cropped to a square and resized to N x N)"
            )
        if len(pixels) > self._array.shape[1]:
            self._array = np.repeat(self._array, 3, axis=1)
        self._array[self._filled] = pixels
        self._filled += 1

    def array(self) -> np.ndarray | None:
        """Return what was added, ``[n, C, H, W]``, or None when nothing was."""
        return None if self._array is None else self._array[: self._filled]


def refit(x: np.ndarray, *, size: int | None, channels: int | None, name: str) -> np.ndarray:
    """Bring an array of images to the size and number of channels that were asked for.

    Raises:
        DataError: floating or bool images would have to be resized.
    """
    if size is not None and x.shape[2:] != (size, size):
        if x.dtype != np.uint8:
            raise DataError(
                f"{name}: images are {x.shape[3]}x{x.shape[2]} {x.dtype}, and size={size} "
                "resizes 8-bit images only; save them as uint8"
            )
        out = np.empty((len(x), x.shape[1], size, size), dtype=np.uint8)
        for row, pixels in enumerate(x):
            flat = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
            image = Image.fromarray(np.ascontiguousarray(flat))
            out[row] = image_to_array(fit_image(image, size, size))
        x = out
    if channels is None or channels == x.shape[1]:
        return x
    # In pieces: the weighted sum needs several times the memory of what it reads.
    pieces = [to_channels(x[start : start + 1024], channels) for start in range(0, len(x), 1024)]
    return np.concatenate(pieces)
