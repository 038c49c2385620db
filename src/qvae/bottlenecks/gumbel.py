"""A stochastic choice among the rows of a table, with the Gumbel-softmax gradient."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from qvae.bottlenecks.base import require_above_zero
from qvae.bottlenecks.kept_table import KeptTable
from qvae.bottlenecks.soft import soft_choice
from qvae.bottlenecks.terms import commitment
from qvae.kernels import nearest
from qvae.types import Latent

__all__ = ["Gumbel"]


class Gumbel(KeptTable):
    """Draw a code from a softmax over the table; the rate is a true KL.

    Paper: Jang et al. 2016, arXiv:1611.01144, equations 1-2, with the straight-through draw of
    its section 2.2: ``z = onehot(k) + y - sg(y)`` times the table, y the Gumbel-softmax of the
    same noise; the discrete VAE is Ramesh et al. 2021, arXiv:2102.12092, section 2.1, whose KL to
    a uniform prior is ``ln V - H(q)``. Ours differs: the logits are
    ``-precision ||z_e - e||^2 / 2`` with one learned precision (as in SQ-VAE, Takida et al. 2022,
    arXiv:2205.07547, section 3) and not V outputs of the encoder, so that a code is its own most
    likely choice; the temperature stays; the table starts at k-means centres and dead codes are
    revived (:class:`~qvae.bottlenecks.kept_table.KeptTable`).

    In training the code is drawn and the rate is ``ln V - H(q)``. In evaluation it is the nearest
    row, a choice without noise, and the rate is ``ln V``.

    Shapes: ``z_e [B, *G, dim]``; ``codes [B, *G, 1]``. Units: rate in nats, penalty in squared
    distance.

    Args:
        codebook_size: number of codes V, >= 1.
        dim: width of a code, >= 1.
        commitment_weight: weight of ``||z_e - sg(e)||^2`` for the code drawn, >= 0.
        temperature: of the relaxed draw y, > 0: low is less biased, high is less noisy.
        revival: whether codes that fell out of use are set to fresh vectors.

    Raises:
        ValueError: for a size below 1, a negative weight, a temperature of 0.

    Example:
        >>> gumbel = Gumbel(codebook_size=4, dim=2)
        >>> z_e = torch.zeros(1, 2)
        >>> bool(gumbel(z_e).rate < gumbel.nats_per_cell), round(gumbel.eval()(z_e).rate.item(), 3)
        (True, 1.386)
    """

    def __init__(
        self,
        *,
        codebook_size: int = 512,
        dim: int = 32,
        commitment_weight: float = 0.0,
        temperature: float = 1.0,
        revival: bool = True,
    ) -> None:
        super().__init__(
            codebook_size=codebook_size,
            dim=dim,
            commitment_weight=commitment_weight,
            revival=revival,
        )
        require_above_zero(temperature=temperature)
        self.temperature = temperature
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))
        self.log_precision = nn.Parameter(torch.zeros(()))

    @property
    def has_fixed_rate(self) -> bool:
        """False: it is the KL of a softmax."""
        return False

    def _initialize(self, vectors: Float[Tensor, "N D"], step_count: float) -> None:
        """Start the precision at what the distances to the centres say of it."""
        super()._initialize(vectors, step_count)
        errors = (vectors - self.codebook[nearest(vectors, self.codebook)]).square().mean()
        self.log_precision.data.copy_(-errors.clamp(min=1e-6).log())

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Draw in training, and count for ``after_step``; choose the nearest in evaluation."""
        if not self.training:
            z, codes, z_q = self._quantise(z_e)
            to_encoder = commitment(z, z_q)
            terms = {"commitment": (self.commitment_weight * self.is_initialized, to_encoder)}
            return self._latent(z_q.to(z_e.dtype), codes, mask=mask, terms=terms)
        self.check_vectors(z_e)
        cells = z_e.shape[:-1]
        choice = soft_choice(
            z_e.reshape(-1, self.in_dim),
            self.codebook,
            precision=self.log_precision.exp(),
            temperature=self.temperature,
        )
        assert choice.codes is not None
        codes = choice.codes.view(*cells, 1)
        z_q = F.embedding(codes[..., 0], self.codebook)
        to_encoder = commitment(z_e, z_q)
        self._count(z_e, codes, to_encoder, mask)
        z_q = z_q + (choice.mean - choice.mean.detach()).view_as(z_q)  # plus exactly 0
        # A draw may be less certain than uniform by a rounding only.
        rate = (self.nats_per_cell - choice.entropy).clamp(min=0).view(cells)
        terms = {"commitment": (self.commitment_weight * self.is_initialized, to_encoder)}
        return self._latent(z_q.to(z_e.dtype), codes, mask=mask, terms=terms, rate=rate)
