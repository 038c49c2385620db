"""Quantizers that keep the sign of each coordinate: 2^dim codes and no table."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qvae.bottlenecks.base import (
    Quantizer,
    require_above_zero,
    require_not_negative,
    require_positive,
)
from qvae.bottlenecks.moments import Moments
from qvae.bottlenecks.terms import Evenness, bit_entropy, require_evenness, unused_entropy

__all__ = ["SignQuantizer", "Whitening", "require_whitening"]

Whitening = Literal["running", "start", "none"]
"""Mean and covariance of recent vectors; mean and one spread of the first step's; or neither."""


def require_whitening(whitening: str) -> None:
    """Raise ValueError for a name that is no way to whiten."""
    if whitening not in ("running", "start", "none"):
        raise ValueError(f"whitening={whitening!r}: must be one of running, start, none")


class SignQuantizer(Quantizer):
    """Code a vector by the signs of its whitened coordinates: bit d is set where d is positive.

    With ``start`` the mean and one spread for all directions are taken off, those of the first
    step, for good: an encoder starts balanced, else one whose outputs lie on one side of 0 has one
    code for everything. From then on it may move its heaps away from the signs' borders. Codes are
    decoded to where the encoder's vectors are, ``mean + corner R``.

    ``running`` moments (:class:`~qvae.bottlenecks.moments.Moments`) keep every sign balanced and no
    two of them correlated, wherever the encoder drifts, which brings all codes into use. It has a
    price where many vectors are alike, as those of a white background are: the mean stays beside
    that heap, so that its own noise decides its signs; and a direction of small spread is a bit
    that the decoder hardly sees.

    Args:
        dim: number of coordinates L, 1 to 62.
        entropy_weight: weight of ``H(q) + gamma (L ln 2 - H(mean q))``, >= 0.
        gamma: weight of the second part against the first, >= 0.
        temperature: of q, > 0.
        group_bits: coordinates whose joint use is measured, 1 to 12; which go together is drawn
            anew each step, so that in time every pair meets.
        whitening: ``start``, ``running`` or ``none``.
        evenness: what ``gamma`` weighs: ``entropy`` as above, or ``coverage``, see
            :func:`~qvae.bottlenecks.terms.uncovered`.
    """

    bits: Tensor

    def __init__(
        self,
        *,
        dim: int = 9,
        entropy_weight: float = 0.05,
        gamma: float = 20.0,
        temperature: float = 1.0,
        group_bits: int = 8,
        whitening: Whitening = "start",
        evenness: Evenness = "coverage",
    ) -> None:
        super().__init__()
        require_positive(dim=dim, group_bits=group_bits)
        require_not_negative(entropy_weight=entropy_weight, gamma=gamma)
        if dim > 62:
            raise ValueError(f"dim={dim}: must be at most 62, so that a code fits in 64 bits")
        if group_bits > 12:
            raise ValueError(f"group_bits={group_bits}: must be at most 12, memory doubles a bit")
        require_above_zero(temperature=temperature)
        require_whitening(whitening)
        require_evenness(evenness)
        self.in_dim = self.out_dim = dim
        self.codebook_sizes = (2**dim,)
        self.entropy_weight, self.gamma = entropy_weight, gamma
        self.temperature, self.group_bits = temperature, group_bits
        self.whitening: Whitening = whitening
        self.evenness: Evenness = evenness
        self.moments = Moments(dim)
        self.register_buffer("bits", 2 ** torch.arange(dim), persistent=False)

    @property
    def is_started(self) -> Bool[Tensor, ""]:
        """Whether it knows the moments of its vectors, or needs none."""
        return self.moments.is_initialized | (self.whitening == "none")

    def after_step(self) -> None:
        """Let the moments follow the vectors, as far as they shall."""
        starts = not self.is_started
        if self.whitening == "running" or starts:
            self.moments.after_step()
        if self.whitening == "start" and starts and self.is_started:
            self.moments.make_round()
        self.moments.discard_step()

    def discard_step(self) -> None:
        """Drop what was counted."""
        self.moments.discard_step()

    def encode(self, z_e: Float[Tensor, "*N in_dim"]) -> Int[Tensor, "*N K"]:
        """Return the signs as the bits of one number."""
        self.check_vectors(z_e)
        return self._signs(self.moments.whiten(z_e))

    def decode(self, codes: Int[Tensor, "*N K"]) -> Float[Tensor, "*N out_dim"]:
        """Return the corner of each code, where the encoder's vectors are."""
        self.check_codes(codes)
        return self.moments.colour(self._corners(codes))

    def _quantise(
        self, z_e: Float[Tensor, "B *G D"], mask: Bool[Tensor, "B *G"] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return whitened vectors, their codes and corners; in training count, too."""
        self.check_vectors(z_e)
        if self.training and self.whitening != "none":
            self.moments.stage(z_e, mask)
        w = self.moments.whiten(z_e)
        codes = self._signs(w)
        return w, codes, self._corners(codes)

    def _signs(self, w: Float[Tensor, "*N D"]) -> Int[Tensor, "*N 1"]:
        return ((w.detach() > 0) * self.bits).sum(-1, keepdim=True)

    def _corners(self, codes: Int[Tensor, "*N 1"]) -> Float[Tensor, "*N D"]:
        return torch.where(codes // self.bits % 2 == 1, 1.0, -1.0)

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
            if self.in_dim > self.group_bits:
                prob = prob[..., torch.randperm(self.in_dim, device=prob.device)]
            unused = unused_entropy(prob, mask, group_bits=self.group_bits, evenness=self.evenness)
            terms["unused_entropy"] = (self.entropy_weight * self.gamma, unused)
        return terms
