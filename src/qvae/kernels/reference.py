"""The nearest-code search as the definition says it: the oracle of every faster path."""

import torch
from torch import Tensor

__all__ = ["distances", "nearest", "widen"]

_CELLS = 1 << 20


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Compare every pair in float64; ties go to the lowest index.

    Example:
        >>> nearest(torch.tensor([[0.5]]), torch.tensor([[0.0], [1.0]])).tolist()
        [0]
    """
    z, codebook = widen(z), widen(codebook)
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
    for x, y in zip(widen(a).unbind(-1), widen(b).unbind(-1), strict=True):
        difference = x - y
        total = total + difference * difference
    return total


def widen(x: Tensor) -> Tensor:
    """Return float32 as float64, exactly: also where the processor takes denormals for 0.

    ``torch.set_flush_denormal`` sets that for one thread, and for those that it starts later. So
    numbers below 2^-126 are read as what they are: integers, in units of 2^-149.

    Example:
        >>> widen(torch.tensor([-3e-45])).item() == -2 * 2.0**-149
        True
    """
    if x.dtype != torch.float32:
        return x.double()
    bits = x.view(torch.int32)
    steps = bits & 0x7FFFFFFF
    small = torch.where(bits < 0, -steps, steps).double() * 2.0**-149
    return torch.where(steps < 1 << 23, small, x.double())
