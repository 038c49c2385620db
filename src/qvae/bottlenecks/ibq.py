"""Index backpropagation: every code of the table gets a gradient at every step."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from qvae.bottlenecks.base import require_above_zero, require_not_negative
from qvae.bottlenecks.kept_table import KeptTable
from qvae.bottlenecks.soft import soft_choice
from qvae.bottlenecks.terms import commitment, from_uniform
from qvae.types import Latent

__all__ = ["IBQ"]


class IBQ(KeptTable):
    """Replace each vector by the nearest row, and differentiate the choice as if it were soft.

    Paper: Shi et al. 2024, arXiv:2412.02692, section 3.2, equations 5-7: with ``p`` the softmax
    of a vector's affinity to all rows, ``Ind = onehot(argmax p) + p - sg(p)``, ``z = Ind^T E``;
    so all rows and not only the chosen one learn from the decoder. The loss adds codebook and
    commitment terms and an entropy term, ``H(p)`` small for each vector, ``H(mean p)`` large.
    Ours differs: affinity is ``-precision ||z - e||^2 / 2`` in the place of the scalar product,
    so that every code is its own nearest; the table starts at k-means centres and dead codes are
    revived (:class:`~qvae.bottlenecks.kept_table.KeptTable`); and the N by V matrices exist a
    tile at a time, computed again in the backward pass.

    Shapes: ``z_e [B, *G, dim]``; ``codes [B, *G, 1]``. Units: rate = cells * ln V, penalty in
    squared distance and nats.

    Args:
        codebook_size: number of codes V, >= 1.
        dim: width of a code, >= 1.
        commitment_weight: weight of ``||z_e - sg(e)||^2``, >= 0; ``||sg(z_e) - e||^2`` has 1.
        entropy_weight: weight of ``H(p) + ln V - H(mean p)``, >= 0; the second part is a
            batch's and is left out in evaluation.
        precision: of the softmax, > 0.
        revival: whether codes that fell out of use are set to fresh vectors.

    Raises:
        ValueError: for a size below 1, a negative weight, a precision of 0.

    Example:
        >>> vq = IBQ(codebook_size=4, dim=2)
        >>> vq(torch.randn(1, 1, 2)).z.sum().backward()
        >>> (vq.codebook.grad.abs().sum(1) > 0).tolist()  # one vector, and every code learns
        [True, True, True, True]
    """

    def __init__(
        self,
        *,
        codebook_size: int = 512,
        dim: int = 32,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.05,
        precision: float = 1.0,
        revival: bool = True,
    ) -> None:
        super().__init__(
            codebook_size=codebook_size,
            dim=dim,
            commitment_weight=commitment_weight,
            revival=revival,
        )
        require_not_negative(entropy_weight=entropy_weight)
        require_above_zero(precision=precision)
        self.entropy_weight, self.precision = entropy_weight, precision
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Quantise; in training also count, for ``after_step``."""
        z, codes, z_q = self._quantise(z_e)
        to_encoder = commitment(z, z_q)
        self._count(z, codes, to_encoder, mask)
        terms: dict[str, tuple[float | Tensor, Tensor]] = {
            "codebook_loss": (1.0, commitment(z_q, z)),
            "commitment": (self.commitment_weight * self.is_initialized, to_encoder),
        }
        if torch.is_grad_enabled() or self.entropy_weight:
            flat = None if mask is None else mask.reshape(-1)
            choice = soft_choice(
                z.reshape(-1, self.in_dim), self.codebook, precision=self.precision, mask=flat
            )
            z_q = z_q + (choice.mean - choice.mean.detach()).view_as(z_q)  # plus exactly 0
            terms["entropy"] = (self.entropy_weight, choice.entropy.view(to_encoder.shape))
            if self.training:
                terms["unused_entropy"] = (self.entropy_weight, from_uniform(choice.use))
        return self._latent(z_q.to(z_e.dtype), codes, mask=mask, terms=terms)
