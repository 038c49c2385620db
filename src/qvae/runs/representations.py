"""Representations of data with known factors: a model's codes, and what to hold them against."""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from qvae.autoencoder import Autoencoder
from qvae.bottlenecks.base import Quantizer
from qvae.bottlenecks.gaussian import Gaussian
from qvae.errors import UsageError
from qvae.metrics.disentanglement.lattice import Represent, draw_rows, require_sklearn
from qvae.runs.loading import Run

__all__ = [
    "FactorData",
    "flat_codes",
    "ica",
    "model_codes",
    "pca",
    "pixels",
    "posteriors",
    "require_untold",
    "tabulated",
    "true_factors",
]

_BATCH = 1024
_FITTED = 10_000


@runtime_checkable
class FactorData(Protocol):
    """Data made from factors: its rows count through all combinations, the last factor fastest."""

    factor_names: tuple[str, ...]
    factor_sizes: tuple[int, ...]

    def pictures(self, rows: Int[np.ndarray, " B"]) -> Tensor:
        """Return the samples at these rows."""
        ...

    def classes(self, rows: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B K"]:
        """Return which value of each factor they have."""
        ...


def require_untold(run: Run, column: str) -> None:
    """Refuse a column that the encoder is told: codes may hold it that never looked at the data.

    Raises:
        UsageError: names the run and its conditions.
    """
    model = run.model
    if not isinstance(model, Autoencoder) or model.conditioner is None:
        return
    told = [condition.name for condition in run.conditions]
    if column in told:
        raise UsageError(
            f"column={column!r}: the encoder of {run.path} is told {', '.join(told)}, so its codes "
            "may hold the answer; take a column that it is not told, or a model without conditions"
        )


@torch.inference_mode()
def flat_codes(model: Autoencoder, x: Tensor, cond: Tensor | None = None) -> np.ndarray:
    """Return one row of numbers a sample: integers of a quantizer, else the most likely z."""
    device = next(model.parameters()).device
    z_e = model.embed(x.to(device), None if cond is None else cond.to(device))
    bottleneck = model.bottleneck
    is_discrete = isinstance(bottleneck, Quantizer)
    codes = bottleneck.encode(z_e) if is_discrete else bottleneck.mode(z_e)  # type: ignore[operator]
    return codes.flatten(1).cpu().numpy()


def model_codes(model: Autoencoder, data: FactorData) -> Represent:
    """Represent rows by a model's codes; a condition is left untold."""
    return _in_batches(lambda rows: flat_codes(model, data.pictures(rows)))


@torch.inference_mode()
def posteriors(
    model: Autoencoder, data: FactorData, rows: Int[np.ndarray, " B"]
) -> tuple[Float[np.ndarray, "B D"], Float[np.ndarray, "B D"]]:
    """Return mean and log variance of a VAE's posterior.

    Raises:
        ValueError: the bottleneck has none.
    """
    bottleneck = model.bottleneck
    if not isinstance(bottleneck, Gaussian):
        raise ValueError(f"{type(bottleneck).__name__}: has no posterior; needs gaussian")
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(rows), _BATCH):
        x = data.pictures(rows[start : start + _BATCH]).to(device)
        parts.append([part.flatten(1).cpu() for part in bottleneck.posterior(model.embed(x))])
    mean, log_var = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return mean, log_var


def true_factors(data: FactorData) -> Represent:
    """Represent rows by the factors themselves, each from 0 to 1."""
    top = np.maximum(np.array(data.factor_sizes) - 1, 1)
    return lambda rows: data.classes(rows) / top


def pixels(data: FactorData) -> Represent:
    """Represent rows by the samples themselves."""
    return lambda rows: data.pictures(rows).flatten(1).numpy()


def pca(data: FactorData, *, dim: int = 10, seed: int = 0) -> Represent:
    """Represent rows by principal components, fitted on 10,000 samples.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    require_sklearn()
    from sklearn.decomposition import PCA

    fitted = PCA(dim, svd_solver="randomized", random_state=seed).fit(_fit_samples(data, seed))
    return _in_batches(lambda rows: fitted.transform(data.pictures(rows).flatten(1).numpy()))


def ica(data: FactorData, *, dim: int = 10, seed: int = 0) -> Represent:
    """Represent rows by independent components (FastICA), fitted on 10,000 samples.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    require_sklearn()
    from sklearn.decomposition import PCA, FastICA

    samples = _fit_samples(data, seed)
    first = PCA(dim, svd_solver="randomized", random_state=seed).fit(samples)
    spread = first.explained_variance_
    wide = int((spread > 1e-9 * spread[0]).sum())  # a direction without spread cannot be whitened
    second = FastICA(wide, random_state=seed, max_iter=1000, tol=1e-3)
    second.fit(first.transform(samples)[:, :wide])

    def project(rows: np.ndarray) -> np.ndarray:
        axes = first.transform(data.pictures(rows).flatten(1).numpy())
        return second.transform(axes[:, :wide])

    return _in_batches(project)


def _fit_samples(data: FactorData, seed: int) -> Float[np.ndarray, "N D"]:
    rows = draw_rows(data.factor_sizes, _FITTED, np.random.default_rng(seed))
    return data.pictures(rows).flatten(1).numpy()


def _in_batches(represent: Represent) -> Represent:
    def whole(rows: np.ndarray) -> np.ndarray:
        starts = range(0, len(rows), _BATCH)
        return np.concatenate([represent(rows[start : start + _BATCH]) for start in starts])

    return whole


def tabulated(represent: Represent, num: int, *, label: str) -> Represent:
    """Look rows up in a table of all ``num`` of them, made once, with a bar on a terminal.

    Worth it when a metric asks for more rows than there are.
    """
    parts = []
    with tqdm(total=num, desc=label, unit="sample", disable=None, dynamic_ncols=True) as bar:
        for start in range(0, num, 8 * _BATCH):
            rows = np.arange(start, min(start + 8 * _BATCH, num))
            parts.append(represent(rows))
            bar.update(len(rows))
    table = np.concatenate(parts)
    return lambda rows: table[rows]
