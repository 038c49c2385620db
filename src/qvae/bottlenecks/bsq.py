"""Binary spherical quantization: signs of a vector on the unit sphere."""

import math

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from qvae.bottlenecks.estimators import straight_through
from qvae.bottlenecks.signs import SignQuantizer
from qvae.types import Latent

__all__ = ["BSQ"]


class BSQ(SignQuantizer):
    """Put each vector on the unit sphere and replace it by the nearest corner of the cube in it.

    Paper: Zhao et al. 2024, arXiv:2406.07548, section 3.2: ``u = z_e / ||z_e||``,
    ``u_hat = sign(u) / sqrt(L)`` (equation 4); the error is bounded, so nothing commits the
    encoder. The loss gets ``E[H(q)] - gamma H(E[q])`` (equation 7) with q a product of coins
    (equations 8-9). Ours differs: ``H(E[q])`` is exact within groups of coordinates, the paper's
    is that of single ones; a constant is added that makes it positive; sphere and cube are larger
    by ``sqrt(L)``, so that corners are -1 and 1 and the temperature means what it does for
    ``lfq``; and the vectors are whitened first, see
    :class:`~qvae.bottlenecks.signs.SignQuantizer`.

    Shapes: ``z_e [B, *G, dim]``; ``codes [B, *G, 1]``. Units: rate = cells *
    dim * ln 2, penalty in nats.

    Args:
        dim: number of coordinates L, 1 to 62: there are 2^dim codes.
        entropy_weight: weight of both entropies, >= 0.
        gamma: weight of the batch's entropy against that of each vector, >= 0. The papers' 1
            stands beside a mean squared error; beside a likelihood in nats it says nothing.
        temperature: of the soft choice, > 0.
        group_bits: coordinates whose joint use is measured, 1 to 12, drawn anew each step.
        whitening: by mean and one spread of the ``start``, by ``running`` moments, or ``none``.
        evenness: what ``gamma`` weighs, ``entropy`` or ``coverage``; the latter lets frequent
            codes be, see :func:`~qvae.bottlenecks.terms.uncovered`.

    Raises:
        ValueError: for a number outside its range.

    Example:
        >>> import torch
        >>> BSQ(dim=4).decode(torch.tensor([[1]])).tolist()
        [[1.0, -1.0, -1.0, -1.0]]
    """

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Quantise, with a gradient that turns the whitened vector and keeps its length."""
        w, codes, corners = self._quantise(z_e, mask)
        u = F.normalize(w, dim=-1) * math.sqrt(self.in_dim)
        z = self.moments.colour(straight_through(u, corners)).to(z_e.dtype)
        return self._latent(z, codes, mask=mask, terms=self._entropy_terms(u, mask))
