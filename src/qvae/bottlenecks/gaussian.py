"""The VAE's bottleneck: a diagonal Gaussian, sampled by reparameterisation."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qvae.bottlenecks.base import Bottleneck, require_positive
from qvae.bottlenecks.functional import sum_per_sample
from qvae.types import Latent

__all__ = ["Gaussian", "gaussian_kl"]


def gaussian_kl(
    mean: Float[Tensor, "*N D"], log_var: Float[Tensor, "*N D"]
) -> Float[Tensor, "*N D"]:
    """Return KL(N(mean, exp(log_var)) || N(0, 1)) of each coordinate, in nats.

    Paper: Kingma & Welling 2013, arXiv:1312.6114, appendix B:
    ``(mean^2 + sigma^2 - 1 - log sigma^2) / 2``.

    Example:
        >>> gaussian_kl(torch.tensor([0.0]), torch.tensor([0.0])).item()
        0.0
    """
    return 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var)


class Gaussian(Bottleneck):
    """Sample ``z = mean + sigma * noise`` and charge the KL to a standard normal.

    Paper: Kingma & Welling 2013, arXiv:1312.6114, equations 7 and 10 and appendix B. beta-VAE
    (Higgins et al. 2017) is this with ``beta`` > 1 on the model. Ours differs: log_var is clamped
    to [-20, 20], so that exp never overflows.

    Shapes: takes ``[B, *G, 2 * dim]``, mean and log variance; ``z [B, *G, dim]``; no codes.
    ``forward`` samples in eval mode too, since the bound needs a sample; ``mode`` is the mean.
    Units: rate in nats per sample, penalty 0.

    Args:
        dim: number of latent coordinates in a grid cell, >= 1.

    Raises:
        ValueError: if dim is below 1.

    Example:
        >>> latent = Gaussian(dim=2)(torch.zeros(1, 4))
        >>> latent.z.shape, latent.rate.item()
        (torch.Size([1, 2]), 0.0)
    """

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        require_positive(dim=dim)
        self.in_dim, self.out_dim = 2 * dim, dim

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Sample from the posterior."""
        mean, log_var = self.posterior(z_e)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        kl = gaussian_kl(mean, log_var)
        metrics = {"active_dims": (kl.detach().flatten(0, -2).mean(0) > 0.01).float().sum()}
        rate = sum_per_sample(kl.sum(-1), mask)
        return Latent(z=z.to(z_e.dtype), rate=rate, penalty=torch.zeros_like(rate), metrics=metrics)

    def mode(self, z_e: Float[Tensor, "B *G in_dim"]) -> Float[Tensor, "B *G out_dim"]:
        """Return the posterior's mean."""
        return self.posterior(z_e)[0].to(z_e.dtype)

    def posterior(
        self, z_e: Float[Tensor, "*N in_dim"]
    ) -> tuple[Float[Tensor, "*N out_dim"], Float[Tensor, "*N out_dim"]]:
        """Split into mean and clamped log variance, in float32."""
        mean, log_var = z_e.float().chunk(2, dim=-1)
        return mean, log_var.clamp(-20.0, 20.0)
