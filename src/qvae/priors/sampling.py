"""Turn logits into tokens: temperature, top-k, top-p, min-p, one random stream a sample.

Every sample has its own stream of uniform numbers, keyed by (seed, sample index) with the
counter-based generator Philox ("Parallel random numbers: as easy as 1, 2, 3", SC 2011), and
number n of the stream decides token n by inversion of the cumulative distribution. So a sample
is a function of (weights, condition, seed, index), not of the batch around it. One caveat: the
logits themselves may differ in their last bit between batch sizes, because matrix products
are summed in another order; a draw that falls within such a rounding (about 1e-7) can differ.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qvae.arguments import as_number, check_whole

__all__ = ["check_sampler", "filter_logits", "invert", "pick", "uniforms"]

_COLD = 1e-30
"""Logits divided by less than this overflow; long before, the best digit has all probability."""
_HOT = 1e30
"""Above it a float32 may be infinite, and what no digit has, -inf, would be no number; long before,
all digits that there are have the same probability."""
_MOST_GUIDANCE = 1e6
"""Beyond it the guided logits are rounding errors, and in the end no numbers."""


def uniforms(num: int, length: int, seed: int | Sequence[int]) -> np.ndarray:
    """Draw float64 numbers in [0, 1), ``[num, length]``; row i depends on (seed, i) alone.

    Args:
        num: rows.
        length: numbers in a row; a longer row begins with the shorter one.
        seed: an integer >= 0; or one for each row, which is then row 0 of that seed.

    Raises:
        ValueError: a seed that is no whole number >= 0, or another number of seeds than rows.

    Example:
        >>> bool((uniforms(3, 4, seed=7)[2] == uniforms(5, 4, seed=7)[2]).all())
        True
        >>> bool((uniforms(2, 4, seed=[3, 7])[1] == uniforms(1, 4, seed=7)[0]).all())
        True
    """
    rows = np.empty((num, length))
    for row, (one, index) in zip(rows, _keys(num, seed), strict=True):
        key = np.array([one % 2**64, index], dtype=np.uint64)
        bits = np.random.Generator(np.random.Philox(key=key))
        row[:] = bits.integers(0, 2**32, size=length, dtype=np.uint32)
    return rows / 2**32


def _keys(num: int, seed: Any) -> list[tuple[int, int]]:
    """Return the seed and the number of each row's stream."""
    seeds = seed.tolist() if isinstance(seed, (np.ndarray, Tensor)) else seed
    if isinstance(seeds, (str, bytes)) or not isinstance(seeds, Sequence):
        check_whole("seed", seeds, least=0)
        return [(int(seeds), index) for index in range(num)]
    if len(seeds) != num:
        raise ValueError(f"seed has {len(seeds)} entries: needs one for each of {num} samples")
    for index, one in enumerate(seeds):
        check_whole(f"seed[{index}]", one, least=0)
    return [(int(one), 0) for one in seeds]


def check_sampler(
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    guidance: float = 1.0,
) -> None:
    """Refuse settings of a sampler that mean nothing.

    Raises:
        ValueError: naming the argument, its value and the rule.
    """
    if not 0 <= as_number("temperature", temperature) < math.inf:
        raise ValueError(f"temperature={temperature}: must be >= 0 and finite")
    if top_k is not None:
        check_whole("top_k", top_k, least=1)
    for name, share in (("top_p", top_p), ("min_p", min_p)):
        if share is not None and not 0 < as_number(name, share) <= 1:
            raise ValueError(f"{name}={share}: must be in (0, 1]")
    if not abs(as_number("guidance", guidance)) <= _MOST_GUIDANCE:
        raise ValueError(f"guidance={guidance}: must be in -{_MOST_GUIDANCE:g}..{_MOST_GUIDANCE:g}")


def filter_logits(
    logits: Tensor, *, top_k: int | None, top_p: float | None, min_p: float | None = None
) -> Tensor:
    """Set the logits that top-k, then top-p, then min-p drop to -inf, ``[..., S] -> [..., S]``.

    Top-p: "The Curious Case of Neural Text Degeneration", arXiv 1904.09751, section 3.1. The
    digit that crosses the threshold is kept. Of equal logits the lower digit comes first. Min-p:
    "Turning Up the Heat", arXiv 2407.01082, section 3: a digit is kept if it is at least ``min_p``
    times as probable as the most probable one.

    Example:
        >>> logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
        >>> filter_logits(logits, top_k=3, top_p=0.7).isfinite().tolist()
        [True, True, False, False]
    """
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
        logits = torch.full_like(logits, -torch.inf).scatter(-1, kept, logits.gather(-1, kept))
    if top_p is not None and top_p < 1:
        ordered, indices = logits.sort(dim=-1, descending=True, stable=True)
        probs = ordered.softmax(-1)
        dropped = probs.cumsum(-1) - probs >= top_p
        dropped[..., 0] = False
        logits = logits.masked_fill(dropped.scatter(-1, indices, dropped), -torch.inf)
    if min_p is not None:
        floor = logits.amax(-1, keepdim=True) + math.log(min_p)
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return logits


def invert(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw a digit for each row by inversion: ``[..., S], [...] -> [...]`` int64.

    The digit is the first whose cumulative probability exceeds the uniform number, so that
    one of probability 0 is never drawn. Sums are in the precision of ``uniform``.
    """
    heights = logits.softmax(-1, dtype=torch.float32).cumsum(-1, dtype=uniform.dtype)
    targets = uniform[..., None] * heights[..., -1:]
    found = torch.searchsorted(heights, targets, right=True)[..., 0]
    return found.clamp_(max=logits.shape[-1] - 1)


def pick(
    logits: Tensor,
    uniform: Tensor,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Choose a digit for each row: ``[..., S], [...] -> [...]``, arguments as in ``sample``.

    Example:
        >>> logits = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
        >>> pick(logits, torch.tensor([0.4, 0.6]), temperature=1.0).tolist()
        [0, 1]
    """
    if temperature < _COLD or top_k == 1:
        return logits.argmax(-1)
    if temperature != 1:
        logits = logits / min(temperature, _HOT)
    if top_k is not None or top_p is not None or min_p is not None:
        logits = filter_logits(logits, top_k=top_k, top_p=top_p, min_p=min_p)
    return invert(logits, uniform)
