"""The VAE's bottleneck: a diagonal Gaussian, sampled by reparameterisation."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qvae.bottlenecks.autoregressive import AutoregressiveDensity
from qvae.bottlenecks.base import Bottleneck, require_positive
from qvae.bottlenecks.functional import sum_per_sample
from qvae.types import Latent

__all__ = ["Gaussian", "gaussian_kl", "normal_log_prob"]

_LOG_2PI = math.log(2 * math.pi)


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


def normal_log_prob(
    z: Float[Tensor, "*_N D"], mean: Tensor | float = 0.0, log_var: Tensor | float = 0.0
) -> Float[Tensor, "*_M D"]:
    """Return log N(z; mean, exp(log_var)) of each coordinate, in nats; shapes broadcast.

    Example:
        >>> round(normal_log_prob(torch.tensor([0.0])).item(), 4)
        -0.9189
    """
    log_var = torch.as_tensor(log_var, dtype=z.dtype, device=z.device)
    return -0.5 * ((z - mean).square() * torch.exp(-log_var) + log_var + _LOG_2PI)


class Gaussian(Bottleneck):
    """Sample ``z = mean + sigma * noise`` and charge its KL to the prior over z.

    Paper: Kingma & Welling 2013, arXiv:1312.6114, equations 7 and 10 and appendix B. beta-VAE
    (Higgins et al. 2017) is this with ``beta`` > 1 on the model. Ours differs: log_var is clamped
    to [-20, 20], so that exp never overflows.

    The prior is N(0, 1), or learned with everything else: then the rate is an estimate from the
    one sample, ``log q(z|x) - log p(z)``, after the VAE with a learned prior of Chen et al. 2016,
    arXiv:1611.02731. A learned prior does not take the condition: an encoder that is
    told it need not repeat it in z.

    Shapes: takes ``[B, *G, 2 * dim]``, mean and log variance; ``z [B, *G, dim]``; no codes.
    ``forward`` samples in eval mode too, since the bound needs a sample; ``mode`` is the mean.
    Cells of a grid are independent under the prior. Units: rate in nats per sample, penalty 0.

    Args:
        dim: number of latent coordinates in a grid cell, >= 1.
        prior: ``normal``, or ``autoregressive``: learned, each coordinate given those before it.
        prior_hidden: width of the learned prior's network, >= 1.

    Raises:
        ValueError: if a size is below 1, or there is no such prior.

    Example:
        >>> latent = Gaussian(dim=2)(torch.zeros(1, 4))
        >>> latent.z.shape, latent.rate.item()
        (torch.Size([1, 2]), 0.0)
    """

    def __init__(
        self,
        *,
        dim: int,
        prior: Literal["normal", "autoregressive"] = "normal",
        prior_hidden: int = 256,
    ) -> None:
        super().__init__()
        require_positive(dim=dim, prior_hidden=prior_hidden)
        if prior not in ("normal", "autoregressive"):
            raise ValueError(f"prior={prior!r}: must be normal or autoregressive")
        self.in_dim, self.out_dim = 2 * dim, dim
        is_learned = prior == "autoregressive"
        self.prior = AutoregressiveDensity(dim, hidden=prior_hidden) if is_learned else None

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Sample from the posterior."""
        mean, log_var = self.posterior(z_e)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        kl = self.cost(z, mean, log_var)
        rate = sum_per_sample(kl.sum(-1), mask)
        penalty, metrics = self.aid(z, mean, log_var, mask)
        cells = kl if mask is None else torch.where(mask[..., None], kl, torch.zeros_like(kl))
        by_dim = cells if cells.ndim == 2 else cells.flatten(1, -2).sum(1)
        active = (by_dim.detach().mean(0) > 0.01).sum()
        return Latent(
            z=z.to(z_e.dtype),
            rate=rate,
            penalty=torch.zeros_like(rate) if penalty is None else penalty,
            metrics={"active_dims": active, **metrics},
            kl=by_dim,
        )

    def aid(
        self, z: Tensor, mean: Tensor, log_var: Tensor, mask: Tensor | None
    ) -> tuple[Float[Tensor, " B"] | None, Mapping[str, Tensor]]:
        """Return a training-only penalty and its metrics; a variant's one idea goes here."""
        return None, {}

    def draw(
        self, z_e: Float[Tensor, "B *G in_dim"]
    ) -> tuple[Float[Tensor, "B *G out_dim"], Float[Tensor, " B"]]:
        """Sample z, and say what it costs: ``log q(z|x) - log p(z)``, whose mean is the rate."""
        mean, log_var = self.posterior(z_e)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return z.to(z_e.dtype), self.log_ratio(z, mean, log_var).flatten(1).sum(1)

    def cost(
        self,
        z: Float[Tensor, "*N D"],
        mean: Float[Tensor, "*N D"],
        log_var: Float[Tensor, "*N D"],
    ) -> Float[Tensor, "*N D"]:
        """Return what each coordinate costs: its KL, or under a learned prior an estimate by z."""
        if self.prior is None:
            return gaussian_kl(mean, log_var)
        return self.log_ratio(z, mean, log_var)

    def log_ratio(
        self,
        z: Float[Tensor, "*N D"],
        mean: Float[Tensor, "*N D"],
        log_var: Float[Tensor, "*N D"],
    ) -> Float[Tensor, "*N D"]:
        """Return ``log q(z|x) - log p(z)`` of each coordinate."""
        return normal_log_prob(z, mean, log_var) - self.log_prior(z)

    def log_prior(self, z: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """Return ``log p(z)`` of each coordinate, given those before it where p is learned."""
        return normal_log_prob(z) if self.prior is None else self.prior.log_prob(z)

    def from_noise(self, noise: Float[Tensor, "B 2 *G D"]) -> Float[Tensor, "B *G D"]:
        """Turn two blocks of standard normal noise into a draw from the prior.

        The second block chooses between the bells of a learned prior; N(0, 1) has one.
        """
        if self.prior is None:
            return noise[:, 0]
        return self.prior.from_noise(noise[:, 0], noise[:, 1])

    def quantile(self, share: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """Return where the prior has ``share`` of its mass below, in each coordinate.

        Under a learned prior that of a coordinate is conditional on those before it.
        """
        return torch.special.ndtri(share) if self.prior is None else self.prior.quantile(share)

    def mode(self, z_e: Float[Tensor, "B *G in_dim"]) -> Float[Tensor, "B *G out_dim"]:
        """Return the posterior's mean."""
        return self.posterior(z_e)[0].to(z_e.dtype)

    def posterior(
        self, z_e: Float[Tensor, "*N in_dim"]
    ) -> tuple[Float[Tensor, "*N out_dim"], Float[Tensor, "*N out_dim"]]:
        """Split into mean and clamped log variance, in float32."""
        self.check_vectors(z_e)
        mean, log_var = z_e.float().chunk(2, dim=-1)
        return mean, log_var.clamp(-20.0, 20.0)
