"""What the latents of a VAE carry: KL by coordinate, active units, and the rate in two parts."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qvae.metrics.rate_split import active_units, log_average

__all__ = ["PosteriorStatistics", "PosteriorSummary"]


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

    The definitions are those of :mod:`qvae.metrics.rate_split`; the information is taken from the
    draws that the model made anyway, one for each x.

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
        return PosteriorSummary(
            kl=(self._kl / num).tolist(),
            active_units=active_units(mean) if num > 1 else 0,
            num_units=mean.shape[1],
            mutual_information=_mutual_information(z, mean, log_var),
            num=num,
        )


def _mutual_information(z: Tensor, mean: Tensor, log_var: Tensor) -> float:
    z, mean, log_var = z.double(), mean.double(), log_var.double()
    own = -0.5 * ((z - mean).square() / log_var.exp() + log_var).sum(1)
    return (own - log_average(z, mean, log_var)).mean().item()
