"""The small functions that quantizers share. One idea each; none holds state."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "all_reduce_sum",
    "broadcast_from_main",
    "code_counts",
    "code_sums",
    "commitment",
    "in_backward",
    "perplexity",
    "scatter_rows",
    "select_rows",
    "straight_through",
    "sum_per_sample",
    "usage",
]


def straight_through(
    z_e: Float[Tensor, "*N D"], z_q: Float[Tensor, "*N D"]
) -> Float[Tensor, "*N D"]:
    """Return ``z_q`` with the gradient of ``z_e``: exactly ones.

    Paper: van den Oord et al. 2017, arXiv:1711.00937, section 3.2; the estimator is Bengio et
    al. 2013, arXiv:1308.3432.

    The value is ``z_q`` to the bit: ``z_e + (z_q - z_e)`` would round, and a decoder would then
    see other numbers in training than after ``decode(codes)``.

    Example:
        >>> z_e = torch.tensor([0.3], requires_grad=True)
        >>> z = straight_through(z_e, torch.tensor([1.0]))
        >>> z.backward()
        >>> z.item(), z_e.grad.item()
        (1.0, 1.0)
    """
    return _StraightThrough.apply(z_e, z_q)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_e: Tensor, z_q: Tensor) -> Tensor:
        return z_q.to(z_e.dtype).clone() if z_q.dtype != z_e.dtype else z_q.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def sum_per_sample(
    values: Float[Tensor, "B *G"], mask: Bool[Tensor, "B *G"] | None = None
) -> Float[Tensor, " B"]:
    """Sum a per-cell quantity over the grid, over the unmasked cells only."""
    if mask is not None:
        values = torch.where(mask, values, torch.zeros_like(values))
    return values.flatten(1).sum(1) if values.ndim > 1 else values


def select_rows(
    values: Float[Tensor, "B *G D"], mask: Bool[Tensor, "B *G"] | None = None
) -> Float[Tensor, "N D"]:
    """Take the vectors of the unmasked cells, one row each."""
    return values.flatten(0, -2) if mask is None else values[mask]


def scatter_rows(
    rows: Float[Tensor, " N"], shape: tuple[int, ...], mask: Bool[Tensor, "B *G"] | None = None
) -> Float[Tensor, "B *G"]:
    """Undo :func:`select_rows` for one number a row; masked cells get 0."""
    if mask is None:
        return rows.view(shape)
    return rows.new_zeros(shape).masked_scatter(mask, rows)


def code_counts(codes: Int[Tensor, " N"], size: int) -> Float[Tensor, " size"]:
    """Count how often each code occurs, without a one-hot of N by size."""
    return torch.bincount(codes, minlength=size).to(torch.float32)


def code_sums(
    z_e: Float[Tensor, "N D"], codes: Int[Tensor, " N"], size: int
) -> Float[Tensor, "size D"]:
    """Sum the vectors that chose each code, in float32.

    ``index_add_`` is deterministic on the CPU. On CUDA its atomics are not, so there the vectors
    are sorted by code first and each run of equal codes is summed on its own.
    """
    z_e = z_e.to(torch.float32)
    if z_e.is_cuda:
        order = torch.argsort(codes, stable=True)
        lengths = torch.bincount(codes, minlength=size)
        return torch.segment_reduce(z_e[order], "sum", lengths=lengths, axis=0, initial=0.0)
    return torch.zeros(size, z_e.shape[1], dtype=torch.float32).index_add_(0, codes, z_e)


def perplexity(counts: Float[Tensor, " V"]) -> Float[Tensor, ""]:
    """Return exp of the entropy of the counts: how many codes are in use, evenly.

    Example:
        >>> perplexity(torch.tensor([5.0, 5.0, 0.0])).item()
        2.0
    """
    p = counts / counts.sum().clamp(min=1)
    return torch.exp(-torch.xlogy(p, p).sum())


def usage(counts: Float[Tensor, " V"]) -> Float[Tensor, ""]:
    """Return the share of codes that were used at least once."""
    return (counts > 0).to(torch.float32).mean()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place.

    Whether there are others is asked here, at every call: a module that was built before the
    process group still takes part.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_from_main(tensor: Tensor) -> Tensor:
    """Give every process the first one's values, in place."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def commitment(z_e: Float[Tensor, "*N D"], z_q: Float[Tensor, "*N D"]) -> Float[Tensor, "*N"]:
    """Return ``||z_e - sg(z_q)||^2`` of each vector, the pull of the encoder to its code."""
    return F.mse_loss(z_e.float(), z_q.detach().float(), reduction="none").sum(-1)


def in_backward() -> bool:
    """Return whether autograd is running: then a forward is activation checkpointing's repeat.

    Its vectors were counted the first time.
    """
    return torch._C._current_graph_task_id() != -1
