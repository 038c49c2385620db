"""The nearest-code search. One entry, :func:`nearest`; which code runs it is decided here."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qvae.kernels.reference import nearest as _reference
from qvae.kernels.tiled import nearest as _tiled

__all__ = ["describe", "nearest"]


def nearest(z: Float[Tensor, "N D"], codebook: Float[Tensor, "V D"]) -> Int[Tensor, " N"]:
    """Return the index of the Euclidean-nearest row of ``codebook`` for each row of ``z``.

    Distances are float32 (float64 for double input) whatever autocast says, and memory stays
    O(N + V * D + tile): no N by V matrix is made.

    Example:
        >>> nearest(torch.tensor([[0.9], [0.1]]), torch.tensor([[0.0], [1.0]])).tolist()
        [1, 0]
    """
    with torch.autocast(z.device.type, enabled=False):
        if z.dtype == torch.float64:
            return _reference(z, codebook)
        return _tiled(z.detach().float(), codebook.detach().float())


def describe() -> str:
    """Name the code path that :func:`nearest` takes on this machine."""
    return "torch"
