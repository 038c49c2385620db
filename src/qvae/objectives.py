"""What a rung asks for its rate, the bound of many samples, the aid for edges: no networks here.

The objective of every rung is ``nll + price(rate) + penalty``. A plain VAE's price is the rate. The
others change the price and nothing else: beta-VAE, a warm-up, free bits, a capacity that grows.
They are functions of the step that a batch carries, so a resumed run has nothing to remember. In
evaluation there is no step, and the price is the one at the end of the schedule.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qvae.types import Latent

__all__ = ["RatePrice", "edge_error", "importance_bound", "ramp"]


def ramp(step: Tensor | None, num_steps: int) -> Tensor | float:
    """Return the share of a linear rise that is done at a step, in [0, 1].

    Example:
        >>> ramp(torch.tensor(25), 100).item(), ramp(torch.tensor(300), 100).item()
        (0.25, 1.0)
        >>> ramp(None, 100)  # outside training: the end
        1.0
    """
    if step is None or num_steps == 0:
        return 1.0
    return (step / num_steps).clamp(max=1.0)


@dataclass(frozen=True, kw_only=True)
class RatePrice:
    """Charge for the rate, per sample and in nats.

    Papers: beta-VAE, Higgins et al. 2017, eq. 4 (``beta``). KL warm-up, Bowman et al. 2016,
    arXiv:1511.06349, section 3.1, and Sonderby et al. 2016, arXiv:1602.02282 (``beta_warmup``).
    A price that falls (``beta_start``) is ours, and does what the capacity is for.
    Free bits, Kingma et al. 2016, arXiv:1606.04934: sum_j max(free_bits, mean over the batch of
    KL_j). Capacity, Burgess et al. 2018, arXiv:1804.03599, eq. 8: beta |mean rate - C| with C
    rising linearly from 0; beta is their gamma. Ours differs: the groups of free bits are single
    coordinates; the batch means are over a micro-batch, so with free bits or a capacity the
    objective depends on how a batch is cut.

    Args:
        beta: weight, >= 0.
        beta_start: weight at the first step; from there it goes to beta by equal factors, not
            by equal steps. 0 is the warm-up of the papers, a straight line.
        beta_warmup: steps until the weight is beta, >= 0.
        free_bits: nats below which a coordinate's KL costs the same, >= 0.
        capacity: nats the rate is led to; None charges the rate itself.
        capacity_steps: steps in which the capacity rises from 0, >= 0.

    Raises:
        ValueError: a value that is negative or not finite, a start or steps without their aim, or
            free bits and a capacity together.

    Example:
        >>> rate = torch.tensor([1.0, 3.0])
        >>> latent = Latent(z=rate[:, None], rate=rate, penalty=0 * rate)
        >>> RatePrice(beta=2.0)(latent, None).tolist()
        [2.0, 6.0]
        >>> RatePrice(beta=10.0, capacity=5.0)(latent, None).mean().item()  # 10 |2 - 5|
        30.0
    """

    beta: float = 1.0
    beta_start: float = 0.0
    beta_warmup: int = 0
    free_bits: float = 0.0
    capacity: float | None = None
    capacity_steps: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: must be finite and >= 0")
        if self.free_bits and self.capacity is not None:
            raise ValueError(
                f"free_bits={self.free_bits}, capacity={self.capacity}: one of them at a time"
            )
        if self.beta_start and not (self.beta and self.beta_warmup):
            raise ValueError(
                f"beta_start={self.beta_start}, beta={self.beta}, beta_warmup={self.beta_warmup}: "
                "needs the other two above 0"
            )
        if self.capacity_steps and self.capacity is None:
            raise ValueError(f"capacity_steps={self.capacity_steps}: needs a capacity")

    @property
    def is_plain(self) -> bool:
        """Whether the price is a multiple of the rate."""
        return not self.free_bits and self.capacity is None

    def weight(self, step: Tensor | None) -> Tensor | float:
        """Return beta at a step."""
        done = ramp(step, self.beta_warmup)
        if not self.beta_start:
            return self.beta * done
        return self.beta_start * (self.beta / self.beta_start) ** done

    def __call__(self, latent: Latent, step: Tensor | None) -> Float[Tensor, " B"]:
        """Return the price of each sample's rate; the mean over the batch is what is minimised."""
        charged = latent.rate
        if self.capacity is not None:
            target = self.capacity * ramp(step, self.capacity_steps)
            side = torch.where(charged.detach().mean() < target, -1.0, 1.0)
            charged = side * (charged - target)
        elif self.free_bits:
            charged = _with_floor(latent, self.free_bits)
        return self.weight(step) * charged


def _with_floor(latent: Latent, floor: float) -> Float[Tensor, " B"]:
    """Charge ``floor`` for each coordinate whose mean KL is below it, which leaves no gradient."""
    assert latent.kl is not None
    is_paid = latent.kl.detach().mean(0) > floor
    return (latent.kl * is_paid).sum(1) + floor * (~is_paid).sum()


def importance_bound(log_weights: Float[Tensor, "K B"]) -> Float[Tensor, " B"]:
    """Return log (1/K) sum_k w_k: a lower bound of log p(x) in the mean, tighter with K.

    Paper: importance weighted autoencoders, Burda et al. 2015, arXiv:1509.00519, eq. 8. Its
    gradient by autograd is their eq. 14: each sample counts by its normalised weight.

    Example:
        >>> importance_bound(torch.tensor([[0.0], [0.0]])).item()
        0.0
    """
    return log_weights.logsumexp(dim=0) - math.log(len(log_weights))


def edge_error(mean: Float[Tensor, "B *CS"], x: Float[Tensor, "B *CS"]) -> Float[Tensor, " B"]:
    """Return squared errors weighted by the data's own gradient, in the unit of the likelihood.

    Example:
        >>> edge_error(torch.zeros(1, 1, 4), torch.full((1, 1, 4), 0.5)).item()  # flat: no edges
        0.0
    """
    edges = torch.zeros_like(x)
    for axis in range(2, x.ndim):
        step = x.diff(dim=axis).abs()
        edges.narrow(axis, 0, step.shape[axis]).add_(step)
        edges.narrow(axis, 1, step.shape[axis]).add_(step)
    error = (mean - x).square()
    scale = 2 * error.detach().flatten(1).mean(1).clamp(min=1e-4)
    return (edges.clamp(max=1) * error).flatten(1).sum(1) / scale
