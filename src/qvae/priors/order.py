"""In which order the tokens of a grid are decided: which cell comes when, which codebook in which.

A schedule is a table ``[T, R]``: step t decides the tokens at the positions ``schedule[t]``, -1
being none, from all that earlier steps decided. An order says how one goes through the cells, a
pattern how the K codebooks of a cell are spread over steps:

    flat      one token a step: K steps a cell
    parallel  all K tokens of a cell in one step, which then do not see each other
    delayed   codebook k is k cells behind: K - 1 steps more than cells, and each codebook has
              seen the ones before it in its cell

Patterns: "Simple and Controllable Music Generation", arXiv 2306.05284, section 2.2.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

__all__ = ["Order", "Pattern", "cell_coordinates", "cell_order", "schedule"]

Order = Literal["raster", "spiral", "multiscale"]
Pattern = Literal["flat", "delayed", "parallel"]


def cell_coordinates(grid: Sequence[int]) -> np.ndarray:
    """Return the coordinates of each cell in raster order, ``[cells, axes]``."""
    return np.stack(np.unravel_index(np.arange(math.prod(grid)), tuple(grid)), 1)


def cell_order(grid: Sequence[int], order: Order) -> np.ndarray:
    """Return the raster numbers of the cells in the order in which they are decided.

    ``spiral`` goes from the middle outwards, ring by ring, with the clock in a plane;
    ``multiscale`` takes every 2^s-th cell along all axes first, then every 2^(s-1)-th, and so on.

    Raises:
        ValueError: an order that is none of these.

    Example:
        >>> cell_order((3, 3), "spiral").tolist()
        [4, 1, 2, 5, 8, 7, 6, 3, 0]
        >>> cell_order((4,), "multiscale").tolist()
        [0, 2, 1, 3]
    """
    cells = cell_coordinates(grid)
    raster = np.arange(len(cells))
    if order == "raster":
        return raster
    if order == "spiral":
        offset = cells - (np.array(grid) - 1) / 2
        ring = np.abs(offset).max(1)
        turn = np.zeros(len(cells))
        if len(grid) > 1:
            turn = np.arctan2(offset[:, -1], -offset[:, -2]) % (2 * np.pi)
        return np.lexsort((raster, turn.round(9), *offset[:, :-2].T, ring.round(9)))
    if order == "multiscale":
        largest = max(max(grid) - 1, 1).bit_length()
        both = np.gcd.reduce(cells, axis=1)
        level = np.full(len(cells), largest)
        level[both > 0] = [int(value & -value).bit_length() - 1 for value in both[both > 0]]
        return np.lexsort((raster, -level))
    raise ValueError(f"order={order!r}: must be raster, spiral or multiscale")


def schedule(
    grid: Sequence[int], num_codebooks: int, *, order: Order = "raster", pattern: Pattern = "flat"
) -> np.ndarray:
    """Return which positions each step decides, int64 ``[T, R]``; -1 is none.

    With ``multiscale`` and ``flat``, all cells of one codebook come before those of the next:
    the coarse codes of a residual quantizer are then known before any fine one.

    Raises:
        ValueError: an order or a pattern of another name.

    Example:
        >>> schedule((3,), 2, pattern="delayed").tolist()
        [[0, -1], [2, 1], [4, 3], [-1, 5]]
    """
    cells = cell_order(grid, order)
    books = np.arange(num_codebooks)
    tokens = cells[:, None] * num_codebooks + books
    if pattern == "flat":
        return (tokens.T if order == "multiscale" else tokens).reshape(-1, 1)
    if pattern == "parallel":
        return tokens
    if pattern == "delayed":
        table = np.full((len(cells) + num_codebooks - 1, num_codebooks), -1)
        for k in books:
            table[k : k + len(cells), k] = tokens[:, k]
        return table
    raise ValueError(f"pattern={pattern!r}: must be flat, delayed or parallel")
