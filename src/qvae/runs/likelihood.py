"""How likely a VAE finds its test data: the ELBO, a tighter bound, log p(x) by two estimators."""

import math
from typing import Any

import torch
from torch import Tensor

from qvae.autoencoder import Autoencoder
from qvae.bottlenecks.gaussian import Gaussian
from qvae.data.base import Split
from qvae.errors import UsageError
from qvae.metrics.hmc import hmc_log_likelihood
from qvae.metrics.likelihood import Estimate, ImportanceStream, mean_and_errors
from qvae.runs.tokens import batches_of
from qvae.train.order import noise_seed

__all__ = ["BOUND_DRAWS", "estimate_likelihood", "score_hmc", "score_likelihood"]

BOUND_DRAWS = 50
"""Draws in one importance weighted bound, and in memory at once for each sample."""
_BATCH = 64
_MOST_LATENTS = 8
_CHAINS = 16


@torch.no_grad()
def estimate_likelihood(
    model: Autoencoder, x: Tensor, cond: Tensor | None = None, *, num_draws: int
) -> ImportanceStream:
    """Draw importance weights for a batch, 50 at a time.

    Args:
        model: with a Gaussian bottleneck.
        x: samples.
        cond: a row of raw numbers for each.
        num_draws: at least this many; rounded up to whole chunks of 50.
    """
    stream = ImportanceStream(len(x))
    while stream.num_draws < num_draws:
        nll, ratio = model.draws(x, cond, num=min(BOUND_DRAWS, num_draws))
        stream.update(-(nll + ratio))
    return stream


def score_likelihood(
    model: Any, split: Split, *, num_draws: int, most: int | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Score -log p(x) of test data, in nats: by the ELBO, the bound of 50 draws, and all draws.

    Each row has ``error``, the standard error over the data, and ``draws_error``, by the draws.

    Args:
        model: an autoencoder with a Gaussian bottleneck.
        split: whose samples.
        num_draws: draws of z for each sample, >= 2.
        most: only the first so many samples; None is all.
        seed: of the draws.

    Raises:
        UsageError: the model has no density over z, or its nll is a profile and no density.
    """
    _require_density(model)
    if num_draws < 2:
        raise UsageError(f"likelihood={num_draws}: needs at least 2 draws")
    device = next(model.parameters()).device
    found: dict[str, list[Estimate]] = {"elbo": [], "bound": [], "log_p": []}
    with torch.random.fork_rng(devices=[]):
        for number, batch in enumerate(batches_of(split, label="likelihood", most=most)):
            for part, (x, cond) in enumerate(_pieces(batch.to(device))):
                torch.manual_seed(noise_seed(seed, "likelihood", number, part))
                stream = estimate_likelihood(model, x, cond, num_draws=num_draws)
                for name, parts in found.items():
                    parts.append(getattr(stream, name)())
    chunk = min(BOUND_DRAWS, num_draws)
    return {
        "nll_elbo": _row(found["elbo"], "nats/sample, -ELBO"),
        f"nll_iwae_{chunk}": _row(found["bound"], f"nats/sample, -bound of {chunk} draws"),
        "nll_importance": _row(found["log_p"], f"nats/sample, -log p(x), {stream.num_draws} draws"),
    }


def score_hmc(
    model: Any,
    split: Split,
    *,
    most: int | None = None,
    num_draws: int = 100,
    burn_in: int = 100,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Score -log p(x) by Hamiltonian Monte Carlo, a check on importance sampling.

    Args:
        model: an autoencoder with a Gaussian bottleneck of at most 8 latents.
        split: whose samples.
        most: only the first so many samples; None is all.
        num_draws: trajectories in each half, see :func:`~qvae.metrics.hmc.hmc_log_likelihood`.
        burn_in: trajectories before them.
        seed: of the chains.

    Raises:
        UsageError: the model has no density over z, or too many latents.
    """
    _require_density(model)
    size = math.prod(model.grid) * model.bottleneck.out_dim
    if size > _MOST_LATENTS:
        raise UsageError(f"hmc: {size} latents, the estimator is good for few (at most 8)")
    device = next(model.parameters()).device
    found = []
    with torch.random.fork_rng(devices=[]):
        for number, batch in enumerate(batches_of(split, label="hmc", most=most)):
            for part, (x, cond) in enumerate(_pieces(batch.to(device))):
                torch.manual_seed(noise_seed(seed, "hmc", number, part))
                found.append(_hmc(model, x, cond, num_draws=num_draws, burn_in=burn_in))
    return {"nll_hmc": _row(found, f"nats/sample, -log p(x), HMC, {_CHAINS} chains")}


@torch.no_grad()
def _hmc(
    model: Autoencoder, x: Tensor, cond: Tensor | None, *, num_draws: int, burn_in: int
) -> Estimate:
    bottleneck = model.bottleneck
    assert isinstance(bottleneck, Gaussian)
    z_e = model.embed(x, cond)
    start, _ = bottleneck.draw(z_e.expand(_CHAINS, *z_e.shape).flatten(0, 1))
    shape = start.shape[1:]
    many = x.repeat(_CHAINS, *[1] * (x.ndim - 1))
    told = None if cond is None else cond.repeat(_CHAINS, 1)

    def log_joint(flat: Tensor) -> Tensor:
        z = flat.view(-1, *shape)
        nll = model.likelihood.nll(model.decode(z, told).float(), many)
        return bottleneck.log_prior(z).flatten(1).sum(1) - nll

    start = start.view(_CHAINS, len(x), -1)
    return hmc_log_likelihood(log_joint, start, num_draws=num_draws, burn_in=burn_in)


def _pieces(batch: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Cut a batch so that the draws of a piece fit in memory."""
    xs = batch.x.split(_BATCH)
    conds = [None] * len(xs) if batch.cond is None else batch.cond.split(_BATCH)
    return list(zip(xs, conds, strict=True))


def _require_density(model: Any) -> None:
    if not isinstance(model, Autoencoder) or not isinstance(model.bottleneck, Gaussian):
        part = type(getattr(model, "bottleneck", model)).__name__
        raise UsageError(f"likelihood: {part} has no density over z; needs a gaussian bottleneck")
    if model.likelihood.is_profile:
        raise UsageError(
            "likelihood: sigma=optimal has seen x, so its nll is no density; train with a number "
            "or learned"
        )


def _row(estimates: list[Estimate], unit: str) -> dict[str, Any]:
    value, error, draws_error = mean_and_errors(estimates)
    num = sum(len(part.value) for part in estimates)
    row = {"value": -value, "unit": unit, "n": num, "split": "test"}
    return {**row, "error": error, "draws_error": draws_error}
