"""How likely a VAE finds its test data: the ELBO, a tighter bound, log p(x) by two estimators.

Under a Bernoulli likelihood log p(x) is one of pixels that are 0 or 1. Grey pixels, taken as
chances, have a weight there that sums to no 1: the estimators hold, and the rows say so.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from qvae.autoencoder import Autoencoder
from qvae.bottlenecks.gaussian import Gaussian, normal_log_prob
from qvae.data.base import Split
from qvae.errors import UsageError
from qvae.metrics.hmc import hmc_log_likelihood
from qvae.metrics.likelihood import (
    Estimate,
    ImportanceStream,
    balanced_weights,
    mean_and_errors,
)
from qvae.runs.tokens import batches_of
from qvae.train.engine import own_random_numbers
from qvae.train.order import noise_seed

__all__ = ["BOUND_DRAWS", "FEW_DRAWS", "estimate_likelihood", "score_hmc", "score_likelihood"]

BOUND_DRAWS = 50
"""Draws in one importance weighted bound, and in memory at once for each sample."""
FEW_DRAWS = 10
"""Effective draws below which a sample's log p(x) is hardly known."""
_WIDEN, _WIDEST = 5.0, 1000.0
_BATCH = 64
_MOST_LATENTS = 8
_CHAINS = 16
_START_CHUNKS = 10


@torch.no_grad()
def estimate_likelihood(
    model: Autoencoder,
    x: Tensor,
    cond: Tensor | None = None,
    *,
    num_draws: int,
    widen: float | None = None,
) -> ImportanceStream:
    """Draw importance weights for a batch, 50 at a time.

    Args:
        model: with a Gaussian bottleneck.
        x: samples.
        cond: a row of raw numbers for each.
        num_draws: at least this many; rounded up to whole chunks of 50, or pairs of them.
        widen: as for :func:`score_likelihood`.
    """
    bottleneck = _require_density(model)
    scales = _scales(model, widen)
    log_joint = _joint(model, x, cond)
    mean, log_var = bottleneck.posterior(model.embed(x, cond))
    num = -(-num_draws // len(scales))
    stream = ImportanceStream(len(x))
    while stream.num_draws < num:
        z, log_q = _propose(mean, log_var, scales, num=min(BOUND_DRAWS, num))
        values = torch.stack([log_joint(part) for part in z])
        stream.update(values[0] - log_q[0, 0], balanced_weights(values, log_q))
    return stream


def _propose(
    mean: Tensor, log_var: Tensor, scales: tuple[float, ...], *, num: int
) -> tuple[Float[Tensor, "S K B *G D"], Float[Tensor, "S S K B"]]:
    """Draw from the posterior at each scale, and return the draws' log density (axis 1) at each."""
    shape = (num, *mean.shape)
    noise = [scale * torch.randn(shape, device=mean.device) for scale in scales]
    z = torch.stack([mean + torch.exp(0.5 * log_var) * part for part in noise])
    wider = [log_var + 2 * math.log(scale) for scale in scales]
    return z, torch.stack([normal_log_prob(z, mean, part).flatten(3).sum(3) for part in wider])


def score_likelihood(
    model: Any,
    split: Split,
    *,
    num_draws: int,
    most: int | None = None,
    seed: int = 0,
    widen: float | None = None,
) -> dict[str, dict[str, Any]]:
    """Score -log p(x) of test data, in nats: by the ELBO, the bound of 50 draws, and all draws.

    Each row has ``error``, the standard error over the data, and ``draws_error``, by the draws. The
    last one has ``ess``, the mean effective number of draws, and ``ess_low``, the share of samples
    with fewer than 10, of whose log p(x) the draws say little.

    Args:
        model: an autoencoder with a Gaussian bottleneck.
        split: whose samples.
        num_draws: draws of z for each sample, >= 2, or 4 where half of them are from a wider q.
        most: only the first so many samples; None is all.
        seed: of the draws.
        widen: draw half of them from q(z|x) with so many times its standard deviation, for log p(x)
            and not for the two bounds; 1 is all from q, the protocol of arXiv:1509.00519; None is 5
            for at most 8 latents, else 1: the more latents, the more often a wide draw is wasted.

    Raises:
        UsageError: the model has no density over z, or its nll is a profile and no density.
    """
    _require_density(model)
    scales = _scales(model, widen)
    if num_draws < 2 * len(scales):
        raise UsageError(
            f"likelihood={num_draws}: needs at least 2 draws from each density, of {len(scales)}"
        )
    device = next(model.parameters()).device
    found: dict[str, list[Estimate]] = {"elbo": [], "bound": [], "log_p": []}
    effective = []
    what = "log p(x)"
    with own_random_numbers(device):
        for number, batch in enumerate(batches_of(split, label="likelihood", most=most)):
            what = _what(model, batch.x, what)
            for part, (x, cond) in enumerate(_pieces(batch.to(device))):
                torch.manual_seed(noise_seed(seed, "likelihood", number, part))
                stream = estimate_likelihood(model, x, cond, num_draws=num_draws, widen=widen)
                effective.append(stream.effective_draws())
                for name, parts in found.items():
                    parts.append(getattr(stream, name)())
    chunk = min(BOUND_DRAWS, stream.num_draws)
    drawn = f"{len(scales) * stream.num_draws} draws of {_proposal(scales)}"
    ess = torch.cat(effective)
    return {
        "nll_elbo": _row(found["elbo"], f"nats/sample, -ELBO of {what}"),
        f"nll_iwae_{chunk}": _row(
            found["bound"], f"nats/sample, -bound of {chunk} draws on {what}"
        ),
        "nll_importance": _row(found["log_p"], f"nats/sample, -{what}, {drawn}")
        | {"drawn": drawn}
        | {"ess": ess.mean().item(), "ess_low": (ess < FEW_DRAWS).double().mean().item()},
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

    The chains start from wide importance draws, taken by their weights, so that where the posterior
    has several places each has its share of chains. ``left_out`` counts the samples of which the
    chains tell nothing, see :func:`~qvae.metrics.hmc.hmc_log_likelihood`.

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
    size = _num_latents(model)
    if size > _MOST_LATENTS:
        raise UsageError(f"hmc: {size} latents, the estimator is good for few (at most 8)")
    device = next(model.parameters()).device
    found = []
    what = "log p(x)"
    with own_random_numbers(device):
        for number, batch in enumerate(batches_of(split, label="hmc", most=most)):
            what = _what(model, batch.x, what)
            for part, (x, cond) in enumerate(_pieces(batch.to(device))):
                torch.manual_seed(noise_seed(seed, "hmc", number, part))
                found.append(_hmc(model, x, cond, num_draws=num_draws, burn_in=burn_in))
    drawn = f"HMC, {_CHAINS} chains"
    row = _row([_known(part) for part in found], f"nats/sample, -{what}, {drawn}")
    num = sum(len(part.value) for part in found)
    return {"nll_hmc": row | {"drawn": drawn, "left_out": num - row["n"]}}


def _what(model: Autoencoder, x: Tensor, before: str) -> str:
    """Return what an nll of these samples is, given what it was of those before."""
    is_coin = model.likelihood.levels == 2
    is_grey = is_coin and not bool(((x == 0) | (x == 1)).all())
    return "log weight of grey pixels, no p(x)" if is_grey else before


def _known(estimate: Estimate) -> Estimate:
    is_known = ~estimate.value.isnan()
    return Estimate(value=estimate.value[is_known], error=estimate.error[is_known])


@torch.no_grad()
def _hmc(
    model: Autoencoder, x: Tensor, cond: Tensor | None, *, num_draws: int, burn_in: int
) -> Estimate:
    log_joint = _joint(model, x, cond)
    start = _starts(model, x, cond, log_joint)

    def flat_joint(flat: Tensor) -> Tensor:
        return log_joint(flat.view(start.shape)).flatten()

    return hmc_log_likelihood(flat_joint, start.flatten(2), num_draws=num_draws, burn_in=burn_in)


def _starts(
    model: Autoencoder, x: Tensor, cond: Tensor | None, log_joint: Callable[[Tensor], Tensor]
) -> Float[Tensor, "C B *G D"]:
    """Take importance draws by their weights, so that chains start where the posterior has mass."""
    posterior = _require_density(model).posterior(model.embed(x, cond))
    places, weights = list[Tensor](), list[Tensor]()
    for _ in range(_START_CHUNKS):
        z, log_q = _propose(*posterior, (1.0, _WIDEN), num=BOUND_DRAWS)
        places.append(z.flatten(0, 1))
        joint = torch.stack([log_joint(part) for part in z])
        weights.append((joint - log_q.logsumexp(0)).flatten(0, 1))
    chances = torch.cat(weights).T.softmax(1)
    chosen = torch.multinomial(chances, _CHAINS, replacement=True).T
    return torch.cat(places)[chosen, torch.arange(len(x), device=x.device)]


def _joint(model: Autoencoder, x: Tensor, cond: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return log p(x, z) as a function of z ``[K, B, *G, D]`` to ``[K, B]``."""
    bottleneck = _require_density(model)

    def log_joint(z: Tensor) -> Tensor:
        told = None if cond is None else cond.repeat(len(z), 1)
        params = model.decode(z.flatten(0, 1), told).float()
        nll = model.likelihood.nll(params, x.expand(len(z), *x.shape).flatten(0, 1))
        return bottleneck.log_prior(z).flatten(2).sum(2) - nll.view(len(z), -1)

    return log_joint


def _num_latents(model: Autoencoder) -> int:
    return math.prod(model.grid) * model.bottleneck.out_dim


def _scales(model: Autoencoder, widen: float | None) -> tuple[float, ...]:
    """The densities that z is drawn from, as multiples of the posterior's standard deviation."""
    if widen is None:
        widen = _WIDEN if _num_latents(model) <= _MOST_LATENTS else 1.0
    if not 1 <= widen <= _WIDEST:
        raise UsageError(f"widen={widen:g}: must be from 1 to {_WIDEST:g}")
    return (1.0,) if widen == 1 else (1.0, widen)


def _proposal(scales: tuple[float, ...]) -> str:
    if len(scales) == 1:
        return "q(z|x)"
    return f"q(z|x), half of them with {scales[1]:g} x its sd"


def _pieces(batch: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Cut a batch so that the draws of a piece fit in memory."""
    xs = batch.x.split(_BATCH)
    conds = [None] * len(xs) if batch.cond is None else batch.cond.split(_BATCH)
    return list(zip(xs, conds, strict=True))


def _require_density(model: Any) -> Gaussian:
    """Return the bottleneck, whose density over z every estimate needs."""
    if not isinstance(model, Autoencoder) or not isinstance(model.bottleneck, Gaussian):
        part = type(getattr(model, "bottleneck", model)).__name__
        raise UsageError(f"likelihood: {part} has no density over z; needs a gaussian bottleneck")
    if model.likelihood.is_profile:
        raise UsageError(
            "likelihood: sigma=optimal has seen x, so its nll is no density; train with a number "
            "or learned"
        )
    return model.bottleneck


def _row(estimates: list[Estimate], unit: str) -> dict[str, Any]:
    value, error, draws_error = mean_and_errors(estimates)
    num = sum(len(part.value) for part in estimates)
    row = {"value": -value, "unit": unit, "n": num, "split": "test"}
    return {**row, "error": error, "draws_error": draws_error}
