"""What the latents of a VAE carry: KL by coordinate, active units, and the rate in two parts."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["PosteriorStatistics", "PosteriorSummary"]

_ACTIVE = 0.01
_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class PosteriorSummary:
    """What :class:`PosteriorStatistics` found."""

    kl: list[float]
    """Mean KL of each coordinate, nats; one near 0 has collapsed onto the prior."""
    active_units: int
    """Coordinates whose posterior mean varies over the data."""
    num_units: int
    mutual_information: float
    """I(x; z) under q, nats, with the data seen as the whole data; at most log(num)."""
    num: int


class PosteriorStatistics:
    """Collect the posteriors q(z|x) of some data.

    Papers: a unit is active if Var_x(E[z|x]) > 0.01, Burda et al. 2015, arXiv:1509.00519, section
    5.2. The rate is I(x; z) + KL(q(z) || p(z)), Hoffman & Johnson 2016, "ELBO surgery"; I is
    E[log q(z|x) - log mean_x' q(z|x')], one draw of z for each x.

    Example:
        >>> statistics = PosteriorStatistics()
        >>> mean = torch.tensor([[0.0, -9.0], [0.0, 9.0]])
        >>> log_var = torch.tensor([[0.0, -4.0], [0.0, -4.0]])
        >>> statistics.update(mean, mean, log_var, kl=torch.tensor([[0.0, 42.0], [0.0, 42.0]]))
        >>> found = statistics.result()
        >>> found.active_units, round(found.mutual_information, 3)  # two data: log 2
        (1, 0.693)
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._kl: Tensor | float = 0.0

    def update(
        self,
        z: Float[Tensor, "B *G D"],
        mean: Float[Tensor, "B *G D"],
        log_var: Float[Tensor, "B *G D"],
        *,
        kl: Float[Tensor, "B D"],
    ) -> None:
        """Take in draws, the posteriors they came from, and their KL by coordinate."""
        self._parts.append((z.flatten(1).cpu(), mean.flatten(1).cpu(), log_var.flatten(1).cpu()))
        self._kl = self._kl + kl.double().sum(0).cpu()

    def result(self) -> PosteriorSummary:
        """Summarise."""
        z, mean, log_var = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        num = len(z)
        assert isinstance(self._kl, Tensor)
        variance = mean.var(0) if num > 1 else torch.zeros(mean.shape[1])
        return PosteriorSummary(
            kl=(self._kl / num).tolist(),
            active_units=int((variance > _ACTIVE).sum()),
            num_units=mean.shape[1],
            mutual_information=_mutual_information(z, mean, log_var),
            num=num,
        )


def _mutual_information(z: Tensor, mean: Tensor, log_var: Tensor) -> float:
    """All pairs by one matrix product: (z - m)^2 / v = z^2 / v - 2 z m / v + m^2 / v."""
    z, mean, log_var = z.double(), mean.double(), log_var.double()
    precision = (-log_var).exp()
    columns = torch.cat([precision, -2 * mean * precision], dim=1).T
    constant = (mean.square() * precision + log_var).sum(1)
    total, num = 0.0, len(z)
    for start in range(0, num, _CHUNK):
        rows = z[start : start + _CHUNK]
        own = torch.arange(start, start + len(rows))
        pairs = -0.5 * (torch.cat([rows.square(), rows], dim=1) @ columns + constant)
        marginal = pairs.logsumexp(1) - math.log(num)
        total += (pairs[torch.arange(len(rows)), own] - marginal).sum().item()
    return total / num
