"""Residual quantization: each level codes what the levels before it left over."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from qvae.bottlenecks.base import (
    require_above_zero,
    require_codes,
    require_not_negative,
    require_positive,
)
from qvae.bottlenecks.wrapper import Inner, Wrapper, build_inner, mean_metrics
from qvae.types import Latent

__all__ = ["Residual"]

_INNER = {"name": "vq_ema", "codebook_size": 512, "dim": 64}


class Residual(Wrapper):
    """Sum the codes of several quantizers, each of which sees the rest of the one before.

    Paper: Zeghidour et al. 2021 (SoundStream), arXiv:2107.03312, section III-C and algorithm 1,
    with its quantizer dropout. Ours differs: the quantizer may be any; a level's rest is
    ``z_e - sg(z of the levels before)``, so that each level's commitment reaches the encoder, and
    what each level hands back beyond the first's is taken off again, so that the gradient of
    ``z`` itself is that of one level: exactly ones for a straight-through quantizer. A level
    waits until the one before it has started, since its rests mean nothing earlier.

    Shapes: ``z_e [B, *G, D]``; ``codes [B, *G, num_quantizers]``, the coarse level first (times
    the inner quantizer's codebooks), of which ``decode`` takes any first levels. Units: rate and
    penalty are sums over levels.

    Args:
        num_quantizers: number of levels, >= 1.
        quantizer: of each level, a name and its arguments; D is its width.
        dropout_prob: share of samples that use only the first n levels in training, n drawn
            evenly: then any number of levels decodes to something. In [0, 1].
        growth: factor by which a rest is enlarged from level to level, > 0: 1 for a learned
            table and ``lfq``, about the number of levels a coordinate for ``fsq``.

    Raises:
        ValueError: for a number outside its range, or a quantizer that has no codes or returns
            vectors of another width than it takes.

    Example:
        >>> inner = {"name": "fsq", "levels": [4, 4]}
        >>> residual = Residual(num_quantizers=3, quantizer=inner, growth=4.0)
        >>> residual(torch.zeros(2, 5, 2)).codes.shape, residual.codebook_sizes
        (torch.Size([2, 5, 3]), (16, 16, 16))
        >>> residual.decode(torch.zeros(5, 1, dtype=torch.int64)).shape  # the first level alone
        torch.Size([5, 2])
    """

    def __init__(
        self,
        *,
        num_quantizers: int = 4,
        quantizer: Inner = _INNER,
        dropout_prob: float = 0.0,
        growth: float = 1.0,
    ) -> None:
        super().__init__()
        require_positive(num_quantizers=num_quantizers)
        require_not_negative(dropout_prob=dropout_prob)
        if dropout_prob > 1:
            raise ValueError(f"dropout_prob={dropout_prob}: must be in [0, 1]")
        require_above_zero(growth=growth)
        levels = [build_inner(quantizer) for _ in range(num_quantizers)]
        first = levels[0]
        if first.in_dim != first.out_dim:
            raise ValueError(
                f"quantizer={quantizer['name']!r}: takes {first.in_dim} numbers and returns "
                f"{first.out_dim}; a residual needs the same"
            )
        self.quantizers = nn.ModuleList(levels)
        self.in_dim = self.out_dim = first.in_dim
        self.codebook_sizes = first.codebook_sizes * num_quantizers
        self.num_levels = num_quantizers
        self.dropout_prob, self.growth = dropout_prob, growth

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Quantise level by level."""
        self.check_vectors(z_e)
        every = torch.ones(z_e.shape[:-1], dtype=torch.bool, device=z_e.device)
        used = self._num_used(len(z_e), z_e.device).view(-1, *[1] * (z_e.ndim - 2))
        rest = z_e.float()
        extra = rest - rest.detach()  # 0, with a gradient of one level
        z, latents = torch.zeros_like(rest), []
        for level, quantizer in enumerate(self._inner):
            keep = every & (used > level)
            counted = keep if mask is None else keep & mask
            # Not a call: masked vectors are 0 already, and what is dropped here keeps its codes.
            latent = quantizer.forward(rest * self._scale(level), counted)
            step = torch.where(keep[..., None], latent.z / self._scale(level), 0.0)
            z = z + step
            if level:
                z = z - torch.where(keep[..., None], extra, 0.0)
            rest = rest - step.detach()
            latents.append(latent)
            if self.training:
                every = every & quantizer.is_started
        found = [latent.metrics for latent in latents]
        metrics = mean_metrics(found)
        if "usage" in metrics:
            metrics |= {f"usage_{level}": item["usage"] for level, item in enumerate(found)}
        return Latent(
            z=z.to(z_e.dtype),
            rate=torch.stack([latent.rate for latent in latents]).sum(0),
            penalty=torch.stack([latent.penalty for latent in latents]).sum(0),
            codes=torch.cat([latent.codes for latent in latents if latent.codes is not None], -1),
            metrics=metrics,
        )

    def encode(self, z_e: Float[Tensor, "*N in_dim"]) -> Int[Tensor, "*N K"]:
        """Return the codes of all levels, the coarse one first."""
        self.check_vectors(z_e)
        rest, codes = z_e.float(), []
        for level, quantizer in enumerate(self._inner):
            found = quantizer.encode(rest * self._scale(level))
            rest = rest - quantizer.decode(found) / self._scale(level)
            codes.append(found)
        return torch.cat(codes, dim=-1)

    def decode(self, codes: Int[Tensor, "*N K"]) -> Float[Tensor, "*N out_dim"]:
        """Sum the levels' vectors: of all levels, or of as many first ones as there are codes of.

        Raises:
            ValueError: codes of no whole number of levels, of too many, or out of range.
        """
        self.check_codes(codes)
        parts = codes.split(len(self._inner[0].codebook_sizes), dim=-1)
        z = torch.zeros(*codes.shape[:-1], self.out_dim, device=codes.device)
        used = self._inner[: len(parts)]
        for level, (quantizer, part) in enumerate(zip(used, parts, strict=True)):
            z = z + quantizer.decode(part) / self._scale(level)
        return z

    def check_codes(self, codes: Int[Tensor, "*N K"]) -> None:
        """Raise ValueError for codes that are not those of the first levels, one or more."""
        each, num = len(self._inner[0].codebook_sizes), codes.shape[-1]
        if num % each or not each <= num <= len(self.codebook_sizes):
            raise ValueError(
                f"codes: last axis is {num}, must be {each} for each level, "
                f"of 1 to {self.num_levels} levels"
            )
        require_codes(codes, self.codebook_sizes[:num])

    @property
    def code_facts(self) -> dict[str, Any]:
        """Also the growth, which scales every level but the first."""
        return {**super().code_facts, "growth": self.growth}

    def _scale(self, level: int) -> float:
        return self.growth**level

    def _num_used(self, num: int, device: torch.device) -> Int[Tensor, " num"]:
        """Draw how many levels each sample uses; all of them outside training."""
        every = len(self.quantizers)
        used = torch.full((num,), every, device=device)
        if not self.training or not self.dropout_prob:
            return used
        is_dropped = torch.rand(num, device=device) < self.dropout_prob
        return torch.where(is_dropped, torch.randint(1, every + 1, (num,), device=device), used)
