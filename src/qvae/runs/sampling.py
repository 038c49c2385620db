"""Make new data with a run: by its prior, by the prior of a VAE's z, or by counting codes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qvae.arguments import check_whole
from qvae.autoencoder import Autoencoder
from qvae.bottlenecks.gaussian import Gaussian
from qvae.data.base import DataModule
from qvae.errors import DataError, UsageError
from qvae.priors.base import Prior
from qvae.priors.sampling import check_sampler
from qvae.priors.unigram import Unigram
from qvae.runs.files import read_sample
from qvae.runs.inpainting import keep_tokens, region_mask
from qvae.runs.loading import Run, open_run_data, told_row
from qvae.runs.tokens import batches_of, cut, token_bar
from qvae.tokenizer import Tokenizer
from qvae.types import DataSpec

__all__ = ["InPaint", "count_codes", "sample_latents", "sample_run"]

_BATCH = 256
_COUNTED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class InPaint:
    """A sample of which a part is to be drawn anew: a region, or what is not white in a mask."""

    file: str | Path
    region: str | None = None
    mask: str | Path | None = None


@torch.no_grad()
def sample_run(
    run: Run,
    *,
    num: int,
    cond: Mapping[str, str] | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    inpaint: InPaint | None = None,
    length: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Float[Tensor, "B *CS"]:
    """Draw samples; sample i depends on the model, the conditions, the settings and (seed, i).

    Args:
        run: a prior run, or an autoencoder's. A Gaussian bottleneck is sampled from its prior,
            N(0, 1) or a learned one; a quantizer without a prior from the frequencies of its
            codes on the training data.
        num: how many, >= 1.
        cond: what to tell the model, such as ``{"time": "4:20"}``.
        seed: >= 0.
        settings: temperature, top_k, top_p, min_p, guidance; what is not named comes from the
            ``sample`` section of the run's recipe.
        inpaint: keep the tokens of a given sample, but for those of a part of it.
        length: tokens of each sample, whole cells of a grid with one axis; None is all. What comes
            back is shorter in proportion.
        tell: called with a sentence when something other than a prior is sampled.

    Raises:
        UsageError: an unknown condition or value, a length that cannot be, or a model that cannot
            be sampled.
        DataError: the sample to in-paint cannot be read.
    """
    row = told_row(run, cond or {}, tell=tell)
    rows = None if row is None else row.expand(num, len(row))
    options = {**(run.recipe.sample if run.recipe else {}), **(settings or {})}
    options |= _kept(run, inpaint, rows)
    if length is not None:
        options["length"] = length
    if isinstance(run.model, Prior):
        return _by_prior(run.model, run.require_tokenizer(), num, rows, seed=seed, **options)
    if run.tokenizer is not None:
        if (settings or {}).get("guidance", 1.0) != 1.0:
            raise UsageError(f"guidance={options['guidance']}: {run.path} has no prior to guide")
        tell("this run has no prior: its codes are drawn by how often they occur (unigram)")
        prior = _unigram(run, run.tokenizer, tell)
        return _by_prior(prior, run.tokenizer, num, rows, seed=seed, **options)
    if isinstance(run.model.bottleneck, Gaussian):
        return sample_latents(run.model, num, rows, seed=seed, **options)
    raise UsageError(
        f"{run.path}: its bottleneck has no distribution to draw from; train a VAE (gaussian) or "
        "a quantizer and a prior"
    )


def _kept(run: Run, inpaint: InPaint | None, rows: Tensor | None) -> dict[str, Tensor]:
    """Return the tokens of the sample to in-paint, and which of them stay."""
    if inpaint is None:
        return {}
    tokenizer = run.require_tokenizer()
    x = read_sample(inpaint.file, tokenizer.spec)
    if inpaint.mask is None:
        is_kept = region_mask(inpaint.region or "", tokenizer.spec.shape[1:])
    else:
        shown = DataSpec(shape=(1, *tokenizer.spec.shape[1:]))
        is_kept = read_sample(inpaint.mask, shown)[0].numpy() > 0.5
        _check_mask(is_kept, inpaint.mask)
    keep = keep_tokens(is_kept, tokenizer.grid, len(tokenizer.codebook_sizes))
    told = None if rows is None else rows[:1]
    return {"known": tokenizer.encode(x[None].to(run.device), told), "keep": keep}


def _check_mask(is_kept: np.ndarray, path: str | Path) -> None:
    """Refuse a mask with which in-painting is no in-painting."""
    if not is_kept.any():
        raise UsageError(f"keep={str(path)!r}: nothing in it is white, so nothing would stay")
    if is_kept.all():
        raise UsageError(f"keep={str(path)!r}: all of it is white, so no part is left to draw")


def _by_prior(
    prior: Prior,
    tokenizer: Tokenizer,
    num: int,
    cond: Tensor | None,
    *,
    length: int | None = None,
    **options: Any,
) -> Tensor:
    if length is not None:
        _check_length(length, tokenizer)
        options["lengths"] = torch.full((num,), length)
    with token_bar("sample") as report:
        tokens = prior.sample(num, cond, on_step=report, **options)
    x = tokenizer.decode(tokens, cond).cpu()
    return x if length is None else cut(x, length, tokenizer.num_tokens)


def _check_length(length: int, tokenizer: Tokenizer) -> None:
    """Refuse what token files refuse: part of a cell, and a grid of several axes."""
    most, cell = tokenizer.num_tokens, len(tokenizer.codebook_sizes)
    if len(tokenizer.grid) != 1:
        axes = len(tokenizer.grid)
        raise UsageError(f"length={length}: a grid of {axes} axes is always full, needs one")
    if not 1 <= length <= most or length % cell:
        unit = f", in cells of {cell}" if cell > 1 else ""
        raise UsageError(f"length={length}: must be in 1..{most}{unit}")


@torch.no_grad()
def sample_latents(
    model: Autoencoder,
    num: int,
    cond: Float[Tensor, "B M"] | None = None,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    **options: Any,
) -> Float[Tensor, "B *CS"]:
    """Draw z from the prior of a Gaussian bottleneck and decode it; sample i follows (seed, i).

    Args:
        model: with a Gaussian bottleneck.
        num: how many.
        cond: a row of raw numbers for each sample.
        seed: >= 0.
        temperature: factor on the noise, >= 0.
        **options: settings of other samplers, refused unless they change nothing.

    Raises:
        UsageError: a setting that z's prior does not have.
        ValueError: a temperature or a seed out of range.
    """
    assert isinstance(model.bottleneck, Gaussian)
    check_sampler(temperature=temperature)
    check_whole("seed", seed, least=0)
    for name, value in options.items():
        if value is not None and (name, value) != ("guidance", 1.0):
            raise UsageError(f"{name}={value}: the prior of z has no such setting")
    shape = (2, *model.grid, model.bottleneck.out_dim)
    device = next(model.parameters()).device
    parts = []
    for start in range(0, num, _BATCH):
        part = range(start, min(start + _BATCH, num))
        noise = np.stack(
            [np.random.default_rng([seed, i]).standard_normal(shape, np.float32) for i in part]
        )
        blocks = torch.from_numpy(noise).to(device)
        blocks[:, 0] *= temperature
        z = model.bottleneck.from_noise(blocks)
        told = None if cond is None else cond[part.start : part.stop]
        parts.append(model.likelihood.mean(model.decode(z, told).float()).cpu())
    return torch.cat(parts)


def _unigram(run: Run, tokenizer: Tokenizer, tell: Callable[[str], None]) -> Unigram:
    try:
        return count_codes(tokenizer, open_run_data(run))
    except (DataError, UsageError) as error:
        tell(f"the training data cannot be read ({error}); every code is taken as equally frequent")
        return _blank(tokenizer)


def _blank(tokenizer: Tokenizer) -> Unigram:
    return Unigram(
        vocab_size=tokenizer.vocab_size,
        num_tokens=tokenizer.num_tokens,
        conditions=tokenizer.spec.conditions,
        codebook_sizes=tokenizer.codebook_sizes,
    ).to(tokenizer.device)


def count_codes(tokenizer: Tokenizer, data: DataModule) -> Unigram:
    """Count the tokens of the first 4096 training samples, at each position."""
    prior = _blank(tokenizer)
    for batch in batches_of(data.train(), label="count codes", most=_COUNTED):
        prior.count(tokenizer.encode(batch.x, batch.cond).to(tokenizer.device))
    return prior
