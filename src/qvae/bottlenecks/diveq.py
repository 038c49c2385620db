"""A table trained through the quantization error itself, with no auxiliary loss."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from qvae.bottlenecks.estimators import error_vector
from qvae.bottlenecks.kept_table import KeptTable
from qvae.bottlenecks.terms import commitment
from qvae.types import Latent

__all__ = ["DiVeQ"]


class DiVeQ(KeptTable):
    """Replace each vector by the nearest row; the loss's gradient is shared between both.

    Paper: Vali, Bäckström & Solin 2025, arXiv:2509.26469:
    ``z = z_e + ||e - z_e|| sg(d)``, d the direction from the vector to its code. What the decoder
    asks for along the error is the code's part, the rest the encoder's, so the table learns from
    the likelihood and needs no loss of its own. Ours differs: d has no noise, so that training
    and evaluation see the same numbers; the table starts at k-means centres and dead codes are
    revived, see :class:`~qvae.bottlenecks.kept_table.KeptTable`.

    Shapes: ``z_e [B, *G, dim]``; ``codes [B, *G, 1]``. Units: rate = cells * ln V, penalty in
    squared distance.

    Args:
        codebook_size: number of codes V, >= 1.
        dim: width of a code, >= 1.
        commitment_weight: weight of ``||z_e - sg(e)||^2``, >= 0; the paper has none.
        revival: whether codes that fell out of use are set to fresh vectors.

    Raises:
        ValueError: for a size below 1 or a negative weight.

    Example:
        >>> vq = DiVeQ(codebook_size=4, dim=2)
        >>> vq(torch.randn(8, 3, 2)).z.sum().backward()
        >>> bool(vq.codebook.grad.any())
        True
    """

    def __init__(
        self,
        *,
        codebook_size: int = 512,
        dim: int = 32,
        commitment_weight: float = 0.0,
        revival: bool = True,
    ) -> None:
        super().__init__(
            codebook_size=codebook_size,
            dim=dim,
            commitment_weight=commitment_weight,
            revival=revival,
        )
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Quantise; in training also count, for ``after_step``."""
        z, codes, z_q = self._quantise(z_e)
        to_encoder = commitment(z, z_q)
        self._count(z, codes, to_encoder, mask)
        terms = {"commitment": (self.commitment_weight * self.is_initialized, to_encoder)}
        return self._latent(error_vector(z_e, z_q), codes, mask=mask, terms=terms)
