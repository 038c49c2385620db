"""Lookup-free quantization: the code is the signs, and entropy keeps all of them in use."""

from jaxtyping import Bool, Float
from torch import Tensor

from qvae.bottlenecks.base import require_not_negative
from qvae.bottlenecks.estimators import stop_outward, straight_through
from qvae.bottlenecks.signs import SignQuantizer, Whitening
from qvae.bottlenecks.terms import Evenness, commitment
from qvae.types import Latent

__all__ = ["LFQ"]


class LFQ(SignQuantizer):
    """Replace each coordinate by its sign, -1 or 1, in units of its spread.

    Paper: Yu et al. 2023 (MAGVIT-v2), arXiv:2310.05737, section 3.1: ``q(z_i) = sign(z_i)``, the
    code is ``sum 2^i [z_i > 0]`` (equation 4), and the loss gets ``E[H(q)] - H(E[q])`` (equation
    5) and a commitment term. Ours differs: q factorises into coins, so ``H(q)`` is a sum over
    coordinates, exactly; ``H(E[q])`` is exact within groups of coordinates and summed over them,
    so memory does not grow with 2^dim; ``dim * ln 2 - H(E[q])`` is added in its place, the same
    but for a constant; beyond 1 a gradient that asks for a step outwards is stopped, as in
    ``fsq``, or signs would get stuck; and signs are those of whitened coordinates, see
    :class:`~qvae.bottlenecks.signs.SignQuantizer`.

    Shapes: ``z_e [B, *G, dim]``; ``codes [B, *G, 1]``. Units: rate = cells * dim * ln 2, penalty
    in nats and squared distance after whitening.

    Args:
        dim: number of coordinates, 1 to 62: there are 2^dim codes.
        commitment_weight: weight of ``||w - sg(sign w)||^2``, w whitened, >= 0. It leads each
            vector to the corner that it has, so signs stay what they were at random: 0 is better.
        entropy_weight: weight of both entropies, >= 0.
        gamma: weight of the batch's entropy against that of each vector, >= 0. The papers' 1
            stands beside a mean squared error; beside a likelihood in nats it says nothing.
        temperature: of the soft choice, > 0; at 1 a coordinate of 1 is certain to 98 %.
        group_bits: coordinates whose joint use is measured, 1 to 12, drawn anew each step.
        whitening: by mean and one spread of the ``start``, by ``running`` moments, or ``none``.
        evenness: what ``gamma`` weighs, ``entropy`` or ``coverage``; the latter lets frequent
            codes be, see :func:`~qvae.bottlenecks.terms.uncovered`.

    Raises:
        ValueError: for a number outside its range.

    Example:
        >>> import torch
        >>> LFQ(dim=3).encode(torch.tensor([[0.5, -0.2, 7.0]])).tolist()
        [[5]]
    """

    def __init__(
        self,
        *,
        dim: int = 9,
        commitment_weight: float = 0.0,
        entropy_weight: float = 0.05,
        gamma: float = 20.0,
        temperature: float = 1.0,
        group_bits: int = 8,
        whitening: Whitening = "start",
        evenness: Evenness = "coverage",
    ) -> None:
        super().__init__(
            dim=dim,
            entropy_weight=entropy_weight,
            gamma=gamma,
            temperature=temperature,
            group_bits=group_bits,
            whitening=whitening,
            evenness=evenness,
        )
        require_not_negative(commitment_weight=commitment_weight)
        self.commitment_weight = commitment_weight

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Quantise, with the gradient of the straight-through estimator."""
        w, codes, corners = self._quantise(z_e, mask)
        terms = self._entropy_terms(w, mask)
        terms["commitment"] = (self.commitment_weight, commitment(w, corners))
        w_q = straight_through(stop_outward(w, w.new_ones(())), corners)
        z = self.moments.colour(w_q).to(z_e.dtype)
        return self._latent(z, codes, mask=mask, terms=terms)
