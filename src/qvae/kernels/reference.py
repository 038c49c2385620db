"""The nearest-code search as the definition says it: the oracle of every faster path."""

import torch
from torch import Tensor

__all__ = ["distances", "nearest"]

_CELLS = 1 << 20


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Compare every pair in float64; ties go to the lowest index.

    Example:
        >>> nearest(torch.tensor([[0.5]]), torch.tensor([[0.0], [1.0]])).tolist()
        [0]
    """
    codes = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    rows = max(1, _CELLS // len(codebook))
    for start in range(0, len(z), rows):
        distance = distances(z[start : start + rows, None], codebook)
        # min() promises no order among ties, so ask for the first True instead.
        lowest = distance == distance.amin(dim=1, keepdim=True)
        codes[start : start + rows] = lowest.to(torch.uint8).argmax(dim=1)
    return codes


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Sum squared differences over the last axis in float64, coordinate after coordinate.

    The order is part of the definition: another order rounds another way, and where two codes are
    almost equally near the answer would depend on the path that was taken.

    Example:
        >>> distances(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)).tolist()
        [25.0]
    """
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for x, y in zip(a.double().unbind(-1), b.double().unbind(-1), strict=True):
        difference = x - y
        total = total + difference * difference
    return total
