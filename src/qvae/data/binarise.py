"""Turn grey pixels into zeros and ones, each a 1 with the chance that its grey value says.

Which way has a name, because a score depends on it: ``static`` draws every pixel once, by a seed;
``dynamic`` draws training pixels anew each time a sample is visited, and takes valid and test from
``static`` with the same seed, so that both are scored on the same zeros and ones. Burda et al.
2015, arXiv:1509.00519, and Salakhutdinov & Murray 2008 differ in this.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Shaped

from qvae.data.base import ArraySplit, checked_indices
from qvae.errors import DataError
from qvae.types import Batch

__all__ = ["RedrawnSplit", "draw_ones", "draw_static", "require_grey"]

_CHUNK = 1024
_FULL = 1 << 16
_CHANCES = np.round(np.arange(256) * (_FULL / 255)).astype(np.uint32)
"""Of 65,536 equally likely numbers, how many make a 1 of a grey value of 8 bits."""


def draw_ones(x: Shaped[np.ndarray, "*N"], *, key: tuple[int, int]) -> Bool[np.ndarray, "*N"]:
    """Draw a one with the chance x, ``k / 255`` for uint8; floating x lies in [0, 1].

    The raw stream of Philox decides, which NumPy promises for ever. A chance is exact to 1/131072.

    Example:
        >>> grey = np.array([[0, 255, 255, 0]], dtype=np.uint8)
        >>> draw_ones(grey, key=(0, 0)).tolist()
        [[False, True, True, False]]
    """
    raw = np.random.Philox(key=np.array(key, dtype=np.uint64)).random_raw(-(-x.size // 4))
    numbers = raw.astype("<u8", copy=False).view("<u2")[: x.size].reshape(x.shape)
    if x.dtype == np.uint8:
        return numbers < _CHANCES[x]
    return numbers < np.round(x * _FULL).astype(np.uint32)


def draw_static(x: Shaped[np.ndarray, "N *CS"], *, seed: int) -> Bool[np.ndarray, "N *CS"]:
    """Draw every pixel of a data set once; the drawing follows from the seed and the row.

    Raises:
        DataError: the data is binary already.
    """
    require_grey(x)
    ones = np.empty(x.shape, dtype=bool)
    for start in range(0, len(x), _CHUNK):
        part = slice(start, start + _CHUNK)
        ones[part] = draw_ones(x[part], key=(seed, start))
    return ones


def require_grey(x: np.ndarray) -> None:
    """Refuse data with nothing to draw.

    Raises:
        DataError: the data is binary already.
    """
    if x.dtype == bool:
        raise DataError("binarise: the images are binary (bool) already; leave it at none")


class RedrawnSplit(ArraySplit):
    """A split of grey samples whose pixels are drawn as zeros and ones at every visit.

    For training: a pixel depends on its sample's place in the batch, so a score belongs elsewhere.
    ``batch(indices, draw=n)`` is a function of both, so an order by (seed, step) stays exact.

    Args:
        x: grey, uint8 or floating in [0, 1].
        seed: of the drawing.
        **options: as for :class:`~qvae.data.base.ArraySplit`.
    """

    redraws = True
    """Tells the training loop to number its visits."""

    def __init__(self, x: np.ndarray, *, seed: int, **options: Any) -> None:
        super().__init__(x, **options)
        require_grey(x)
        self._seed = seed

    def batch(self, indices: np.ndarray, *, draw: int = 0) -> Batch:
        """Return the samples at ``indices``, drawn for the ``draw``-th time."""
        ids = checked_indices(indices, len(self))
        rows = self._rows[ids]
        ones = draw_ones(self._x[rows], key=(self._seed, draw))
        cond = None if self._cond is None else torch.from_numpy(self._cond[rows])
        x = torch.from_numpy(ones.view(np.uint8)).float()
        return Batch(x=x, cond=cond, ids=torch.from_numpy(ids))
