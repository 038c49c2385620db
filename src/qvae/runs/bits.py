"""How probable given files are, and how many bits a picture takes under both stages."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvae.autoencoder import Autoencoder
from qvae.data.base import DataModule
from qvae.errors import FormatError, UsageError
from qvae.priors.base import Prior
from qvae.runs.files import read_sample
from qvae.runs.loading import Run, told_row
from qvae.runs.tokens import batches_of
from qvae.runs.units import gives_bits, loss_unit, nll_unit
from qvae.train.engine import own_random_numbers

__all__ = ["score_files", "total_bits"]


@torch.no_grad()
def score_files(
    run: Run,
    files: Sequence[str | Path],
    *,
    cond: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Score files; a high score is an unusual sample.

    A prior's run scores the tokens: ``nats`` is -log p(tokens) and ``score`` the bits a token. A
    VAE's or a quantizer's run scores the data: ``nats`` is nll + rate, and ``score`` that in bits
    a dimension where it bounds bits, else in nats a dimension; ``unit`` says what they are then:
    a density, a profile likelihood (sigma fitted to the file itself), or an error without a rate.
    A VAE's one draw of z has a fixed seed, so a file's score does not depend on the others.

    Raises:
        DataError: a file that cannot be read or has another shape.
        UsageError: an unknown condition or value, or a model that hears none.
    """
    row = told_row(run, cond or {}, tell=tell)
    told = None if row is None else row[None]
    spec = run.model.spec if isinstance(run.model, Autoencoder) else run.require_tokenizer().spec
    rows = []
    for file in files:
        x = read_sample(file, spec)[None].to(run.device)
        if isinstance(run.model, Prior):
            tokens = run.require_tokenizer().encode(x, told)
            nats = float(run.model.nll(tokens, told))
            score, unit = nats / (math.log(2) * run.model.num_tokens), "bits/token"
        else:
            with own_random_numbers(run.device):
                torch.manual_seed(0)  # a VAE draws z: the same for each file, in any company
                nats = float(sum(_nll(run.model, x, told)))
            unit = loss_unit(run.model, spec.levels)
            score = nats / spec.num_dims / (math.log(2) if unit == "bits/dim" else 1)
        rows.append({"file": str(file), "score": score, "unit": unit, "nats": nats})
    return rows


@torch.no_grad()
def total_bits(run: Run, first: Run, data: DataModule) -> dict[str, dict[str, Any]]:
    """Score data under both stages: -log p(x | tokens) - log p(tokens), on the test split.

    The prior's cross-entropy stands where the quantizer's own rate assumes that all codes are
    equally frequent. The prior is told nothing; where it knows conditions, a second row says what
    it costs when it is told them. The distribution of x given its tokens is the likelihood's, and
    other tokens could give the same x, so this bounds -log p(x) from above.

    Args:
        run: a prior's run.
        first: the run that made its tokens.
        data: that run's data.

    Returns:
        name -> ``{"value", "unit", "n", "split"}``.

    Raises:
        UsageError: ``run`` is no prior's.
        FormatError: its tokens are of another tokenizer.
    """
    model, tokenizer = first.model, first.require_tokenizer()
    if not isinstance(run.model, Prior) or not isinstance(model, Autoencoder):
        raise UsageError(f"{run.path}: needs a prior's run, and --stage1 the run of its tokens")
    if run.require_tokenizer().hash != tokenizer.hash:
        raise FormatError(
            f"{first.path}: its tokenizer is {tokenizer.hash[:12]}, the prior learned tokens of "
            f"{run.require_tokenizer().hash[:12]}"
        )
    sums = {"nll": 0.0, "uniform": 0.0, "prior": 0.0, "told": 0.0}
    num = 0
    for batch in batches_of(data.test(), label="total bits"):
        batch = batch.to(run.device)
        num += len(batch)
        tokens = tokenizer.encode(batch.x, batch.cond)
        nll, rate = _nll(model, batch.x, batch.cond)
        sums["nll"] += float(nll.double().sum())
        sums["uniform"] += float(rate.double().sum())
        sums["prior"] += float(run.model.nll(tokens).double().sum())
        if run.conditions:
            sums["told"] += float(run.model.nll(tokens, batch.cond).double().sum())
    means = {name: value / num for name, value in sums.items()}
    rates = {"prior": "bits_per_dim_total", "uniform": "bits_per_dim_uniform"}
    rows: dict[str, tuple[float, str]] = {
        "nll_given_tokens": (means["nll"], nll_unit(model)),
        "rate_prior": (means["prior"], "nats/sample"),
        "rate_uniform": (means["uniform"], "nats/sample"),
    }
    if run.conditions:
        rows["rate_prior_told"] = (means["told"], "nats/sample, told the conditions")
        rates["told"] = "bits_per_dim_told"
    if gives_bits(model, data.spec.levels):
        scale = math.log(2) * data.spec.num_dims
        for rate_name, name in rates.items():
            rows[name] = ((means["nll"] + means[rate_name]) / scale, "bits/dim, (nll + rate)")
    return {
        name: {"value": value, "unit": unit, "n": num, "split": "test"}
        for name, (value, unit) in rows.items()
    }


def _nll(model: Autoencoder, x: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return -log p(x | z) and the model's own rate, nats a sample."""
    latent = model.encode(x, cond)
    return model.likelihood.nll(model.decode(latent.z, cond).float(), x), latent.rate
