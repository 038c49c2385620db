"""A frozen table behind a learned linear map: moving the map moves every code."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from qvae.bottlenecks.estimators import Estimator, require_estimator, select_estimator
from qvae.bottlenecks.kept_table import KeptTable
from qvae.bottlenecks.moments import Moments
from qvae.bottlenecks.terms import commitment
from qvae.types import Latent

__all__ = ["SimVQ"]

_HARDLY = 0.01  # of the map's largest stretch


class SimVQ(KeptTable):
    """Replace each vector by the nearest row of a linearly mapped table.

    Paper: Zhu et al. 2024, arXiv:2411.02038, section 3.3, equation 6:
    ``||sg(z_e) - e W||^2 + commitment_weight * ||z_e - sg(e W)||^2``; the table e is frozen and W
    is learned. A step for one code moves the map, hence all of them, so none is left behind. Ours
    differs: the map is ``mean + e W R``, where mean and ``R^2`` are running mean and covariance of
    the vectors (:class:`~qvae.bottlenecks.moments.Moments`), so that codes grow and turn with the
    encoder at once, and W, first the identity, learns what is left. And e is no random cloud: it
    starts at k-means centres, and rows that fall out of use are placed anew
    (:class:`~qvae.bottlenecks.kept_table.KeptTable`); gradients never touch it.

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
        self.moments = Moments(dim)

    @property
    def table(self) -> Float[Tensor, "V D"]:
        """The mapped rows, with the gradient of the map; float32 under any autocast."""
        with torch.autocast(self.codebook.device.type, enabled=False):
            return self.moments.colour(self.codebook @ self.codebook_map)

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

    def _count(self, z: Tensor, codes: Tensor, errors: Tensor, mask: Tensor | None) -> None:
        super()._count(z, codes, errors, mask)
        if self.training:
            self.moments.stage(z, mask)

    def discard_step(self) -> None:
        """Drop the counts."""
        super().discard_step()
        self.moments.discard_step()

    def _reduce(self) -> None:
        """Let mean and covariance follow the vectors, also before the table starts."""
        self.moments.after_step()

    def _set_rows(self, rows: Tensor, vectors: Tensor, counts: Tensor) -> None:
        """Set rows to what the map takes to the vectors, but for directions that it hardly has.

        Where the vectors have no spread the map shrinks, and a row that had to make up for that
        would be far longer than the others: the next step of the map would throw its code away.
        """
        inverse = torch.linalg.pinv(self.codebook_map.detach().cpu().double(), rtol=_HARDLY)
        super()._set_rows(rows, self.moments.whiten(vectors) @ inverse.to(vectors), counts)
