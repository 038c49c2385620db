"""Quantise in few dimensions: a linear map down, any quantizer, and a linear map back."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from qvae.bottlenecks.base import require_positive
from qvae.bottlenecks.wrapper import Inner, Wrapper, build_inner
from qvae.types import Latent

__all__ = ["Projected"]

_INNER = {"name": "vq_cosine", "codebook_size": 8192, "dim": 8}


class Projected(Wrapper):
    """Look codes up in a space of few dimensions.

    Paper: Yu et al. 2021 (ViT-VQGAN, the improved VQGAN), arXiv:2110.04627, section 3.2,
    "factorized codes": 768 dimensions to 32 or fewer before the lookup, and back after it, which
    keeps a large table in use. Ours differs: the quantizer may be any, and the two maps start as
    an orthonormal one and its transpose, so that at first nothing is stretched.

    The autoencoder projects to the bottleneck's width itself; this wrapper is for use inside
    others, such as one projection for each group of ``grouped`` or each level of ``residual``.

    Shapes: ``z_e [B, *G, dim]``; codes are the inner quantizer's. Units: its own.

    Args:
        dim: width of the vectors taken and returned, >= 1.
        quantizer: a name and its arguments; its width is the low one.

    Raises:
        ValueError: if dim is below 1, or the quantizer has no codes.

    Example:
        >>> projected = Projected(dim=64, quantizer={"name": "lfq", "dim": 8})
        >>> projected(torch.zeros(2, 64)).z.shape, projected.codebook_sizes
        (torch.Size([2, 64]), (256,))
    """

    def __init__(self, *, dim: int = 64, quantizer: Inner = _INNER) -> None:
        super().__init__()
        require_positive(dim=dim)
        inner = build_inner(quantizer)
        self.quantizers = nn.ModuleList([inner])
        self.in_dim = self.out_dim = dim
        self.codebook_sizes, self.num_levels = inner.codebook_sizes, inner.num_levels
        self.down, self.up = nn.Linear(dim, inner.in_dim), nn.Linear(inner.out_dim, dim)
        nn.init.orthogonal_(self.down.weight)
        nn.init.orthogonal_(self.up.weight)
        if inner.in_dim == inner.out_dim:
            with torch.no_grad():
                self.up.weight.copy_(self.down.weight.T)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Quantise in the low dimensions."""
        self.check_vectors(z_e)
        latent = self._inner[0](_exact(self.down, z_e), mask)
        return Latent(
            z=_exact(self.up, latent.z).to(z_e.dtype),
            rate=latent.rate,
            penalty=latent.penalty,
            codes=latent.codes,
            metrics=latent.metrics,
        )

    def encode(self, z_e: Float[Tensor, "*N in_dim"]) -> Int[Tensor, "*N K"]:
        """Return the inner codes."""
        self.check_vectors(z_e)
        return self._inner[0].encode(_exact(self.down, z_e))

    def decode(self, codes: Int[Tensor, "*N K"]) -> Float[Tensor, "*N out_dim"]:
        """Look the codes up and map them back."""
        return _exact(self.up, self._inner[0].decode(codes))


def _exact(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a map in float64 and round once, so that no sample depends on its batch.

    What follows is a distance, and BLAS takes another routine, with another order of its sums,
    for few rows than for many: in float32 the last bit would follow the number of rows.
    """
    exact = torch.float32 if x.device.type == "mps" else torch.float64  # it has no float64
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(exact), layer.weight.to(exact), layer.bias.to(exact)).float()
