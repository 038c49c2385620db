"""The small functions that bottlenecks share: sums over a grid, and agreement of processes."""

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "all_reduce_sum",
    "broadcast_from_main",
    "in_backward",
    "scatter_rows",
    "select_rows",
    "sum_per_sample",
]


def sum_per_sample(
    values: Float[Tensor, "B *G"], mask: Bool[Tensor, "B *G"] | None = None
) -> Float[Tensor, " B"]:
    """Sum a per-cell quantity over the grid, over the unmasked cells only.

    Example:
        >>> sum_per_sample(torch.ones(1, 3), torch.tensor([[True, False, True]])).tolist()
        [2.0]
    """
    if mask is not None:
        values = torch.where(mask, values, torch.zeros_like(values))
    return values.flatten(1).sum(1) if values.ndim > 1 else values


def select_rows(
    values: Float[Tensor, "B *G D"], mask: Bool[Tensor, "B *G"] | None = None
) -> Float[Tensor, "N D"]:
    """Take the vectors of the unmasked cells, one row each.

    Example:
        >>> select_rows(torch.zeros(2, 5, 3)).shape
        torch.Size([10, 3])
    """
    return values.flatten(0, -2) if mask is None else values[mask]


def scatter_rows(
    rows: Float[Tensor, " N"], shape: tuple[int, ...], mask: Bool[Tensor, "B *G"] | None = None
) -> Float[Tensor, "B *G"]:
    """Undo :func:`select_rows` for one number a row; masked cells get 0.

    Example:
        >>> scatter_rows(torch.tensor([7.0]), (1, 2), torch.tensor([[False, True]])).tolist()
        [[0.0, 7.0]]
    """
    if mask is None:
        return rows.view(shape)
    return rows.new_zeros(shape).masked_scatter(mask, rows)


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


def in_backward() -> bool:
    """Return whether autograd is running: then a forward is activation checkpointing's repeat.

    Its vectors were counted the first time.

    Example:
        >>> in_backward()
        False
    """
    return torch._C._current_graph_task_id() != -1
