"""The beta-VAE paper's metric: baselines, a VAE and a beta-VAE on the 2-D shapes."""

from qvae.autoencoder import Autoencoder
from qvae.data.shapes2d import Shapes2D
from qvae.reports.disentanglement import PROTOCOLS, beta_vae_table
from qvae.reports.reproduce import Findings, Published, Row, Study
from qvae.runs.build import build_model

__all__ = ["reproduce"]

_RUNS = {  # title: run folder, recipe, changes
    "VAE": ("shapes2d_vae", "shapes2d_vae", {}),
    "beta-VAE": ("shapes2d_beta_vae", "shapes2d_beta_vae", {}),
    "beta-VAE, constant price": ("shapes2d_constant", "shapes2d_vae", {"model.beta": 4.0}),
}
_POINTS, _QUICK_POINTS = 10_000, 40
_BASELINES = ("raw pixels", "PCA", "ICA", "untrained")
_NEAR, _LEAST = 5.0, 99.2


def reproduce(study: Study) -> Findings:
    """Score the rows of figure 6 under every named protocol of the metric.

    Paper: Higgins et al. 2017, openreview Sy2fzU9gl, figure 6. Ours differs: the pictures are drawn
    anew, AdamW in place of Adagrad, a fixed number of steps, and the price of the rate falls to
    beta; beside it stands a constant one, as in the paper. That does not say all that the metric
    takes, so each named protocol has a column, and none is chosen.
    """
    study.refuse_data()
    recipes = {title: study.recipe(name, changes) for title, (_, name, changes) in _RUNS.items()}
    train, price = recipes["VAE"].train, recipes["beta-VAE"].model or {}
    for title, recipe in recipes.items():
        study.score(_RUNS[title][0], recipe, lambda run, data: {})
    data = Shapes2D()
    untrained = build_model(recipes["VAE"], data)
    assert isinstance(untrained, Autoencoder), "the recipe has a model section"
    points = _QUICK_POINTS if study.is_quick else _POINTS
    found = beta_vae_table(
        {title: study.folder / "runs" / name for title, (name, _, _) in _RUNS.items()},
        untrained=untrained,
        points=points,
        seed=study.seed,
        data=data,
        device=study.device,
        tell=study.tell,
    )
    scores = {row["name"]: row["scores"] for row in found}
    published = {row["name"]: row["published"] for row in found}
    rows = [
        Row(
            name=row["name"],
            ours=row["scores"] | {name: 100 * value for name, value in row["beside"].items()},
            published=Published(value=row["published"], source=row["source"], note="%"),
        )
        for row in found
    ]
    return Findings(
        title="beta-VAE, the metric of figure 6, in percent",
        protocol={
            "data": "shapes2d: the specification of dSprites, drawn anew",
            "training": f"{train['steps']} steps of {train['batch_size']}, AdamW, lr {train['lr']}",
            "beta-VAE's price of the rate": f"from {price['beta_start']:g} to {price['beta']:g} "
            f"by equal factors in {price['beta_warmup']} steps",
            "points": f"{points} to fit each classifier, half as many to score it",
            "protocols": f"{len(PROTOCOLS)}, a column each, all of them shown",
            "seed": study.seed,
            "quick": study.is_quick,
        },
        rows=rows,
        checks=_checks(scores, published),
    )


def _checks(
    scores: dict[str, dict[str, float]], published: dict[str, float | None]
) -> dict[str, bool]:
    """What the paper claims, of each protocol by itself and of one for all its rows."""
    claim, is_met = _one_protocol(scores, published)
    reached = [repr(name) for name in PROTOCOLS if scores["beta-VAE"][name] >= _LEAST]
    high = f"beta-VAE at {_LEAST:g} under {' and '.join(reached) or 'a protocol'}"
    return {
        "true factors score 100 under every protocol": min(scores["ground truth"].values()) == 100,
        claim: is_met,
        high: bool(reached),
        "beta-VAE above the VAE under every protocol": all(
            scores["beta-VAE"][name] > scores["VAE"][name] for name in PROTOCOLS
        ),
    }


def _one_protocol(
    scores: dict[str, dict[str, float]], published: dict[str, float | None]
) -> tuple[str, bool]:
    """Find the protocol nearest to the paper: the worst of its five misses is the least."""

    def gap(name: str, protocol: str) -> float:
        return scores[name][protocol] - (published[name] or 0.0)

    def miss(protocol: str) -> float:
        baselines = max(abs(gap(name, protocol)) for name in _BASELINES)
        return max(baselines - _NEAR, _LEAST - scores["beta-VAE"][protocol])

    nearest = min(PROTOCOLS, key=miss)
    is_met = miss(nearest) <= 0
    gaps = ", ".join(f"{name} {gap(name, nearest):+.2f}" for name in _BASELINES)
    claim = f"one protocol has all baselines within {_NEAR:g} points and beta-VAE at {_LEAST:g}"
    found = f"{'it is' if is_met else 'none; the nearest is'} {nearest!r}"
    return f"{claim}: {found}, {gaps}, beta-VAE {scores['beta-VAE'][nearest]:.2f}", is_met
