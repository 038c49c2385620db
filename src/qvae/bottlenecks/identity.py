"""The autoencoder's bottleneck: the code is the vector."""

from jaxtyping import Bool, Float
from torch import Tensor

from qvae.bottlenecks.base import Bottleneck, require_positive
from qvae.types import Latent

__all__ = ["Identity"]


class Identity(Bottleneck):
    """Pass the vectors on at rate zero: a plain autoencoder.

    With a Gaussian likelihood of fixed sigma the loss is the mean squared error of the textbook,
    up to a factor and a constant. A plain autoencoder has no distribution over its codes, so its
    rate is 0 by definition and its loss gives no bits/dim.

    Shapes: ``z [B, *G, dim]``; no codes. Units: rate 0, penalty 0.

    Args:
        dim: width of the code, >= 1.

    Raises:
        ValueError: if dim is below 1.

    Example:
        >>> import torch
        >>> Identity(dim=2)(torch.ones(3, 2)).rate.tolist()
        [0.0, 0.0, 0.0]
    """

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        require_positive(dim=dim)
        self.in_dim = self.out_dim = dim

    @property
    def has_fixed_rate(self) -> bool:
        """True: it is 0."""
        return True

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Return the vectors unchanged."""
        self.check_vectors(z_e)
        zero = z_e.new_zeros(len(z_e))
        return Latent(z=z_e, rate=zero, penalty=zero)
