"""Codes on the unit sphere: the nearest row is the one with the largest cosine."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from qvae.bottlenecks.ema_table import EMATable
from qvae.bottlenecks.estimators import Estimator

__all__ = ["VQCosine"]


class VQCosine(EMATable):
    """Normalise each vector and replace it by the row of a table of unit vectors nearest to it.

    Paper: Yu et al. 2021 (ViT-VQGAN), arXiv:2110.04627, section 3.2:
    ``k = argmin ||l2(z_e) - l2(e_j)||``, which is the largest cosine. Ours differs: the table is
    no parameter. It follows its vectors by moving averages that are put back on the sphere,
    ``e_i = m_i / ||m_i||`` (spherical k-means), starts at k-means centres and has its dead codes
    revived, see :class:`~qvae.bottlenecks.kept_table.KeptTable`. The gradient reaches the encoder
    through the normalisation, so it turns the vector and never changes its length.

    Shapes: ``z_e [B, *G, dim]``; ``codes [B, *G, 1]``; ``z`` has length 1. Units: rate = cells *
    ln V, penalty in squared distance on the sphere, at most 4 a cell.

    Args:
        codebook_size: number of codes V, >= 1.
        dim: width of a code, >= 1; 8 to 32 are usual.
        commitment_weight: weight of ``||l2(z_e) - sg(e)||^2``, >= 0.
        ema_decay: decay of the averages a step, in [0, 1).
        revival: whether codes that fell out of use are set to fresh vectors.
        estimator: how the gradient passes the choice, ``straight_through`` or ``rotation``.

    Raises:
        ValueError: for a size below 1, a negative weight, a decay outside [0, 1).

    Example:
        >>> import torch
        >>> vq = VQCosine(codebook_size=4, dim=2)
        >>> short = torch.tensor([[0.1, 0.3]])
        >>> bool(vq.encode(short) == vq.encode(1000 * short))
        True
    """

    def __init__(
        self,
        *,
        codebook_size: int = 512,
        dim: int = 16,
        commitment_weight: float = 0.25,
        ema_decay: float = 0.99,
        revival: bool = True,
        estimator: Estimator = "straight_through",
    ) -> None:
        super().__init__(
            codebook_size=codebook_size,
            dim=dim,
            commitment_weight=commitment_weight,
            ema_decay=ema_decay,
            revival=revival,
            estimator=estimator,
        )

    def place(self, z_e: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """Move vectors to the unit sphere, in float32."""
        return F.normalize(z_e.float(), dim=-1)

    def _row(self, sums: Float[Tensor, "V D"], counts: Float[Tensor, " V"]) -> Tensor:
        return self.place(sums)
