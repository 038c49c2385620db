"""The VQ-VAE's quantizer with a codebook trained by gradient."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from qvae.bottlenecks.base import Quantizer, require_finite, require_positive
from qvae.bottlenecks.functional import (
    code_counts,
    commitment,
    perplexity,
    straight_through,
    sum_per_sample,
    usage,
)
from qvae.kernels import nearest
from qvae.types import Latent

__all__ = ["VQ"]


class VQ(Quantizer):
    """Replace each vector by the nearest row of a learned table.

    Paper: van den Oord et al. 2017, arXiv:1711.00937, equations 1-3. The codebook term
    ``||sg(z_e) - e||^2`` trains the table, the commitment term ``||z_e - sg(e)||^2`` the encoder,
    the straight-through estimator carries the decoder's gradient. Ours differs: both terms are
    sums over dimensions and cells (nats per sample, like the likelihood), not means.

    Shapes: ``z_e [B, *G, dim]``; ``codes [B, *G, 1]``. Units: rate = cells * ln V.

    Args:
        codebook_size: number of codes V, >= 1.
        dim: width of a code, >= 1.
        commitment_weight: weight of the commitment term, >= 0 (the paper's beta, 0.25).

    Raises:
        ValueError: for a size below 1 or a negative weight.

    Example:
        >>> latent = VQ(codebook_size=4, dim=2)(torch.zeros(1, 3, 2))
        >>> latent.codes.shape, round(latent.rate.item(), 3)
        (torch.Size([1, 3, 1]), 4.159)
    """

    def __init__(self, *, codebook_size: int, dim: int, commitment_weight: float = 0.25) -> None:
        super().__init__()
        require_positive(codebook_size=codebook_size, dim=dim)
        if commitment_weight < 0:
            raise ValueError(f"commitment_weight={commitment_weight}: must not be negative")
        self.in_dim = self.out_dim = dim
        self.codebook_sizes = (codebook_size,)
        self.commitment_weight = commitment_weight
        # The initialisation of the paper's reference code: small, so that codes start alike.
        bound = 1.0 / codebook_size
        self.codebook = nn.Parameter(torch.empty(codebook_size, dim).uniform_(-bound, bound))

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Quantise, with the gradient of the straight-through estimator."""
        codes = self.encode(z_e)
        z_q = F.embedding(codes[..., 0], self.codebook)
        # The same number twice, but its gradient goes to the table, then to the encoder.
        to_codebook, to_encoder = commitment(z_q, z_e), commitment(z_e, z_q)
        penalty = to_codebook + self.commitment_weight * to_encoder
        cells = torch.full_like(penalty, self.nats_per_cell)
        counted = codes[..., 0] if mask is None else codes[..., 0][mask]
        counts = code_counts(counted.detach().flatten(), self.codebook_sizes[0])
        return Latent(
            z=straight_through(z_e, z_q),
            rate=sum_per_sample(cells, mask),
            penalty=sum_per_sample(penalty, mask),
            codes=codes,
            metrics={
                "codebook_loss": sum_per_sample(to_codebook, mask).detach().mean(),
                "usage": usage(counts),
                "perplexity": perplexity(counts),
            },
        )

    def encode(self, z_e: Float[Tensor, "*N in_dim"]) -> Int[Tensor, "*N K"]:
        """Return the index of the nearest code."""
        if not self.training:
            require_finite(z_e, "VQ")
        return nearest(z_e.reshape(-1, self.in_dim), self.codebook).view(*z_e.shape[:-1], 1)

    def decode(self, codes: Int[Tensor, "*N K"]) -> Float[Tensor, "*N out_dim"]:
        """Look the codes up."""
        self.check_codes(codes)
        return F.embedding(codes[..., 0], self.codebook)
