"""A frozen table behind a learned linear map: moving the map moves every code."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from qvae.bottlenecks.estimators import Estimator, require_estimator, select_estimator
from qvae.bottlenecks.functional import all_reduce_sum
from qvae.bottlenecks.kept_table import KeptTable
from qvae.bottlenecks.terms import commitment
from qvae.types import Latent

__all__ = ["SimVQ"]


class SimVQ(KeptTable):
    """Replace each vector by the nearest row of a linearly mapped table.

    Paper: Zhu et al. 2024, arXiv:2411.02038, section 3.3, equation 6:
    ``||sg(z_e) - e W||^2 + commitment_weight * ||z_e - sg(e W)||^2``; the table e is frozen and W
    is learned. A step for one code moves the map, hence all of them, so none is left behind. Ours
    differs: the map is ``mean + e W R``, where mean and ``R^2`` are running mean and covariance of
    the vectors, so that codes grow and turn with the encoder at once, and W, first the identity,
    learns what is left. And e is no random cloud: it starts at k-means centres, and rows that
    fall out of use are placed anew (:class:`~qvae.bottlenecks.kept_table.KeptTable`); gradients
    never touch it.

    Shapes: ``z_e [B, *G, dim]``; ``codes [B, *G, 1]``. Units: rate = cells * ln V, penalty in
    squared distance.

    Args:
        codebook_size: number of codes V, >= 1.
        dim: width of a code, >= 1.
        commitment_weight: weight of the second term, >= 0.
        revival: whether codes that fell out of use are set to fresh vectors.
        estimator: how the gradient passes the choice, ``straight_through`` or ``rotation``.

    Raises:
        ValueError: for a size below 1, a negative weight, or an unknown estimator.

    Example:
        >>> vq = SimVQ(codebook_size=4, dim=2)
        >>> vq(torch.randn(8, 3, 2)).codes.shape, [name for name, _ in vq.named_parameters()]
        (torch.Size([8, 3, 1]), ['codebook_map'])
    """

    mean: Tensor
    root: Tensor
    ema_moments: Tensor
    staged_moments: Tensor

    def __init__(
        self,
        *,
        codebook_size: int = 512,
        dim: int = 32,
        commitment_weight: float = 0.25,
        revival: bool = True,
        estimator: Estimator = "straight_through",
    ) -> None:
        super().__init__(
            codebook_size=codebook_size,
            dim=dim,
            commitment_weight=commitment_weight,
            revival=revival,
        )
        require_estimator(estimator)
        self.estimator = estimator
        self.register_buffer("codebook", torch.randn(codebook_size, dim))
        self.codebook_map = nn.Parameter(torch.eye(dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("root", torch.eye(dim))
        # Sums of (1, z)(1, z)^T: count, sums and products; a running mean, and this step's.
        moments = torch.zeros(dim + 1, dim + 1)
        self.register_buffer("ema_moments", moments)
        self.register_buffer("staged_moments", moments.clone(), persistent=False)

    @property
    def table(self) -> Float[Tensor, "V D"]:
        """The mapped rows, with the gradient of the map; float32 under any autocast."""
        with torch.autocast(self.codebook.device.type, enabled=False):
            return self.mean + self.codebook @ (self.codebook_map @ self.root)

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Quantise, with the gradient of the estimator."""
        z, codes, z_q = self._quantise(z_e)
        to_encoder = commitment(z, z_q)
        self._count(z, codes, to_encoder, mask)
        started = self.is_initialized  # nothing is pulled together before
        terms: dict[str, tuple[float | Tensor, Tensor]] = {
            "codebook_loss": (1.0 * started, commitment(z_q, z)),
            "commitment": (self.commitment_weight * started, to_encoder),
        }
        z_q = select_estimator(self.estimator, z_e, z_q)
        return self._latent(z_q, codes, mask=mask, terms=terms)

    def _stage(self, vectors: Tensor, codes: Tensor, errors: Tensor) -> None:
        super()._stage(vectors, codes, errors)
        self.staged_moments += _moments(vectors)

    def discard_step(self) -> None:
        """Drop the counts."""
        super().discard_step()
        self.staged_moments.zero_()

    def _reduce(self) -> None:
        all_reduce_sum(self.staged_moments)

    def _update(self) -> None:
        """Let mean and covariance of the table follow the vectors."""
        self.ema_moments.lerp_(self.staged_moments, 1 - self.usage_decay)
        self._follow()

    def _initialize(self, vectors: Tensor, step_count: float) -> None:
        self.ema_moments.copy_(_moments(vectors) * (step_count / len(vectors)))
        self._follow()
        super()._initialize(vectors, step_count)

    def _set_rows(self, rows: Tensor, vectors: Tensor, counts: Tensor) -> None:
        """Set rows to what the map takes to the vectors."""
        inverse = torch.linalg.inv((self.codebook_map @ self.root).cpu().double())
        super()._set_rows(rows, (vectors - self.mean) @ inverse.to(vectors), counts)

    def _follow(self) -> None:
        exact = self.ema_moments.cpu().double()  # small, and not every device has float64
        mean = exact[0, 1:] / exact[0, 0]
        covariance = exact[1:, 1:] / exact[0, 0] - torch.outer(mean, mean)
        values, axes = torch.linalg.eigh(covariance)
        smallest = 1e-6 * values.max().clamp(min=1e-6)  # the map can be turned round
        self.mean.copy_(mean)
        self.root.copy_(axes * values.clamp(min=smallest).sqrt() @ axes.T)


def _moments(vectors: Float[Tensor, "N D"]) -> Float[Tensor, "D1 D1"]:
    rows = torch.cat([vectors.new_ones(len(vectors), 1), vectors], dim=1)
    return rows.T @ rows
