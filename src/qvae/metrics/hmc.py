"""log p(x) by Hamiltonian Monte Carlo: a second opinion on importance sampling, for few latents."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from qvae.metrics.likelihood import Estimate

__all__ = ["hmc_draws", "hmc_log_likelihood"]

LogDensity = Callable[[Tensor], Tensor]
"""``z [N, D] -> log density [N]``, up to a constant."""

_TARGET = 0.9
_NUM_LEAPFROG = 10
_MASS = 0.5
_NUM_BELLS = 64
_JITTER = 0.4


def hmc_draws(
    log_density: LogDensity,
    start: Float[Tensor, "N D"],
    *,
    num_draws: int,
    burn_in: int,
    step_size: float = 0.1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "T N D"]:
    """Draw by Hamiltonian Monte Carlo, N chains side by side.

    Paper: Duane et al. 1987; ten leapfrog steps as in Kingma & Welling 2013, arXiv:1312.6114,
    appendix D. The step of each chain is adapted in the burn-in, to nine of ten accepted, and each
    trajectory takes up to 40 % more or less of it (Neal 2011, arXiv:1206.1901):
    equal ones may end where they started, again and again.

    Args:
        log_density: of the target.
        start: one point a chain.
        num_draws: T, one after each trajectory.
        burn_in: trajectories before the first draw.
        step_size: of the leapfrog at first.
        generator: of momenta and acceptances.

    Example:
        >>> draws = hmc_draws(lambda z: -z.square().sum(1) / 2, torch.zeros(64, 1),
        ...                   num_draws=50, burn_in=50, generator=torch.Generator().manual_seed(0))
        >>> 0.9 < draws.std().item() < 1.1
        True
    """
    z, size = start.clone(), torch.full((len(start), 1), step_size, device=start.device)
    value, gradient = _with_gradient(log_density, z)
    drawn = []
    for trajectory in range(burn_in + num_draws):
        momentum = torch.randn(z.shape, generator=generator, device=z.device)
        share = torch.rand(len(z), 1, generator=generator, device=z.device)
        step = size * (1 + _JITTER * (2 * share - 1))
        new, new_value, new_gradient, end = _leapfrog(log_density, z, momentum, gradient, step)
        energy = value - 0.5 * momentum.square().sum(1)
        change = new_value - 0.5 * end.square().sum(1) - energy
        chance = change.clamp(max=0).exp().nan_to_num(0.0)
        is_taken = torch.rand(len(z), generator=generator, device=z.device) < chance
        z = torch.where(is_taken[:, None], new, z)
        gradient = torch.where(is_taken[:, None], new_gradient, gradient)
        value = torch.where(is_taken, new_value, value)
        if trajectory < burn_in:
            size = (size * (0.1 * (chance - _TARGET)).exp()[:, None]).clamp(1e-4, 2.0)
        else:
            drawn.append(z)
    return torch.stack(drawn)


def hmc_log_likelihood(
    log_joint: LogDensity,
    start: Float[Tensor, "C B D"],
    *,
    num_draws: int = 100,
    burn_in: int = 100,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Estimate log p(x) of each sample from posterior draws: 1 / p(x) = E[q(z) / p(x, z)].

    Paper: Kingma & Welling 2013, arXiv:1312.6114, appendix D: draw z from the posterior by HMC, fit
    a density q to a first half, average over the second. Good for fewer than five latents, as they
    say. Ours differs: q is a mixture of 64 Gaussians, each fitted to the draws next to one of them
    and cut to its middle half. So q lies where draws lie, be it in several places, and not in tails
    or gaps where p is small, which would rule an average of q / p. The error comes from the chains,
    which know nothing of each other. Chains that cannot cross from one of M places to another keep
    the shares they started with, which in the mean costs about (M - 1) / C nats.

    Args:
        log_joint: ``log p(x|z) + log p(z)`` for z ``[C * B, D]``, all samples of a chain in turn.
        start: where the C chains of each of the B samples start, such as draws from q(z|x); C >= 2.
        num_draws: trajectories in each half.
        burn_in: trajectories before the first.
        generator: of the chains.

    Returns:
        Nats; NaN where no draw of the second half lies within q.
    """
    chains, num, dim = start.shape
    drawn = hmc_draws(
        log_joint,
        start.flatten(0, 1),
        num_draws=2 * num_draws,
        burn_in=burn_in,
        generator=generator,
    ).view(2, num_draws, chains, num, dim)
    values = torch.stack([log_joint(z.flatten(0, 1)).view(chains, num) for z in drawn[1]])
    fit, rest = (half.flatten(0, 1).double().movedim(1, 0) for half in drawn)  # [B, T * C, D]
    log_q = torch.stack(
        [_log_bells(*pair, generator=generator) for pair in zip(fit, rest, strict=True)], dim=-1
    )
    log_ratios = log_q.view(num_draws, chains, num) - values.double()
    by_chain = log_ratios.logsumexp(0) - math.log(num_draws)
    log_mean = by_chain.logsumexp(0) - math.log(chains)
    spread = (by_chain - log_mean).exp().std(0) / chains**0.5
    value = torch.where(log_mean.isinf(), math.nan, -log_mean)
    return Estimate(value=value.cpu(), error=spread.cpu())


def _log_bells(
    fit: Float[Tensor, "N D"], z: Float[Tensor, "T D"], *, generator: torch.Generator | None
) -> Float[Tensor, " T"]:
    """Return log q(z), q a mixture of cut Gaussians fitted to what lies around some of ``fit``.

    A neighbourhood is a 32nd of the draws, or four a dimension: small, so that few reach over a
    gap, and enough for a covariance.
    """
    num, dim = fit.shape
    chosen = torch.randperm(num, generator=generator, device=fit.device)[:_NUM_BELLS]
    size = min(num, max(4 * dim, num // 32))
    near = fit[torch.cdist(fit[chosen], fit).topk(size, largest=False).indices]  # [M, size, D]
    mean = near.mean(1)
    centred = near - mean[:, None]
    ridge = 1e-6 * fit.var(0).mean() + 1e-12
    covariance = centred.mT @ centred / (size - 1) + ridge * torch.eye(dim, device=fit.device)
    factor = torch.linalg.cholesky(covariance)
    apart = (z - mean[:, None]).mT  # [M, D, T]
    square = torch.linalg.solve_triangular(factor, apart, upper=False).square().sum(1)
    log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
    log_q = -0.5 * (square + dim * math.log(2 * math.pi)) - log_det - math.log(_MASS)
    log_q = log_q.masked_fill(square > _radius2(dim), -math.inf)
    return log_q.logsumexp(0) - math.log(len(chosen))


def _with_gradient(log_density: LogDensity, z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = log_density(z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


def _leapfrog(
    log_density: LogDensity, z: Tensor, momentum: Tensor, gradient: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    value = z.new_zeros(len(z))
    for _ in range(_NUM_LEAPFROG):
        momentum = momentum + 0.5 * size * gradient
        z = z + size * momentum
        value, gradient = _with_gradient(log_density, z)
        momentum = momentum + 0.5 * size * gradient
    return z, value, gradient, momentum


def _radius2(dim: int) -> float:
    """The squared radius within which a standard normal in ``dim`` has its middle mass."""
    low, high, half = 0.0, 10.0 * dim + 10.0, torch.tensor(dim / 2)
    for _ in range(60):
        middle = 0.5 * (low + high)
        mass = torch.special.gammainc(half, torch.tensor(middle / 2)).item()
        low, high = (middle, high) if mass < _MASS else (low, middle)
    return 0.5 * (low + high)
