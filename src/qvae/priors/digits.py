"""Tokens and digits: a token less the first token of its position's codebook is a digit."""

from collections.abc import Sequence

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

__all__ = ["to_digits", "token_ranges"]


def token_ranges(
    codebook_sizes: Sequence[int], num_tokens: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Return the first token of each position's codebook, and the one after its last.

    Example:
        >>> low, high = token_ranges((8, 5), 4)
        >>> low.tolist(), high.tolist()
        ([0, 8, 0, 8], [8, 13, 8, 13])
    """
    sizes = torch.tensor(codebook_sizes)
    ids = torch.arange(num_tokens) % len(sizes)
    high = sizes.cumsum(0)
    return (high - sizes)[ids], high[ids]


def to_digits(
    tokens: Shaped[Tensor, "..."], low: Int[Tensor, " N"], high: Int[Tensor, " N"]
) -> Int[Tensor, "B N"]:
    """Check tokens against their ranges and count them from their codebook's first.

    Raises:
        ValueError: no integers, another length, or a token out of range; the first such is named
            with its position and value.
    """
    if tokens.ndim != 2 or tokens.shape[1] != len(low):
        raise ValueError(f"tokens of shape {tuple(tokens.shape)}: needs [B, {len(low)}]")
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens of {tokens.dtype}: must be integers")
    tokens = tokens.long()
    wrong = (tokens < low) | (tokens >= high)
    if wrong.any():
        row, position = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"token {int(tokens[row, position])} at position {position} of row {row}:"
            f" must be in {int(low[position])}..{int(high[position]) - 1}, its codebook's range"
        )
    return tokens - low
