"""Finite scalar quantization: round each coordinate; there is no table to learn."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qvae.bottlenecks.base import Quantizer, require_levels, require_not_negative
from qvae.bottlenecks.estimators import stop_outward, straight_through
from qvae.bottlenecks.terms import Evenness, require_evenness, unused_pairs
from qvae.types import Latent

__all__ = ["FSQ"]

_MOST_LEVELS = 2**16  # with millions a bin near the ends is narrower than a float32 can say


class FSQ(Quantizer):
    """Round each latent coordinate to a fixed number of levels.

    Paper: Mentzer et al. 2023, arXiv:2309.15505, section 3, equations 1-2. Ours differs: a
    coordinate falls into one of L equal bins of ``tanh(z)`` and comes back as the z whose tanh is
    the bin's middle, ``atanh((2 i + 1) / L - 1)``. So a code decoded and encoded again is itself,
    and even numbers of levels need no shift. Beyond the outermost value a step outwards changes
    nothing: a gradient that asks for one is stopped, and a penalty leads the encoder back. All
    other gradients are the straight-through estimator's, exactly ones. And where many codes must
    be in use soon, ``unused_weight`` asks for it, as the entropy terms of LFQ do
    (arXiv:2310.05737, equation 5, second term): the paper has no such term.

    Shapes: ``z_e [B, *G, D]``, ``D = len(levels)``; ``codes [B, *G, 1]``, the digits as one
    number, the first digit lowest. Units: rate = cells * sum(ln L).

    Args:
        levels: values per coordinate, each 2 to 65,536; their product is the codebook's size.
        overshoot_weight: weight of the squared distance beyond the outermost value, >= 0.
        unused_weight: weight of how unevenly a batch uses pairs of digits, in nats a cell
            (:func:`~qvae.bottlenecks.terms.unused_pairs`), >= 0.
        evenness: what ``unused_weight`` weighs, ``entropy`` or ``coverage``; the latter lets
            frequent codes be, see :func:`~qvae.bottlenecks.terms.uncovered`.

    Raises:
        ValueError: if levels is empty, one is out of its range, or the product exceeds 2**62.

    Example:
        >>> FSQ(levels=[8, 5, 5, 5]).codebook_sizes
        (1000,)
    """

    levels: Tensor
    strides: Tensor
    outermost: Tensor

    def __init__(
        self,
        *,
        levels: Sequence[int] = (8, 8, 8),
        overshoot_weight: float = 1.0,
        unused_weight: float = 0.0,
        evenness: Evenness = "entropy",
    ) -> None:
        super().__init__()
        rule = f"needs at least one, each a whole number from 2 to {_MOST_LEVELS}, product <= 2**62"
        require_levels(levels, rule, least=2, most=_MOST_LEVELS)
        if not levels or math.prod(levels) > 2**62:
            raise ValueError(f"levels={levels!r}: {rule}")
        require_not_negative(overshoot_weight=overshoot_weight, unused_weight=unused_weight)
        require_evenness(evenness)
        self.in_dim = self.out_dim = len(levels)
        self.sizes, self.codebook_sizes = tuple(levels), (math.prod(levels),)
        self.overshoot_weight, self.unused_weight = overshoot_weight, unused_weight
        self.evenness: Evenness = evenness
        strides = [math.prod(levels[:d]) for d in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)
        outermost = torch.atanh(1 - 1 / self.levels.double()).float()
        self.register_buffer("outermost", outermost, persistent=False)

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Quantise, with the gradient of the straight-through estimator."""
        codes = self.encode(z_e)
        overshoot = (z_e.float().abs() - self.outermost).relu().square().sum(-1)
        z = straight_through(stop_outward(z_e, self.outermost), self._middles(codes))
        terms: dict[str, tuple[float | Tensor, Tensor]] = {
            "overshoot": (self.overshoot_weight, overshoot)
        }
        if self.training and self.unused_weight:  # it speaks of a batch, an evaluation must not
            unused = unused_pairs(self._choices(z_e), mask, evenness=self.evenness)
            terms["unused_entropy"] = (self.unused_weight, unused)
        return self._latent(z, codes, mask=mask, terms=terms)

    def encode(self, z_e: Float[Tensor, "*N in_dim"]) -> Int[Tensor, "*N K"]:
        """Return each vector's digits as one number."""
        self.check_vectors(z_e)
        unit = (torch.tanh(z_e.detach().float()) + 1) / 2
        # A NaN has no digit; the loop refuses the step, here it only must not be undefined.
        digits = torch.nan_to_num(unit * self.levels).floor().long()
        digits = torch.minimum(digits.clamp(min=0), self.levels - 1)
        return (digits * self.strides).sum(-1, keepdim=True)

    def decode(self, codes: Int[Tensor, "*N K"]) -> Float[Tensor, "*N out_dim"]:
        """Return each code's bin middles."""
        self.check_codes(codes)
        return self._middles(codes)

    @property
    def code_facts(self) -> dict[str, Any]:
        """Also the levels, in their order."""
        return {**super().code_facts, "levels": [int(size) for size in self.sizes]}

    def _choices(self, z_e: Float[Tensor, "*N D"]) -> list[Float[Tensor, "*N _"]]:
        """Soft digits of each coordinate, a Gaussian of half a bin's width around ``tanh(z)``."""
        found = []
        for unit, num in zip(torch.tanh(z_e.float()).unbind(-1), self.sizes, strict=True):
            bins = torch.arange(num, device=z_e.device) + 0.5
            place = (unit + 1) / 2 * num
            found.append(torch.softmax(-2 * (place[..., None] - bins).square(), dim=-1))
        return found

    def _middles(self, codes: Int[Tensor, "*N K"]) -> Float[Tensor, "*N out_dim"]:
        digits = codes // self.strides % self.levels
        return torch.atanh((2 * digits.double() + 1) / self.levels - 1).float()
