"""Where a VAE's rate goes: what z tells of x, and how far all z together are from the prior."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["RateSplit", "active_units", "log_average", "split_rate"]

_CHUNK = 2**23  # densities computed at a time


@dataclass(frozen=True, kw_only=True)
class RateSplit:
    """The two parts of the mean rate, nats a sample; ``rate`` is their sum exactly."""

    rate: float
    """Mean of KL(q(z|x) || p(z)), closed form."""
    mutual_information: float
    """I(x; z) under q: at most ln N, which is where it saturates."""
    marginal_kl: float
    """KL(q(z) || p(z)), q(z) the average of all posteriors."""
    standard_error: float
    """Of both parts, from the draws alone."""


def split_rate(
    mean: Float[Tensor, "N D"],
    log_var: Float[Tensor, "N D"],
    *,
    num_samples: int = 1,
    seed: int = 0,
) -> RateSplit:
    """Split the rate of N posteriors into mutual information and marginal KL.

    Paper: Hoffman & Johnson 2016, "ELBO surgery", equation 8: the mean of ``KL(q(z|x_n) || p(z))``
    is ``I(n; z) + KL(q(z) || p(z))``, with n uniform and ``q(z) = sum_n q(z|x_n) / N``. That is
    exact for these N rows; only ``log q(z)`` needs draws. Read ln N beside it: more information
    than that N rows cannot show.

    Args:
        mean: of the posteriors.
        log_var: of the same.
        num_samples: draws of z for each posterior, >= 1.
        seed: of the draws.

    Raises:
        ValueError: tables that differ, or no draw.

    Example:
        >>> far = torch.tensor([[-50.0], [50.0]])  # two posteriors that never meet: ln 2
        >>> round(split_rate(far, torch.zeros(2, 1)).mutual_information, 4)
        0.6931
    """
    if mean.shape != log_var.shape or num_samples < 1:
        raise ValueError(
            f"mean of shape {tuple(mean.shape)}, log_var of {tuple(log_var.shape)}, num_samples="
            f"{num_samples}: needs equal shapes and at least one draw"
        )
    mean, log_var = mean.double().cpu(), log_var.double().cpu()
    rate = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(dim=1).mean().item()
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(num_samples):
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        z = mean + (0.5 * log_var).exp() * noise
        own = -0.5 * (noise.square() + log_var).sum(dim=1)
        found.append(own - log_average(z, mean, log_var))
    told = torch.stack(found)
    information = told.mean().item()
    error = (told.std() / told.numel() ** 0.5).item() if told.numel() > 1 else 0.0
    return RateSplit(
        rate=rate,
        mutual_information=information,
        marginal_kl=rate - information,
        standard_error=error,
    )


def log_average(
    z: Float[Tensor, "S D"], mean: Float[Tensor, "N D"], log_var: Float[Tensor, "N D"]
) -> Float[Tensor, " S"]:
    """Return the log density of z under the average of all posteriors, less the normal's constant.

    ``sum_d (z - m)^2 / v`` is opened into three products, so no table [S, N, D] is made.
    """
    precision = (-log_var).exp()
    constant = -0.5 * (log_var + mean.square() * precision).sum(dim=1)
    log_num = torch.tensor(float(len(mean)), dtype=torch.float64).log()
    parts = []
    for part in z.split(max(1, _CHUNK // len(mean))):
        cross = part @ (mean * precision).T - 0.5 * part.square() @ precision.T
        parts.append((cross + constant).logsumexp(dim=1) - log_num)
    return torch.cat(parts)


def active_units(mean: Float[Tensor, "N D"], *, threshold: float = 0.01) -> int:
    """Count the coordinates whose posterior mean moves with the data.

    Paper: Burda et al. 2015, arXiv:1509.00519, section 5.2: variance over the data of the posterior
    mean above .01.

    Example:
        >>> active_units(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
        1
    """
    return int((mean.double().var(dim=0) > threshold).sum())
