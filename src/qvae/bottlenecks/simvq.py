"""A frozen random table behind a learned linear map: moving the map moves every code."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from qvae.bottlenecks.estimators import Estimator, require_estimator, select_estimator
from qvae.bottlenecks.functional import all_reduce_sum, in_backward
from qvae.bottlenecks.table import TableQuantizer
from qvae.bottlenecks.terms import commitment
from qvae.types import Latent

__all__ = ["SimVQ"]


class SimVQ(TableQuantizer):
    """Replace each vector by the nearest row of ``C W + b``; C is frozen, W and b are learned.

    Paper: Zhu et al. 2024, arXiv:2411.02038, section 3.3, equation 6:
    ``||sg(z_e) - e W||^2 + commitment_weight * ||z_e - sg(e W)||^2``. A step for one code moves
    the map, hence all of them, so none is left behind. Ours differs: at the first step W and b
    are set so that the table has the mean and the covariance of the first vectors.

    Shapes: ``z_e [B, *G, dim]``; ``codes [B, *G, 1]``. Units: rate = cells * ln V, penalty in
    squared distance.

    Args:
        codebook_size: number of codes V, >= 1.
        dim: width of a code, >= 1.
        commitment_weight: weight of the second term, >= 0.
        estimator: how the gradient passes the choice, ``straight_through`` or ``rotation``.

    Raises:
        ValueError: for a size below 1, a negative weight, or an unknown estimator.

    Example:
        >>> vq = SimVQ(codebook_size=4, dim=2)
        >>> vq(torch.randn(8, 3, 2)).codes.shape, [name for name, _ in vq.named_parameters()]
        (torch.Size([8, 3, 1]), ['codebook_map.weight', 'codebook_map.bias'])
    """

    codebook: Tensor
    is_initialized: Tensor
    staged_moments: Tensor

    def __init__(
        self,
        *,
        codebook_size: int = 512,
        dim: int = 32,
        commitment_weight: float = 0.25,
        estimator: Estimator = "straight_through",
    ) -> None:
        super().__init__(codebook_size=codebook_size, dim=dim, commitment_weight=commitment_weight)
        require_estimator(estimator)
        self.estimator = estimator
        self.register_buffer("codebook", torch.randn(codebook_size, dim))
        self.codebook_map = nn.Linear(dim, dim)
        with torch.no_grad():
            self.codebook_map.weight.copy_(torch.eye(dim))
            self.codebook_map.bias.zero_()
        self.register_buffer("is_initialized", torch.zeros((), dtype=torch.bool))
        # Sum of (1, z)(1, z)^T of the vectors of the first step: count, sums and products.
        self.register_buffer("staged_moments", torch.zeros(dim + 1, dim + 1), persistent=False)

    @property
    def table(self) -> Float[Tensor, "V D"]:
        """The mapped rows, with the gradient of the map; float32 under any autocast."""
        with torch.autocast(self.codebook.device.type, enabled=False):
            rows: Tensor = self.codebook_map(self.codebook)
        return rows

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Quantise, with the gradient of the estimator."""
        z, codes, z_q = self._quantise(z_e)
        if self.training and not self.is_initialized and not in_backward():
            self._stage(z.detach().float()[... if mask is None else mask])
        terms: dict[str, tuple[float | Tensor, Tensor]] = {
            "codebook_loss": (1.0, commitment(z_q, z)),
            "commitment": (self.commitment_weight, commitment(z, z_q)),
        }
        z_q = select_estimator(self.estimator, z_e, z_q)
        return self._latent(z_q, codes, mask=mask, terms=terms)

    def _stage(self, vectors: Tensor) -> None:
        vectors = vectors.reshape(-1, self.in_dim)
        vectors = vectors[vectors.isfinite().all(1)]
        rows = torch.cat([vectors.new_ones(len(vectors), 1), vectors], dim=1)
        self.staged_moments += rows.T @ rows

    @torch.no_grad()
    def after_step(self) -> None:
        """At the first step, give the table the moments of the vectors."""
        if self.is_initialized:
            return
        moments = all_reduce_sum(self.staged_moments).double()
        if moments[0, 0] > 1:
            mean = moments[0, 1:] / moments[0, 0]
            covariance = moments[1:, 1:] / moments[0, 0] - torch.outer(mean, mean)
            values, axes = torch.linalg.eigh(covariance)
            root = axes * values.clamp(min=1e-12).sqrt() @ axes.T
            self.codebook_map.weight.copy_(root)
            self.codebook_map.bias.copy_(mean)
            self.is_initialized.fill_(True)
        self.discard_step()

    def discard_step(self) -> None:
        """Drop the moments."""
        self.staged_moments.zero_()
