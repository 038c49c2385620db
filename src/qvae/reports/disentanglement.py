"""How well a run's codes are the factors of its data, and the table of the beta-VAE paper."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qvae.autoencoder import Autoencoder
from qvae.bottlenecks.base import Quantizer
from qvae.bottlenecks.gaussian import Gaussian
from qvae.errors import UsageError
from qvae.metrics.disentanglement import (
    beta_vae_score,
    dci,
    factor_vae_score,
    irs,
    mig,
    mig_posterior,
    sap,
)
from qvae.metrics.disentanglement.lattice import Represent, draw_rows
from qvae.runs.loading import Run, open_run
from qvae.runs.representations import (
    FactorData,
    ica,
    model_codes,
    pca,
    pixels,
    posteriors,
    tabulated,
    true_factors,
)
from qvae.train.engine import resolve_device

__all__ = [
    "PROTOCOLS",
    "PUBLISHED",
    "beta_vae_scores",
    "beta_vae_table",
    "disentanglement_table",
    "evaluate_disentanglement",
    "score_representation",
]

PROTOCOLS: dict[str, dict[str, Any]] = {
    "logistic, 64 pairs": {"classifier": "logistic"},
    "logistic, 64 pairs, no shape": {"classifier": "logistic"},
    "adagrad, 64 pairs": {"classifier": "adagrad"},
    "adagrad, 64 pairs, no shape": {"classifier": "adagrad"},
    "adagrad, 64 pairs, no shape, 1000 steps": {"classifier": "adagrad", "steps": 1000},
    "adagrad, 20 pairs, no shape": {"classifier": "adagrad", "num_pairs": 20},
    "adagrad, 10 pairs, no shape": {"classifier": "adagrad", "num_pairs": 10},
}
"""Ways to compute the beta-VAE metric: the paper does not say all that it takes. Where a name says
so, the factor "shape" is never held, so four factors are told apart and not five."""

PUBLISHED = {
    "ground truth": (100.0, "second-hand"),
    "raw pixels": (45.75, "second-hand"),
    "PCA": (84.9, "second-hand"),
    "ICA": (42.03, "second-hand"),
    "untrained": (44.14, "memory"),
    "VAE": (61.58, "second-hand"),
    "beta-VAE": (99.23, "second-hand"),
    "beta-VAE, constant price": (99.23, "second-hand"),
}
"""Higgins et al. 2017, figure 6, in percent, and how we know: none was read in the paper itself."""


_FEWEST = 50
"""Points below which a classifier may not even see two of the factors."""


def evaluate_disentanglement(
    run: Run, data: Any, *, points: int = 10_000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Score the codes of an autoencoder's run on data with known factors.

    Args:
        run: an autoencoder's, not a prior's.
        data: with ``factor_sizes``, such as ``shapes2d``.
        points: of each metric, >= 50; half as many are held out.
        seed: of all draws.

    Returns:
        name -> ``{"value", "protocol", "n"}``.

    Raises:
        UsageError: the run is a prior's or its encoder is told conditions, the data's factors are
            not known, ``points`` breaks its rule, or scikit-learn is missing.
    """
    model = _model_of(run)
    _check(run, model, data, points)
    num = int(np.prod(data.factor_sizes))
    represent = model_codes(model, data)
    if 2 * 64 * points > num:
        represent = tabulated(represent, num, label="encode")
    is_discrete = isinstance(model.bottleneck, Quantizer)
    rows = score_representation(represent, data, points=points, is_discrete=is_discrete, seed=seed)
    if isinstance(model.bottleneck, Gaussian):
        chosen = draw_rows(data.factor_sizes, points, np.random.default_rng(seed))
        mean, log_var = posteriors(model, data, chosen)
        value = mig_posterior(
            mean,
            log_var,
            data.classes(chosen)[:, _without_shape(data)],
            num_samples=points,
            seed=seed,
        )
        rows["mig_posterior"] = _row(value, "samples and densities, without shape", points)
    return rows


def score_representation(
    represent: Represent,
    data: FactorData,
    *,
    points: int = 10_000,
    is_discrete: bool = False,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Score any representation by all metrics that need no posterior."""
    sizes, half = data.factor_sizes, max(2, points // 2)
    rows = draw_rows(sizes, points + half, np.random.default_rng([seed, 1]))
    codes, classes = np.asarray(represent(rows), dtype=np.float64), data.classes(rows)
    counts: dict[str, Any] = {"num_train": points, "num_test": half, "seed": seed}
    found = {
        name: _row(beta_vae_score(represent, sizes, **_options(name, data), **counts), name, points)
        for name in ("logistic, 64 pairs", "adagrad, 64 pairs, no shape")
    }
    scores = {f"beta_vae_{name.split(',')[0]}": row for name, row in found.items()}
    voted = factor_vae_score(represent, sizes, is_discrete=is_discrete, **counts)
    spread = "Gini" if is_discrete else "variance"
    scores["factor_vae"] = _row(voted, f"majority vote, groups of 64, {spread}", points)
    bins = "each value" if is_discrete else "20 bins"
    scores["mig"] = _row(
        mig(codes, classes, is_discrete=is_discrete), f"{bins}, all factors", len(codes)
    )
    if not is_discrete:
        scores["sap_r2"] = _row(sap(codes, classes), "squared correlation", len(codes))
        scores["irs"] = _row(irs(codes, classes), "quantile .99", len(codes))
    accuracy = sap(codes, classes, scale="accuracy", is_discrete=is_discrete)
    scores["sap_accuracy"] = _row(
        accuracy, "majority of each value" if is_discrete else "linear SVM, C .01", len(codes)
    )
    told = dci(codes, classes, seed=seed)
    for part in ("disentanglement", "completeness", "informativeness"):
        scores[f"dci_{part}"] = _row(getattr(told, part), "random forest", len(codes))
    return scores


def disentanglement_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Format scores, a line each, with their protocol."""
    return "\n".join(
        f"{name:<24}{row['value']:>8.4f}  {row['protocol']} (N={row['n']})"
        for name, row in scores.items()
    )


def beta_vae_scores(
    represent: Represent, data: FactorData, *, points: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Compute the beta-VAE metric under every protocol of :data:`PROTOCOLS`, in percent."""
    counts: dict[str, Any] = {"num_train": points, "num_test": max(2, points // 2), "seed": seed}
    return {
        name: 100 * beta_vae_score(represent, data.factor_sizes, **_options(name, data), **counts)
        for name in PROTOCOLS
    }


def _options(protocol: str, data: FactorData) -> dict[str, Any]:
    options = dict(PROTOCOLS[protocol])
    if "no shape" in protocol:
        options["factors"] = _without_shape(data)
    return options


def _without_shape(data: FactorData) -> list[int]:
    return [k for k, name in enumerate(data.factor_names) if name != "shape"]


def beta_vae_table(
    runs: Mapping[str, str | Path],
    *,
    untrained: Autoencoder | None = None,
    points: int = 10_000,
    seed: int = 0,
    data: Any = None,
    device: str = "cpu",
    tell: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Make the beta-VAE paper's table: baselines and trained runs, each under every protocol.

    Args:
        runs: title -> run folder, for instance ``{"VAE": ..., "beta-VAE": ...}``; a title that the
            paper has gets its value beside it.
        untrained: the model with its first weights; None leaves the row out.
        points: of the metric, >= 2.
        seed: of all draws.
        data: with known factors; None draws ``shapes2d``.
        device: where the models compute: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        tell: called with a sentence when a row begins.

    Returns:
        A row each: ``{"name", "scores": {protocol: percent}, "beside": {metric: 0 to 1},
        "published", "source"}``. ``beside`` holds metrics that saturate less; the pixels have none.

    Raises:
        UsageError: scikit-learn is missing, or a run is a prior's.
    """
    from qvae.data.shapes2d import Shapes2D

    source = Shapes2D() if data is None else data
    num = int(np.prod(source.factor_sizes))
    is_whole = 2 * 64 * points > num
    place = resolve_device(device)

    def codes_of(model: Autoencoder) -> Represent:
        represent = model_codes(model, source)
        return tabulated(represent, num, label="encode") if is_whole else represent

    def of_run(path: str | Path) -> Represent:
        run = open_run(path, device=place)
        return codes_of(_model_of(run))

    makers: dict[str, Callable[[], Represent]] = {
        "ground truth": lambda: true_factors(source),
        "raw pixels": lambda: pixels(source),
        "PCA": lambda: _maybe_tabulated(pca(source, seed=seed), num, is_whole),
        "ICA": lambda: _maybe_tabulated(ica(source, seed=seed), num, is_whole),
    }
    if untrained is not None:
        makers["untrained"] = lambda: codes_of(untrained.to(place).eval())
    for title, path in runs.items():
        makers[title] = lambda path=path: of_run(path)
    rows = []
    for name, make in makers.items():
        tell(f"beta-VAE metric of {name}")
        published, known_from = PUBLISHED.get(name, (None, ""))
        represent = make()
        rows.append(
            {
                "name": name,
                "scores": beta_vae_scores(represent, source, points=points, seed=seed),
                "beside": _beside(represent, source, points=points, seed=seed)
                if name != "raw pixels"
                else {},
                "published": published,
                "source": known_from,
            }
        )
    return rows


def _beside(represent: Represent, data: FactorData, *, points: int, seed: int) -> dict[str, float]:
    """Score what does not saturate as the beta-VAE metric does."""
    half = max(2, points // 2)
    rows = draw_rows(data.factor_sizes, points + half, np.random.default_rng([seed, 1]))
    codes, classes = np.asarray(represent(rows), dtype=np.float64), data.classes(rows)
    counts: dict[str, Any] = {"num_train": points, "num_test": half, "seed": seed}
    return {
        "FactorVAE score": factor_vae_score(represent, data.factor_sizes, **counts),
        "MIG, 20 bins": mig(codes, classes),
        "DCI disentanglement, forest": dci(codes, classes, seed=seed).disentanglement,
    }


def _maybe_tabulated(represent: Represent, num: int, is_whole: bool) -> Represent:
    return tabulated(represent, num, label="project") if is_whole else represent


def _model_of(run: Run) -> Autoencoder:
    if not isinstance(run.model, Autoencoder):
        raise UsageError(f"{run.path}: is the run of a prior; give its tokenizer's run")
    return run.model


def _check(run: Run, model: Autoencoder, data: Any, points: int) -> None:
    if not hasattr(data, "factor_sizes"):
        raise UsageError(
            f"{run.path}: disentanglement is measured on data with known factors, such as shapes2d"
        )
    if model.conditioner is not None:
        told = ", ".join(condition.name for condition in run.conditions)
        raise UsageError(
            f"{run.path}: its encoder is told {told}, so its codes may hold a factor that they "
            "never looked for; disentanglement is measured on a model without conditions"
        )
    if points < _FEWEST:
        raise UsageError(f"points={points}: must be at least {_FEWEST}")


def _row(value: float, protocol: str, num: int) -> dict[str, Any]:
    return {"value": value, "protocol": protocol, "n": num}
