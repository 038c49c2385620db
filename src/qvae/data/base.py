"""What every source of data is: three splits of samples, and a way to and from a file.

A :class:`Split` is random access and deterministic: ``batch(indices)`` is a function of the
indices alone, so the training loop can make its order a function of (seed, step).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from qvae.errors import DataError
from qvae.types import Batch, DataSpec

__all__ = ["ArraySplit", "DataModule", "Split", "checked_indices"]


def checked_indices(indices: Any, num: int) -> np.ndarray:
    """Return indices as int64 after checking that each is a whole number in ``0..num-1``.

    Raises:
        ValueError: an index is negative, too large or not a whole number.

    Example:
        >>> checked_indices([2, 0], 3)
        array([2, 0])
    """
    array = np.asarray(indices)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"indices: got {array.dtype} of shape {array.shape}, needs a flat list of integers"
        )
    wrong = (array < 0) | (array >= num)
    if wrong.any():
        raise ValueError(f"indices: {array[wrong][0]} is not in 0..{num - 1}")
    return array.astype(np.int64)


class Split(ABC):
    """Samples that can be asked for by position, in any order, always with the same answer."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the samples."""

    @abstractmethod
    def batch(self, indices: np.ndarray) -> Batch:
        """Return the samples at ``indices`` ``[B]``, with those indices as ``ids``."""

    @property
    def names(self) -> list[str] | None:
        """Printable file names of the samples, or None when they have none."""
        return None


class ArraySplit(Split):
    """A split over an array in memory or in a memory-mapped file.

    Shapes:
        ``x`` ``[n, C, *S]`` channels first; ``cond`` ``[n, M]``; ``rows`` ``[m]`` positions in
        ``x``, ``cond`` and ``names`` that make up this split (default: all of them, in order).

    Units:
        uint8 values ``k`` become ``k / 255``; bool and floating values are taken as they are.

    Args:
        x: uint8, bool or floating.
        cond: one raw number per condition, NaN = not told.
        names: one name per row of ``x``.
        rows: which rows, so that the splits of a data set share one array.

    Raises:
        ValueError: another dtype, or lengths that differ.

    Example:
        >>> split = ArraySplit(np.full((4, 1, 2, 2), 51, dtype=np.uint8), rows=np.array([3, 1]))
        >>> len(split), round(float(split.batch(np.array([0])).x.max()), 3)
        (2, 0.2)
    """

    def __init__(
        self,
        x: np.ndarray,
        *,
        cond: np.ndarray | None = None,
        names: Sequence[str] | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        if x.dtype != np.uint8 and x.dtype.kind not in "bf":
            raise ValueError(f"x: dtype {x.dtype} is not uint8, bool or floating")
        if cond is not None and (cond.ndim != 2 or len(cond) != len(x)):
            raise ValueError(f"cond: shape {cond.shape} does not go with {len(x)} samples")
        if names is not None and len(names) != len(x):
            raise ValueError(f"names: {len(names)} names do not go with {len(x)} samples")
        self._x = x
        self._cond = None if cond is None else cond.astype(np.float32, copy=False)
        self._names = names
        self._rows = np.arange(len(x)) if rows is None else checked_indices(rows, len(x))

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: np.ndarray) -> Batch:
        """Return the samples at ``indices``; ``x`` is float32, ``k / 255`` for uint8 data."""
        ids = checked_indices(indices, len(self))
        rows = self._rows[ids]
        values = self._x[rows]
        x = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        if values.dtype == np.uint8:
            x = x.div_(255)
        cond = None if self._cond is None else torch.from_numpy(self._cond[rows])
        return Batch(x=x, cond=cond, ids=torch.from_numpy(ids))

    @property
    def names(self) -> list[str] | None:
        """Names of the samples in this split, in its order."""
        return None if self._names is None else [self._names[row] for row in self._rows.tolist()]


class DataModule(ABC):
    """One source of data: what a sample looks like, its three splits, and its files."""

    spec: DataSpec

    @abstractmethod
    def train(self) -> Split:
        """Return the samples to learn from."""

    @abstractmethod
    def valid(self) -> Split:
        """Return the samples that choices are made on."""

    @abstractmethod
    def test(self) -> Split:
        """Return the samples that scores are reported on."""

    def refuse_unseen(self) -> None:  # noqa: B027  # most data have nothing to refuse
        """Refuse, before training, a condition's value that only other parts have.

        Raises:
            DataError: names a sample, the value and the rule.
        """

    def column(self, name: str, part: str) -> list[str]:
        """Return the text of a column, a label for instance, for each sample of a part.

        Args:
            name: which column.
            part: train, valid or test.

        Raises:
            DataError: there is no such column.
        """
        known = ", ".join(item.name for item in self.spec.conditions) or "none"
        raise DataError(f"no column {name!r} of labels in the data; its conditions: {known}")

    @abstractmethod
    def read(self, path: str | Path) -> Shaped[Tensor, "*shape"]:
        """Read one sample from a file, in the shape of ``spec``."""

    @abstractmethod
    def write(self, x: Shaped[Tensor, "*shape"], path: str | Path) -> None:
        """Write one sample to a file."""
