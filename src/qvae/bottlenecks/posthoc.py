"""Codes for a VAE that is trained already: a scalar quantizer for each coordinate of its means."""

import math
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qvae.bottlenecks.base import Quantizer, require_finite, require_levels, require_positive
from qvae.bottlenecks.estimators import straight_through
from qvae.types import Latent

__all__ = ["MOST_LEVELS", "PostHoc", "fit_posthoc"]

MOST_LEVELS = 256
"""Values of a coordinate at most."""
_LLOYD_ITERATIONS = 100


class PostHoc(Quantizer):
    """Replace each coordinate of a Gaussian's mean by the nearest of its own few values.

    It stands in the place of a trained ``gaussian`` bottleneck: encoder and decoder stay as they
    are. The values are fitted to data, see :func:`fit_posthoc`; ``qvae quantize RUN`` does it for a
    run. Until then any use is refused.

    Paper: the values are Lloyd 1982, Least squares quantization in PCM; that a VAE can be
    quantised after training is Xu et al. 2025, arXiv:2512.06609. Ours differs from the latter: no
    random codebook of whole vectors, but values for each coordinate, as many as its share of the
    bits.

    Shapes: ``z_e [B, *G, 2 * dim]``, mean and log variance, of which the mean is coded; ``z [B,
    *G, dim]``; ``codes [B, *G, K]``, K the number of coordinates with more than one value.
    Units: rate = cells * sum(ln L), no penalty.

    Args:
        dim: number of latent coordinates in a cell, >= 1.
        levels: number of values L of each coordinate, >= 1; a coordinate with one value is a
            constant and has no code.

    Raises:
        ValueError: if dim is below 1, if there is not a level for each coordinate, if one is
            below 1 or all are 1.

    Example:
        >>> PostHoc(dim=3, levels=[4, 1, 2]).codebook_sizes
        (4, 2)
    """

    values: Tensor
    is_fitted: Tensor
    active: Tensor

    def __init__(self, *, dim: int = 16, levels: Sequence[int] = (2,) * 16) -> None:
        super().__init__()
        require_positive(dim=dim)
        rule = f"needs dim={dim} whole numbers, each at least 1, one at least 2"
        require_levels(levels, rule, least=1)
        if len(levels) != dim or max(levels) < 2:
            raise ValueError(f"levels={levels!r}: {rule}")
        self.in_dim, self.out_dim = 2 * dim, dim
        self.levels = tuple(levels)
        self.codebook_sizes = tuple(level for level in levels if level > 1)
        self.register_buffer("values", torch.full((dim, max(levels)), torch.inf))
        self.register_buffer("is_fitted", torch.zeros((), dtype=torch.bool))
        active = torch.tensor([d for d, level in enumerate(levels) if level > 1])
        self.register_buffer("active", active, persistent=False)

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Quantise, with the gradient of the straight-through estimator."""
        codes = self.encode(z_e)
        z = straight_through(z_e[..., : self.out_dim], self._vectors(codes))
        return self._latent(z, codes, mask=mask, terms={})

    def encode(self, z_e: Float[Tensor, "*N in_dim"]) -> Int[Tensor, "*N K"]:
        """Return the number of each coordinate's nearest value."""
        self._require_fitted()
        self.check_vectors(z_e)
        values = self.values[self.active]
        bounds = ((values[:, :-1] + values[:, 1:]) / 2).contiguous()
        mean = z_e.detach().float()[..., self.active].reshape(-1, len(self.active))
        codes = torch.searchsorted(bounds, mean.T.contiguous()).T
        sizes = torch.tensor(self.codebook_sizes, device=codes.device)
        return torch.minimum(codes, sizes - 1).reshape(*z_e.shape[:-1], len(sizes))

    def decode(self, codes: Int[Tensor, "*N K"]) -> Float[Tensor, "*N out_dim"]:
        """Return each coordinate's value."""
        self._require_fitted()
        self.check_codes(codes)
        return self._vectors(codes)

    @property
    def code_facts(self) -> dict[str, Any]:
        """Also the levels of all coordinates, those without a code too."""
        return {**super().code_facts, "levels": [int(level) for level in self.levels]}

    def _vectors(self, codes: Int[Tensor, "*N K"]) -> Float[Tensor, "*N out_dim"]:
        z = self.values[:, 0].expand(*codes.shape[:-1], self.out_dim).clone()
        z[..., self.active] = self.values[self.active, codes]
        return z

    def _require_fitted(self) -> None:
        text = "posthoc: has no values yet; it is fitted to a trained VAE by qvae quantize RUN"
        if torch.compiler.is_compiling():  # a compiled graph does not branch on data
            torch._assert_async(self.is_fitted, text)
        elif not self.is_fitted:
            raise ValueError(text)


def fit_posthoc(
    mean: Float[Tensor, "N D"], log_var: Float[Tensor, "N D"], *, bits: float
) -> PostHoc:
    """Fit a :class:`PostHoc` to the posteriors of data.

    The bits of a cell are dealt out greedily: the next value goes to the coordinate where it
    takes off most error a bit. Error counts in units of the mean posterior variance, since a
    VAE's noise tells how finely its decoder looks at a coordinate; a coordinate with s^2 and L
    values has about ``s^2 / L^2`` (reverse water-filling, Cover & Thomas 2006, section 10.3.3).
    Values are then the centres of Lloyd's iterations from the quantiles of the means.

    Args:
        mean: means of the posterior, of cells of data, at least 2.
        log_var: their log variances.
        bits: of a cell, >= 1; the sum of the ``log2 L`` does not exceed it, and is a bit or more
            below it only where coordinates cannot use them: one has 256 values at most, and not
            more than its means differ in.

    Raises:
        ValueError: fewer than 2 cells, bits below 1, numbers that are not finite, or means that
            are all alike.

    Example:
        >>> mean = torch.randn(1000, 2) * torch.tensor([4.0, 0.1])  # the second says nothing
        >>> fit_posthoc(mean, torch.zeros(1000, 2), bits=3.0).codebook_sizes
        (8,)
    """
    if not 1 <= bits < math.inf:
        raise ValueError(f"bits={bits}: must be at least 1 and finite")
    if len(mean) < 2:
        raise ValueError(f"mean: {len(mean)} cells are too few to fit to, needs 2")
    require_finite(mean, "fit_posthoc")
    require_finite(log_var, "fit_posthoc")
    mean, log_var = mean.cpu().double(), log_var.cpu().double()
    signal = mean.var(0) / log_var.exp().mean(0)
    levels = _deal(signal.tolist(), bits)
    values = [_lloyd(mean[:, d].contiguous(), level) for d, level in enumerate(levels)]
    levels = [len(value) for value in values]
    if max(levels) < 2:
        raise ValueError("mean: all cells are alike, so there is nothing to code")
    fitted = PostHoc(dim=mean.shape[1], levels=levels)
    for d, value in enumerate(values):
        fitted.values[d, : len(value)] = value.float()
    fitted.is_fitted.fill_(True)
    return fitted.eval()


def _deal(signal: Sequence[float], bits: float) -> list[int]:
    """Return levels with ``sum(log2 L) <= bits`` and little ``sum(signal / L^2)``."""
    levels = [1] * len(signal)
    left = bits * math.log(2) + 1e-9

    def offer(d: int) -> tuple[float, int]:
        """Return what one value more takes off a nat, the most first, and of which coordinate."""
        level = levels[d]
        gain = signal[d] / level**2 - signal[d] / (level + 1) ** 2
        return -gain / math.log1p(1 / level), d

    offers = [offer(d) for d, s in enumerate(signal) if s > 0]
    heapify(offers)
    while offers:
        _, d = heappop(offers)
        price = math.log1p(1 / levels[d])
        if price > left:
            continue  # and so it will be: what is left only shrinks
        left -= price
        levels[d] += 1
        if levels[d] < MOST_LEVELS:
            heappush(offers, offer(d))
    return levels


def _lloyd(x: Float[Tensor, " N"], level: int) -> Float[Tensor, " L"]:
    """Return up to ``level`` different values, ascending, that are near to the data's."""
    middles = (torch.arange(level, device=x.device, dtype=x.dtype) + 0.5) / level
    values = torch.unique(torch.quantile(x[:: max(1, len(x) // 2**20)], middles))
    for _ in range(_LLOYD_ITERATIONS):
        nearest = torch.searchsorted((values[1:] + values[:-1]) / 2, x)
        counts = torch.bincount(nearest, minlength=len(values))
        sums = torch.bincount(nearest, weights=x, minlength=len(values))
        moved = (sums / counts)[counts > 0]  # a value that is nearest to nothing is no code
        if torch.equal(moved, values):
            break
        values = moved
    return torch.unique(values.float()).to(x.dtype)
