"""The VQ-VAE's quantizer with a codebook trained by gradient."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from qvae.bottlenecks.base import require_not_negative
from qvae.bottlenecks.estimators import Estimator, require_estimator, select_estimator
from qvae.bottlenecks.table import TableQuantizer
from qvae.bottlenecks.terms import commitment, orthogonality
from qvae.types import Latent

__all__ = ["VQ"]


class VQ(TableQuantizer):
    """Replace each vector by the nearest row of a table.

    Paper: van den Oord et al. 2017, arXiv:1711.00937, equations 2-3:
    ``||sg(z_e) - e||^2 + commitment_weight * ||z_e - sg(e)||^2``, summed over dimensions and
    cells. Ours differs: the terms are sums like the likelihood, not means. This is the paper's
    plain table, which tends to use few of its codes when it is large; ``vq_ema`` has the cure.

    Shapes: ``z_e [B, *G, dim]``; ``codes [B, *G, 1]``. Units: rate = cells * ln V, penalty in
    squared distance.

    Args:
        codebook_size: number of codes V, >= 1.
        dim: width of a code, >= 1.
        commitment_weight: weight of the second term, >= 0 (the paper's beta).
        orthogonal_weight: weight of the mean squared cosine between rows, a cell, >= 0.
        estimator: how the gradient passes the choice, ``straight_through`` or ``rotation``.

    Raises:
        ValueError: if a size is below 1, a weight negative, or the estimator unknown.

    Example:
        >>> latent = VQ(codebook_size=4, dim=2)(torch.zeros(1, 3, 2))
        >>> latent.codes.shape, round(latent.rate.item(), 3)
        (torch.Size([1, 3, 1]), 4.159)
    """

    def __init__(
        self,
        *,
        codebook_size: int = 512,
        dim: int = 64,
        commitment_weight: float = 0.25,
        orthogonal_weight: float = 0.0,
        estimator: Estimator = "straight_through",
    ) -> None:
        super().__init__(codebook_size=codebook_size, dim=dim, commitment_weight=commitment_weight)
        require_not_negative(orthogonal_weight=orthogonal_weight)
        require_estimator(estimator)
        self.orthogonal_weight, self.estimator = orthogonal_weight, estimator
        # The initialisation of the paper's reference code: small, so that codes start alike.
        bound = 1.0 / codebook_size
        self.codebook = nn.Parameter(torch.empty(codebook_size, dim).uniform_(-bound, bound))

    @property
    def table(self) -> Float[Tensor, "V D"]:
        """The codebook."""
        return self.codebook

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Quantise, with the gradient of the estimator."""
        z, codes, z_q = self._quantise(z_e)
        # The same number twice, but its gradient goes to the table, then to the encoder.
        terms: dict[str, tuple[float | Tensor, Tensor]] = {
            "codebook_loss": (1.0, commitment(z_q, z)),
            "commitment": (self.commitment_weight, commitment(z, z_q)),
        }
        if self.orthogonal_weight:
            terms["orthogonality"] = (self.orthogonal_weight, orthogonality(self.codebook))
        z_q = select_estimator(self.estimator, z_e, z_q)
        return self._latent(z_q, codes, mask=mask, terms=terms)
