"""The VQ-VAE's quantizer with a codebook that follows its vectors by moving averages."""

from jaxtyping import Float
from torch import Tensor

from qvae.bottlenecks.ema_table import EMATable

__all__ = ["VQEMA"]


class VQEMA(EMATable):
    """Replace each vector by the nearest row of a table of running means.

    Paper: van den Oord et al. 2017, arXiv:1711.00937, appendix A.1:
    ``N_i <- g N_i + (1 - g) n_i``, ``m_i <- g m_i + (1 - g) sum z``, ``e_i = m_i / N_i``.
    Ours differs: the table starts at the k-means centres of the first vectors, and a code that
    falls out of use is revived, see :class:`~qvae.bottlenecks.kept_table.KeptTable`.

    Shapes: ``z_e [B, *G, dim]``; ``codes [B, *G, 1]``. Units: rate = cells * ln V, penalty in
    squared distance.

    Args:
        codebook_size: number of codes V, >= 1.
        dim: width of a code, >= 1.
        commitment_weight: weight of ``||z_e - sg(e)||^2``, >= 0.
        ema_decay: the paper's gamma, in [0, 1).
        revival: whether codes that fell out of use are set to fresh vectors.
        estimator: how the gradient passes the choice, ``straight_through`` or ``rotation``.

    Raises:
        ValueError: for a size below 1, a negative weight, a decay outside [0, 1).

    Example:
        >>> import torch
        >>> vq = VQEMA(codebook_size=4, dim=2)
        >>> vq(torch.randn(8, 3, 2)).codes.shape
        torch.Size([8, 3, 1])
        >>> vq.after_step()  # k-means over the 24 vectors
        >>> bool(vq.is_initialized)
        True
    """

    def _row(self, sums: Float[Tensor, "V D"], counts: Float[Tensor, " V"]) -> Tensor:
        return sums / counts[:, None]
