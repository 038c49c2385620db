"""The nearest-code search in plain torch, in tiles that stay in the cache."""

import torch
from torch import Tensor

__all__ = ["nearest"]

_ROWS, _COLUMNS = 512, 2048


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Search with ``|c|^2 / 2 - z.c``, which orders codes as the distance does.

    Both sides are first moved by the codebook's mean: the terms that would cancel (latents far
    from the origin) are then small. Running minima are kept per tile, so memory is one tile.
    """
    centre = codebook.mean(0)
    z, codebook = z - centre, codebook - centre
    half_norms = codebook.square().sum(1) / 2
    best = torch.full((len(z),), torch.inf, device=z.device)
    codes = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    for row in range(0, len(z), _ROWS):
        rows = slice(row, row + _ROWS)
        for column in range(0, len(codebook), _COLUMNS):
            columns = slice(column, column + _COLUMNS)
            scores = torch.addmm(half_norms[columns], z[rows], codebook[columns].T, alpha=-1)
            # min() is half the price of argmin() on a CPU.
            score, code = scores.min(dim=1)
            closer = score < best[rows]
            best[rows] = torch.where(closer, score, best[rows])
            codes[rows] = torch.where(closer, code + column, codes[rows])
    return codes
