"""Rotary positions on a grid: what two cells say to each other depends on how far apart they are.

"RoFormer", arXiv 2104.09864, section 3.2.2: a pair of features is turned by an angle proportional
to the position, so that a query's product with a key depends on the difference of positions alone.
Ours differs: each axis of the grid has its own pairs, and queries are turned by the cell that is
to be written, keys by the cell that was read, one step before.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qvae.priors.order import cell_coordinates

__all__ = ["rope_table", "rotate"]

_BASE = 100.0  # grids are short: the slowest pair turns by a hundredth of a radian a cell


def rope_table(
    grid: Sequence[int], cells: np.ndarray, head_dim: int
) -> Float[Tensor, "2 2 T half"]:
    """Return cosines and sines of the angles of queries and of keys at each step.

    Args:
        grid: axes of the cells.
        cells: ``[T]`` the raster number of the cell that each step writes.
        head_dim: width of one head; even. Its pairs are shared out among the axes.

    Returns:
        ``[query or key, cosine or sine, step, pair]``.

    Raises:
        ValueError: an odd width.

    Example:
        >>> rope_table((2, 2), np.arange(4), 8).shape
        torch.Size([2, 2, 4, 4])
    """
    if head_dim % 2:
        raise ValueError(f"head_dim={head_dim}: rotary positions need an even width of a head")
    pairs = head_dim // 2
    share = max(pairs // len(grid), 1)
    written = cell_coordinates(grid)[cells].astype(float)
    read = np.concatenate([written[:1], written[:-1]])
    speeds = np.zeros((len(grid), pairs))
    for axis in range(min(len(grid), pairs)):
        mine = slice(axis * share, (axis + 1) * share)
        speeds[axis, mine] = _BASE ** -(np.arange(share) / share)
    angles = np.stack([written, read]) @ speeds
    return torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], 1)).float()


def rotate(x: Float[Tensor, "2 *rest half2"], table: Tensor) -> Float[Tensor, "2 *rest half2"]:
    """Turn queries and keys, stacked in front, by the rows of :func:`rope_table`.

    Args:
        x: ``[2, ..., T, head_dim]``; feature i pairs with feature i + half.
        table: ``[2, 2, T, half]``.
    """
    shape = (2, *(1,) * (x.ndim - 3), *table.shape[2:])
    cos, sin = (part.reshape(shape).to(x.dtype) for part in table.unbind(1))
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
