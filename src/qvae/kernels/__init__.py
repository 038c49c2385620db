"""The nearest-code search. One entry, :func:`nearest`; ``dispatch`` decides which code runs it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qvae.kernels.dispatch import describe, search

__all__ = ["describe", "nearest"]


def nearest(z: Float[Tensor, "N D"], codebook: Float[Tensor, "V D"]) -> Int[Tensor, " N"]:
    """Return the index of the Euclidean-nearest row of ``codebook`` for each row of ``z``.

    Exact on every path: the answer is that of float64 distances, summed in the order of the
    coordinates, and ties go to the lowest index; docs/nearest.md has the proof. Half precision is
    searched as the float32 numbers that it stands for, whatever autocast says; float64 on either
    side is searched as float64. No N by V matrix is made: memory is O(N + V * D + tile). There is
    no gradient.

    A row or a code that is not finite gets some index in range; callers who must know look for it
    themselves.

    Raises:
        ValueError: one of them is no matrix, there is no code, a code has no coordinate, or the
            widths differ.

    Example:
        >>> nearest(torch.tensor([[0.9], [0.1]]), torch.tensor([[0.0], [1.0]])).tolist()
        [1, 0]
    """
    for name, rows in (("z", z), ("codebook", codebook)):
        if rows.ndim != 2:
            raise ValueError(f"{name} of shape {tuple(rows.shape)}: must have two axes, rows of D")
    if codebook.shape[0] == 0 or codebook.shape[1] == 0:
        raise ValueError(f"codebook of shape {tuple(codebook.shape)}: must have codes and a width")
    if z.shape[1] != codebook.shape[1]:
        raise ValueError(f"z has rows of {z.shape[1]} numbers, the codebook {codebook.shape[1]}")
    wide = torch.float64 if torch.float64 in (z.dtype, codebook.dtype) else torch.float32
    codes: Tensor = _nearest(z.detach().to(wide), codebook.detach().to(wide))
    return codes


@torch.library.custom_op("qvae::nearest", mutates_args=())
def _nearest(z: Tensor, codebook: Tensor) -> Tensor:
    return search(z, codebook)


@_nearest.register_fake
def _(z: Tensor, codebook: Tensor) -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.int64)
