"""Which tokens stay when a part of a sample is drawn anew."""

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from qvae.errors import UsageError

__all__ = ["keep_tokens", "region_mask"]


def region_mask(region: str, shape: Sequence[int]) -> np.ndarray:
    """Return what is outside a region, ``[*S]`` booleans.

    Args:
        region: a range for each axis, ``rows,columns`` for a picture, such as ``0:32,16:48``; a
            side may be left out.
        shape: of the axes.

    Raises:
        UsageError: another number of ranges, or one that holds nothing or goes beyond the data.

    Example:
        >>> region_mask("1:,:2", (2, 3)).astype(int).tolist()
        [[1, 1, 1], [0, 0, 1]]
    """
    parts = region.split(",")
    if len(parts) != len(shape):
        raise UsageError(f"region={region!r}: needs {len(shape)} ranges, such as 0:8,4:12")
    box = []
    for part, size in zip(parts, shape, strict=True):
        found = re.fullmatch(r"(\d*):(\d*)", part.strip())
        start = int(found[1] or 0) if found else 0
        stop = int(found[2] or size) if found else 0
        if not start < stop <= size:
            raise UsageError(
                f"region={region!r}: {part!r} must be START:STOP with 0 <= START < STOP <= {size};"
                f" the data have {' x '.join(map(str, shape))}"
            )
        box.append(slice(start, stop))
    is_kept = np.ones(tuple(shape), dtype=bool)
    is_kept[tuple(box)] = False
    return is_kept


def keep_tokens(is_kept: np.ndarray, grid: Sequence[int], num_codebooks: int) -> Bool[Tensor, " N"]:
    """Say which tokens to keep: those of cells of which every pixel is kept.

    Args:
        is_kept: a boolean a pixel, ``[*S]``.
        grid: the latent grid; it must have the axes of the data.
        num_codebooks: tokens in a cell.

    Raises:
        UsageError: the tokens lie on no grid over the data, or everything would be kept.

    Example:
        >>> keep_tokens(np.array([True, True, False, True]), (2,), 1).tolist()
        [True, False]
    """
    if len(grid) != is_kept.ndim:
        raise UsageError(
            f"in-painting: the tokens' grid {tuple(grid)} does not lie over data of "
            f"{is_kept.ndim} axes, so a region has no tokens of its own"
        )
    cells = np.indices(is_kept.shape)
    places = [
        cell * axis // size for cell, axis, size in zip(cells, grid, is_kept.shape, strict=True)
    ]
    flat = np.ravel_multi_index(places, tuple(grid)).ravel()
    lost = np.bincount(flat, weights=~is_kept.ravel(), minlength=math.prod(grid))
    kept = np.repeat(lost == 0, num_codebooks)
    if kept.all():
        raise UsageError("in-painting: the region is empty, so nothing would be drawn")
    return torch.from_numpy(kept)
