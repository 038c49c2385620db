"""Quantizers that keep the sign of each coordinate: 2^dim codes and no table."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qvae.bottlenecks.base import Quantizer, require_finite, require_not_negative, require_positive
from qvae.bottlenecks.terms import bit_entropy, unused_entropy

__all__ = ["SignQuantizer"]


class SignQuantizer(Quantizer):
    """Code a vector by its signs; bit d of the code is set where coordinate d is positive.

    Args:
        dim: number of coordinates L, 1 to 62.
        entropy_weight: weight of ``H(q) + gamma (L ln 2 - H(mean q))``, >= 0.
        gamma: weight of the second part against the first, >= 0.
        temperature: of q, > 0.
        group_bits: coordinates whose joint use is measured, 1 to 12.
        radius: the size of a coordinate after quantisation.
    """

    bits: Tensor

    def __init__(
        self,
        *,
        dim: int,
        entropy_weight: float,
        gamma: float,
        temperature: float,
        group_bits: int,
        radius: float,
    ) -> None:
        super().__init__()
        require_positive(dim=dim, group_bits=group_bits)
        require_not_negative(entropy_weight=entropy_weight, gamma=gamma)
        if dim > 62:
            raise ValueError(f"dim={dim}: must be at most 62, so that a code fits in 64 bits")
        if group_bits > 12:
            raise ValueError(f"group_bits={group_bits}: must be at most 12, memory doubles a bit")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature}: must be above 0")
        self.in_dim = self.out_dim = dim
        self.codebook_sizes = (2**dim,)
        self.entropy_weight, self.gamma = entropy_weight, gamma
        self.temperature, self.group_bits = temperature, group_bits
        self.radius = radius
        self.register_buffer("bits", 2 ** torch.arange(dim), persistent=False)

    def encode(self, z_e: Float[Tensor, "*N in_dim"]) -> Int[Tensor, "*N K"]:
        """Return the signs as the bits of one number."""
        if not self.training:
            require_finite(z_e, type(self).__name__)
        return ((z_e.detach() > 0) * self.bits).sum(-1, keepdim=True)

    def decode(self, codes: Int[Tensor, "*N K"]) -> Float[Tensor, "*N out_dim"]:
        """Return the corner of each code."""
        self.check_codes(codes)
        return self._corners(codes)

    def _corners(self, codes: Int[Tensor, "*N K"]) -> Float[Tensor, "*N out_dim"]:
        return torch.where(codes // self.bits % 2 == 1, self.radius, -self.radius)

    def _entropy_terms(
        self, signs: Float[Tensor, "B *G D"], mask: Bool[Tensor, "B *G"] | None
    ) -> dict[str, tuple[float | Tensor, Tensor]]:
        """Return the entropy terms of vectors whose codes are corners of ``{-1, 1}^L``."""
        if not self.entropy_weight:
            return {}
        entropy, prob = bit_entropy(signs, temperature=self.temperature)
        terms: dict[str, tuple[float | Tensor, Tensor]] = {
            "entropy": (self.entropy_weight, entropy)
        }
        if self.training and self.gamma:  # it speaks of a batch, which an evaluation must not
            unused = unused_entropy(prob, mask, group_bits=self.group_bits)
            terms["unused_entropy"] = (self.entropy_weight * self.gamma, unused)
        return terms
