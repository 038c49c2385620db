"""Tokens and digits: a token less the first token of its position's codebook is a digit."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

__all__ = ["to_digits", "token_layout", "token_ranges"]


def token_layout(
    vocab_size: int,
    num_tokens: int,
    codebook_sizes: Sequence[int] | None,
    grid: Sequence[int] | None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the codebooks' sizes and the grid's axes, with what is None filled in.

    Raises:
        ValueError: sizes that do not fit together.

    Example:
        >>> token_layout(8, 6, (5, 3), None)
        ((5, 3), (3,))
    """
    sizes = tuple(codebook_sizes) if codebook_sizes is not None else (vocab_size,)
    if not sizes or any(size < 1 for size in sizes) or sum(sizes) != vocab_size:
        raise ValueError(
            f"codebook_sizes={sizes}: sizes are >= 1 and sum to vocab_size={vocab_size}"
        )
    if num_tokens < 1 or num_tokens % len(sizes):
        raise ValueError(
            f"num_tokens={num_tokens}: must be a positive multiple of the {len(sizes)} codebooks"
        )
    axes = (num_tokens // len(sizes),) if not grid else tuple(grid)
    if any(axis < 1 for axis in axes):
        raise ValueError(f"grid={axes}: every axis must be >= 1")
    if math.prod(axes) * len(sizes) != num_tokens:
        raise ValueError(
            f"grid={axes}: with {len(sizes)} codebooks it has {math.prod(axes) * len(sizes)}"
            f" tokens, not num_tokens={num_tokens}"
        )
    return sizes, axes


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
