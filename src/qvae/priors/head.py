"""What priors have in common around their network: what enters a position, and what leaves it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qvae.networks.condition import Conditioner
from qvae.types import Condition

__all__ = ["PositionInputs", "head_layout", "hide_conditions", "read_out", "swap_tokens"]


def head_layout(
    codebook_sizes: Sequence[int],
) -> tuple[Int[Tensor, "K S"], Float[Tensor, "K S"]]:
    """Return each codebook's rows of the head, and what masks them where one is short.

    Example:
        >>> rows, mask = head_layout((2, 3))
        >>> rows.tolist(), mask.tolist()
        ([[0, 1, 0], [2, 3, 4]], [[0.0, 0.0, -inf], [0.0, 0.0, 0.0]])
    """
    sizes = torch.tensor(codebook_sizes)
    digits = torch.arange(max(codebook_sizes))
    is_short = digits >= sizes[:, None]
    rows = ((sizes.cumsum(0) - sizes)[:, None] + digits).masked_fill(is_short, 0)
    return rows, torch.zeros(rows.shape).masked_fill(is_short, -torch.inf)


def read_out(
    x: Float[Tensor, "B N D"], weight: Float[Tensor, "V D"], rows: Int[Tensor, "K S"]
) -> Float[Tensor, "B N S"]:
    """Return float32 logits of every digit of each position's codebook."""
    num_codebooks = len(rows)
    if num_codebooks == 1:
        return torch.nn.functional.linear(x, weight).float()
    x = x.unflatten(1, (-1, num_codebooks)).permute(2, 0, 1, 3)
    turned = weight[rows].to(x.dtype).transpose(1, 2)
    logits = torch.bmm(x.flatten(1, 2), turned).float()
    return logits.unflatten(1, x.shape[1:3]).permute(1, 2, 0, 3).flatten(1, 2)


def hide_conditions(
    cond: Float[Tensor, "B M"], null_prob: float, *, is_training: bool
) -> Float[Tensor, "B M"]:
    """Hide a share of the rows in training, so that a prior also learns not to be told."""
    if not is_training or not null_prob or not cond.shape[1]:
        return cond
    is_hidden = torch.rand(len(cond), 1, device=cond.device) < null_prob
    return cond.masked_fill(is_hidden, torch.nan)


def swap_tokens(
    tokens: Int[Tensor, "B N"], swap_prob: float, *, is_training: bool
) -> Int[Tensor, "B N"]:
    """Replace a share of inputs in training by another row's: a prior then forgives its slips."""
    if not is_training or not swap_prob:
        return tokens
    is_swapped = torch.rand(tokens.shape, device=tokens.device) < swap_prob
    return torch.where(is_swapped, tokens.roll(1, dims=0), tokens)


class PositionInputs(nn.Module):
    """What enters each position besides tokens: where it is and what the condition is.

    A learned vector a position, the embedded condition at every position, and (with ``cond_table``)
    each position's own linear map of the condition's features.

    Args:
        conditions: what ``cond`` columns mean; may be none.
        num: positions.
        dim: width.
        cond_table: whether there is the map.
    """

    def __init__(
        self, conditions: tuple[Condition, ...], *, num: int, dim: int, cond_table: bool
    ) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(num, dim) * 0.02)
        self.conditioner = Conditioner(conditions, dim=dim) if conditions else None
        self.table: nn.Parameter | None = None
        if self.conditioner is not None and cond_table:
            shape = (self.conditioner.feature_dim, num, dim)
            self.table = nn.Parameter(torch.randn(shape) * 0.02)

    def forward(self, cond: Float[Tensor, "B M"]) -> Float[Tensor, "B N D"]:
        """Sum the three."""
        x = self.positions.expand(len(cond), -1, -1)
        if self.conditioner is None:
            return x
        # In float32 under any autocast: few operations, and a time needs its digits.
        with torch.autocast(cond.device.type, enabled=False):
            features = self.conditioner.features(cond)
            x = x + self.conditioner.embed(features)[:, None]
            if self.table is None:
                return x
            return x + (features.to(self.table.dtype) @ self.table.flatten(1)).view(x.shape)
