"""2-D shapes with known factors: the specification of dSprites, drawn or read from its file."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from qvae.data.base import DataModule, Split, checked_indices
from qvae.data.images import read_pixels, write_image
from qvae.data.shapes2d_file import PackedPictures
from qvae.data.shapes2d_renderer import FACTORS, SIDE, SIZES, ShapePictures, factor_values
from qvae.types import Batch, Condition, DataSpec

__all__ = ["SHAPES", "Shapes2D"]

SHAPES = ("square", "ellipse", "heart")
_NUM = int(np.prod(SIZES))
_SPLIT_KEY = 20170104
_NAMES = ("train", "valid", "test")


def _conditions() -> tuple[Condition, ...]:
    values = dict(zip(FACTORS, factor_values(), strict=True))
    numbers = [
        Condition(name=name, kind="number", mean=float(each.mean()), std=float(each.std()))
        for name, each in values.items()
        if name in ("scale", "pos_x", "pos_y")
    ]
    shape = Condition(name="shape", kind="category", categories=SHAPES)
    turn = Condition(name="orientation", kind="cyclic", period=2 * np.pi, unit="rad")
    return (shape, numbers[0], turn, *numbers[1:])


def _raw_numbers() -> list[np.ndarray]:
    """Return what stands for each value of each factor in a condition row."""
    columns = []
    for item, values in zip(_conditions(), factor_values(), strict=True):
        is_number = item.kind == "number"
        raw = (values - item.mean) / item.std if is_number else np.mod(values, 2 * np.pi)
        columns.append(raw.astype(np.float32))
    return columns


_RAW = _raw_numbers()


class Shapes2D(DataModule):
    """737,280 binary 64x64 pictures: every shape at every scale, orientation and position, once.

    Data: dSprites, Matthey et al. 2017: 3 shapes (square, ellipse, heart) x 6 scales in [.5, 1] x
    40 orientations in [0, 2 pi] x 32 x 32 positions, in its order: ``pos_y`` changes fastest, then
    ``pos_x``, orientation, scale, shape. Ours differs: the pictures are drawn here and are not
    those of the original pixel by pixel. As the specification has it, the first and the last
    orientation are a whole turn apart, and so the same picture.

    The five factors are the conditions. The parts are 90/5/5 at random, always the same.

    Args:
        path: the original's ``.npz`` file, to be read in place of drawing; None draws.

    Raises:
        DataError: the file is not what it should be.

    Example:
        >>> data = Shapes2D()
        >>> batch = data.valid().batch(np.arange(2))
        >>> batch.x.shape, batch.cond.shape
        (torch.Size([2, 1, 64, 64]), torch.Size([2, 5]))
    """

    spec = DataSpec(shape=(1, SIDE, SIDE), conditions=_conditions(), levels=2)
    factor_names: tuple[str, ...] = FACTORS
    factor_sizes: tuple[int, ...] = SIZES

    def __init__(self, *, path: str | Path | None = None) -> None:
        self.path = path
        self._pictures: Any = ShapePictures() if path is None else PackedPictures(Path(path), SIZES)

    def __len__(self) -> int:
        return _NUM

    def pictures(self, rows: Int[np.ndarray, " B"]) -> Float[Tensor, "B 1 64 64"]:
        """Return the pictures at rows 0..737279 of the whole."""
        return torch.from_numpy(self._pictures.take(rows))[:, None].float()

    def classes(self, rows: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B 5"]:
        """Return which value of each factor these rows show.

        Example:
            >>> Shapes2D().classes(np.array([737278]))
            array([[ 2,  5, 39, 31, 30]])
        """
        return np.stack(np.unravel_index(rows, SIZES), axis=1)

    def values(self, rows: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B 5"]:
        """Return the factors' values: shape 0..2, scale, orientation in radians, x and y in 0..1.

        Example:
            >>> Shapes2D().values(np.array([737279]))[0, 1:].round(3)
            array([1.   , 6.283, 1.   , 1.   ])
        """
        columns = np.unravel_index(rows, SIZES)
        return np.stack(
            [values[column] for values, column in zip(factor_values(), columns, strict=True)],
            axis=1,
        )

    def train(self) -> Split:
        """Return nine tenths, at random places of the whole."""
        return _Part(self, self._rows["train"])

    def valid(self) -> Split:
        """Return a twentieth."""
        return _Part(self, self._rows["valid"])

    def test(self) -> Split:
        """Return the other twentieth."""
        return _Part(self, self._rows["test"])

    def column(self, name: str, part: str) -> list[str]:
        """Return a factor's class for each sample of a part, as text; shapes by their names.

        Raises:
            DataError: there is no such factor.
        """
        if name not in FACTORS:
            return super().column(name, part)
        found = self.classes(self._rows[part])[:, FACTORS.index(name)].tolist()
        return [SHAPES[value] if name == "shape" else str(value) for value in found]

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        # The raw stream of Philox is the same in every release of NumPy.
        fraction = np.random.Philox(key=_SPLIT_KEY).random_raw(_NUM) / 2.0**64
        part = np.digitize(fraction, [0.90, 0.95])
        return {name: np.flatnonzero(part == index) for index, name in enumerate(_NAMES)}

    def conditions_of(self, rows: Int[np.ndarray, " B"]) -> Float[Tensor, "B 5"]:
        """Return the raw condition numbers of these rows."""
        columns = zip(_RAW, np.unravel_index(rows, SIZES), strict=True)
        return torch.from_numpy(np.stack([raw[column] for raw, column in columns], axis=1))

    def read(self, path: str | Path) -> Float[Tensor, "1 64 64"]:
        """Read a picture, cropped and scaled to 64x64; a pixel is on from half of white.

        Raises:
            DataError: the file is no image that can be read.
        """
        return torch.from_numpy(read_pixels(path, self.spec.shape) >= 128).float()

    def write(self, x: Float[Tensor, "1 64 64"], path: str | Path) -> None:
        """Write a picture as PNG."""
        write_image(x, path)


class _Part(Split):
    """Some rows of the whole."""

    def __init__(self, data: Shapes2D, rows: np.ndarray) -> None:
        self._data, self._rows = data, rows

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: np.ndarray) -> Batch:
        ids = checked_indices(indices, len(self))
        rows = self._rows[ids]
        return Batch(
            x=self._data.pictures(rows),
            cond=self._data.conditions_of(rows),
            ids=torch.from_numpy(ids),
        )
