"""Score a run on its test data: every number with its unit, how many samples, and which split."""

import math
from typing import Any

import torch
from torch import Tensor

from qvae.autoencoder import Autoencoder
from qvae.bottlenecks.base import Quantizer
from qvae.bottlenecks.gaussian import Gaussian
from qvae.bottlenecks.identity import Identity
from qvae.data.base import DataModule
from qvae.data.tokens import TokenData
from qvae.errors import UsageError
from qvae.metrics.codebook import CodebookUsage
from qvae.metrics.frechet import FeatureStatistics, RandomConvFeatures, frechet_distance
from qvae.metrics.posterior import PosteriorStatistics
from qvae.metrics.reconstruction import psnr, ssim
from qvae.priors.base import Prior
from qvae.priors.unigram import fit_unigram
from qvae.runs.loading import Run
from qvae.runs.tokens import batches_of
from qvae.runs.units import gives_bits, nll_unit
from qvae.train.engine import own_random_numbers
from qvae.types import Batch

__all__ = ["evaluate_run"]

_SPLIT = "test"
_SSIM_WINDOW = 11
_FEATURE_SIDE = 8
_FRECHET_SAMPLES = 2048


@torch.no_grad()
def evaluate_run(run: Run, data: DataModule, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Score a run on the test split.

    An autoencoder: PSNR, SSIM and Frechet distance of the reconstructions; nll, rate and, where
    the likelihood is discrete, bits per dimension; usage, perplexity and bits of the codes; of a
    VAE active units, KL by coordinate, and the rate as mutual information and marginal KL. A
    prior: bits per token beside those of the unigram and of the uniform prior, and the Frechet
    distance of samples from the decoded test tokens.

    Returns:
        name -> ``{"value", "unit", "n", "split"}``.

    Raises:
        UsageError: the data is not what the model takes.
    """
    if isinstance(run.model, Prior):
        if not isinstance(data, TokenData):
            raise UsageError(f"{run.path}: a prior is scored on tokens, see qvae encode")
        return _score_prior(run, run.model, data, seed=seed)
    return _score_autoencoder(run.model, data, seed=seed)


class _Means:
    """Sums of numbers a sample, by name."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.num = 0

    def add(self, num: int, **values: Tensor) -> None:
        self.num += num
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.double().sum().item()

    def row(self, name: str, unit: str, *, scale: float = 1.0) -> dict[str, Any]:
        return _row(self.sums[name] / self.num * scale, unit, self.num)


def _row(value: Any, unit: str, num: int, split: str = _SPLIT) -> dict[str, Any]:
    return {"value": value, "unit": unit, "n": num, "split": split}


def _score_autoencoder(
    model: Autoencoder, data: DataModule, *, seed: int
) -> dict[str, dict[str, Any]]:
    means = _Means()
    frechet = _Frechet(data.spec.shape)
    bottleneck = model.bottleneck
    codes = CodebookUsage(bottleneck.codebook_sizes) if isinstance(bottleneck, Quantizer) else None
    posteriors = PosteriorStatistics()
    has_ssim = len(data.spec.shape) > 1 and min(data.spec.shape[1:]) >= _SSIM_WINDOW
    device = next(model.parameters()).device
    with own_random_numbers(device):
        torch.manual_seed(seed)
        for batch in batches_of(data.test(), label="eval"):
            batch = batch.to(device)
            z_e = model.embed(batch.x, batch.cond)
            latent = bottleneck(z_e)
            if isinstance(bottleneck, Gaussian) and latent.kl is not None:
                posteriors.update(latent.z, *bottleneck.posterior(z_e), kl=latent.kl)
            params = model.decode(latent.z, batch.cond).float()
            nll = model.likelihood.nll(params, batch.x)
            if codes is None:  # a code's vector is the most likely one already
                params = model.decode(bottleneck.mode(z_e), batch.cond).float()
            recon = model.likelihood.mean(params)
            if data.spec.levels is not None:
                recon = recon.clamp(0, 1)
            means.add(len(batch), nll=nll, rate=latent.rate, psnr=psnr(recon, batch.x))
            if has_ssim:
                means.add(0, ssim=ssim(recon, batch.x))
            if codes is not None and latent.codes is not None:
                codes.update(latent.codes)
            frechet.add(batch.x, recon)
    scores = {"psnr": means.row("psnr", "dB")}
    if has_ssim:
        scores["ssim"] = means.row("ssim", "1")
    if codes is not None:
        cells = math.prod(model.grid)
        found: dict[str, Any] = dict(codes.result())
        scores["usage"] = _row(found["usage"], "share of codes", means.num)
        scores["perplexity"] = _row(found["perplexity"], "codes", means.num)
        scores["bits"] = _row(cells * found["max_bits"], "bits/sample", means.num)
        scores["entropy_bits"] = _row(
            cells * found["entropy_bits"], "bits/sample, unigram", means.num
        )
    elif not isinstance(bottleneck, Identity):
        scores["bits"] = means.row("rate", "bits/sample, KL", scale=1 / math.log(2))
    scores["nll"] = means.row("nll", nll_unit(model))
    scores["rate"] = means.row("rate", "nats/sample")
    if isinstance(bottleneck, Gaussian):
        scores |= _posterior_rows(posteriors, means.sums["rate"] / means.num)
    if gives_bits(model, data.spec.levels):
        means.sums["bound"] = means.sums["nll"] + means.sums["rate"]
        scale = 1 / (math.log(2) * data.spec.num_dims)
        scores["bits_per_dim"] = means.row("bound", "bits/dim, (nll + rate)", scale=scale)
    return scores | frechet.rows("reconstructions")


def _posterior_rows(posteriors: PosteriorStatistics, rate: float) -> dict[str, dict[str, Any]]:
    """Tell a collapsed posterior from one that carries the data."""
    found = posteriors.result()
    of = f"of {found.num_units} latents, variance of the posterior mean > .01"
    information = f"nats/sample, I(x; z), at most log N = {math.log(found.num):.2f}"
    marginal = "nats/sample, KL(q(z) || p(z)), the rest of the rate"
    return {
        "active_units": _row(found.active_units, of, found.num),
        "mutual_information": _row(found.mutual_information, information, found.num),
        "marginal_kl": _row(rate - found.mutual_information, marginal, found.num),
        "kl_by_dim": _row(found.kl, "nats/sample, each latent", found.num),
    }


def _score_prior(run: Run, prior: Prior, data: TokenData, *, seed: int) -> dict[str, Any]:
    means = _Means()
    unigram = fit_unigram(
        data.train(),
        codebook_sizes=prior.codebook_sizes,
        num_tokens=prior.num_tokens,
        conditions=prior.conditions,
    )
    tokenizer = run.require_tokenizer()
    frechet = _Frechet(tokenizer.spec.shape)
    for batch in batches_of(data.test(), label="eval"):
        told = batch.to(prior.device)
        means.add(
            len(batch),
            nll=prior.nll(told.x, told.cond, lengths=told.lengths),
            unigram=unigram.nll(batch.x, batch.cond, lengths=batch.lengths),
            tokens=_num_tokens(batch),
        )
        if means.num - len(batch) < _FRECHET_SAMPLES:
            _add_samples(run, prior, told, frechet, seed=seed + means.num)
    scale = means.num / (means.sums["tokens"] * math.log(2))
    sizes = prior.codebook_sizes
    uniform = sum(math.log2(size) for size in sizes) / len(sizes)
    return {
        "bits_per_token": means.row("nll", "bits/token", scale=scale),
        "bits_per_token_unigram": means.row("unigram", "bits/token", scale=scale),
        "bits_per_token_uniform": _row(uniform, "bits/token", means.num),
        "bits": means.row("nll", "bits/sample", scale=1 / math.log(2)),
        **frechet.rows("samples against decoded tokens"),
    }


def _num_tokens(batch: Batch) -> Tensor:
    """Count each row's tokens, without padding."""
    if batch.lengths is not None:
        return batch.lengths
    return torch.full((len(batch),), batch.x.shape[1])


def _add_samples(run: Run, prior: Prior, batch: Batch, frechet: "_Frechet", *, seed: int) -> None:
    """Draw one sample for each row's conditions and put both beside each other."""
    tokenizer = run.require_tokenizer()
    options = run.recipe.sample if run.recipe else {}
    drawn = prior.sample(len(batch), batch.cond, seed=seed, lengths=batch.lengths, **options)
    frechet.add(tokenizer.decode(batch.x, batch.cond), tokenizer.decode(drawn, batch.cond))


class _Frechet:
    """The Frechet distance on the named feature network, where the data is large enough for it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        axes = len(shape) - 1
        can = 1 <= axes <= 3 and min(shape[1:]) >= _FEATURE_SIDE
        self.network = RandomConvFeatures(shape[0], num_axes=axes) if can else None
        self.real = FeatureStatistics(RandomConvFeatures.dim)
        self.made = FeatureStatistics(RandomConvFeatures.dim)

    def add(self, real: Tensor, made: Tensor) -> None:
        if self.network is not None:
            self.real.update(self.network(real.cpu()))
            self.made.update(self.network(made.cpu()))

    def rows(self, what: str) -> dict[str, dict[str, Any]]:
        if self.network is None or self.real.num < 2:
            return {}
        unit = f"squared distance on {self.network.name}, {what}"
        return {"frechet": _row(frechet_distance(self.real, self.made), unit, self.real.num)}
