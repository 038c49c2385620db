"""Auto-Encoding Variational Bayes: the bound by the number of latents, and log p(x) in two ways."""

import json
from pathlib import Path
from typing import Any

import torch

from qvae.data.base import Split
from qvae.metrics.rate_split import active_units
from qvae.reports.reproduce import Findings, Published, Row, Study
from qvae.runs.likelihood import score_hmc, score_likelihood
from qvae.runs.loading import Run
from qvae.runs.tokens import batches_of
from qvae.train.engine import own_random_numbers

__all__ = ["reproduce"]

_SIZES = (3, 5, 10, 20, 200, 500)
_PLATEAUS = {3: -136.0, 5: -122.0, 10: -107.0, 20: -102.0, 200: -103.0}
"""Figure 2, MNIST, test: the ends of the curves, as remembered from reading the plot."""
_NOTE = "MNIST 60k, off the plot, +-4"
_MOST_TRAIN = 10_000


def reproduce(study: Study) -> Findings:
    """Repeat figure 2 for every size of z, and check figure 3's estimator against another.

    Paper: Kingma & Welling 2013, arXiv:1312.6114, section 5 and appendices C and D. Ours differs:
    AdamW without decay in place of Adagrad with a small prior on the weights; figure 3 is a check
    of two estimators on one model, not a race against wake-sleep and MCEM.
    """
    sizes = (3, 20) if study.is_quick else _SIZES
    found = {size: _bound(study, size) for size in sizes}
    check = _marginal(study)
    rows = [
        Row(
            name=f"Nz={size}",
            ours={name: row[name] for name in ("train bound", "test bound", "active units")},
            published=Published(value=_PLATEAUS[size], source="memory", note=_NOTE)
            if size in _PLATEAUS
            else None,
        )
        for size, row in found.items()
    ]
    estimates = ("importance sampling", "HMC", "ESS", "ESS < 10")
    rows.append(Row(name="Nz=3, 100 units: log p(x)", ours={n: check[n] for n in estimates}))
    return Findings(
        title="AEVB, figure 2 and the estimator of figure 3",
        protocol=_protocol(study, found[sizes[0]], check),
        rows=rows,
        checks=_checks({size: row["test bound"] for size, row in found.items()}, check),
        curves={f"Nz={size}": row["curve"] for size, row in found.items()},
    )


def _checks(test: dict[int, float], check: dict[str, Any]) -> dict[str, bool]:
    apart = abs(check["importance sampling"] - check["HMC"])
    checks = {
        f"both estimates of log p(x) within 1 nat ({apart:.2f})": apart < 1,
    }
    if all(size in test for size in _SIZES):
        rising = all(test[a] < test[b] for a, b in zip((3, 5, 10), (5, 10, 20), strict=True))
        loss = test[20] - test[200]
        checks["test bound rises with Nz = 3, 5, 10, 20"] = rising
        checks[f"Nz=200 at most 2 nats below Nz=20 ({loss:.2f})"] = loss <= 2
    return checks


def _bound(study: Study, size: int) -> dict[str, Any]:
    changes = {
        "data.path": study.require_data(),
        "bottleneck.dim": size,
        "encoder.latent_dim": 2 * size,
        "decoder.latent_dim": size,
    }

    def measure(run: Run, data: Any) -> dict[str, Any]:
        test, units = _elbo(run, data.test())
        train, _ = _elbo(run, data.train())
        return {
            "train bound": train,
            "test bound": test,
            "active units": units,
            "num_test": len(data.test()),
            "num_train": len(data.train()),
            "curve": _curve(run.path, run.recipe.train["batch_size"] if run.recipe else 0),
        }

    return study.score(f"latents_{size}", study.recipe("aevb", changes), measure)


def _marginal(study: Study) -> dict[str, Any]:
    changes = {
        "data.path": study.require_data(),
        "encoder.hidden": [100],
        "decoder.hidden": [100],
        "bottleneck.dim": 3,
        "encoder.latent_dim": 6,
        "decoder.latent_dim": 3,
    }
    draws, most = (100, 8) if study.is_quick else (5000, 200)
    length = 4 if study.is_quick else 100

    def measure(run: Run, data: Any) -> dict[str, Any]:
        options = {"most": most, "seed": study.seed}
        rows = score_likelihood(run.model, data.test(), num_draws=draws, **options)
        rows |= score_hmc(run.model, data.test(), num_draws=length, burn_in=length, **options)
        by_draws, by_hmc = rows["nll_importance"], rows["nll_hmc"]
        return {
            "importance sampling": -by_draws["value"],
            "HMC": -by_hmc["value"],
            "errors by the draws": [by_draws["draws_error"], by_hmc["draws_error"]],
            "drawn": [row["drawn"] for row in (by_draws, by_hmc)],
            "ESS": by_draws["ess"],
            "ESS < 10": by_draws["ess_low"],
            "left out by HMC": by_hmc["left_out"],
            "num": by_draws["n"],
        }

    return study.score("marginal", study.recipe("aevb", changes), measure)


@torch.no_grad()
def _elbo(run: Run, split: Split) -> tuple[float, int]:
    """Average the bound over 10,000 samples at most, one draw each; count active units."""
    model: Any = run.model
    total, means = 0.0, list[torch.Tensor]()
    with own_random_numbers(run.device):
        torch.manual_seed(0)
        for batch in batches_of(split, label="bound", most=_MOST_TRAIN):
            batch = batch.to(run.device)
            z_e = model.embed(batch.x)
            latent = model.bottleneck(z_e)
            nll = model.likelihood.nll(model.decode(latent.z), batch.x)
            total -= (nll + latent.rate).double().sum().item()
            means.append(model.bottleneck.posterior(z_e)[0].flatten(1))
    mean = torch.cat(means)
    return total / len(mean), active_units(mean)


def _curve(run: Path, batch_size: int) -> list[dict[str, float]]:
    """The bound by training samples seen, as the figure shows it."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [
        {
            "training samples": float(row["step"] * batch_size),
            "valid bound": -row["nll"] - row["rate"],
        }
        for row in rows
        if row["split"] == "valid"
    ]


def _protocol(study: Study, some: dict[str, Any], check: dict[str, Any]) -> dict[str, Any]:
    recipe = study.recipe("aevb", {"data.path": study.require_data()})
    train = recipe.train
    return {
        "data": f"{study.data_name}, {some['num_train']} to train, {some['num_test']} to test",
        "pixels": "grey, as the chance of a 1, so that every log p(x) here is a log weight and no "
        "density; the paper does not say",
        "network": "one hidden layer of 500 tanh units each way, Bernoulli",
        "training": f"{train['steps']} steps of {train['batch_size']}, AdamW, lr {train['lr']}",
        "bound": f"one draw a sample; at most {_MOST_TRAIN} samples of a part",
        "log p(x)": f"{check['num']} test samples; {' and '.join(check['drawn'])}; "
        f"errors by the draws {' and '.join(f'{x:.2g}' for x in check['errors by the draws'])}; "
        f"{check['left out by HMC']} samples left out by HMC",
        "seed": study.seed,
        "quick": study.is_quick,
    }
