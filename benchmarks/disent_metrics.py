"""Our disentanglement metrics beside those of the package `disent`, on the same tables of codes.

    python -m venv disent-venv && disent-venv/bin/pip install --no-deps disent
    disent-venv/bin/pip install numpy scipy scikit-learn torch jaxtyping h5py pillow requests \\
        imageio deprecated matplotlib tqdm
    PYTHONPATH=src disent-venv/bin/python benchmarks/disent_metrics.py

Writes ``benchmarks/results/disent_metrics.json``. `disent` imports torchvision and lightning for
its data sets and models; its metrics use neither, so empty modules stand in for both.
"""

import importlib.abc
import importlib.machinery
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
SIZES = (3, 4, 5, 6)
ABSENT = ("torchvision", "lightning", "pytorch_lightning")


def empty(name: str) -> type:
    """Make an empty class for any public name."""
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


class Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for a package that is not installed: every name in it is an empty class."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] not in ABSENT:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = empty  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def classes_of(rows: np.ndarray) -> np.ndarray:
    return np.stack(np.unravel_index(rows, SIZES), axis=1)


def representations() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return codes from perfect to useless, as functions of the rows.

    Noise is new at every call: a row that comes twice must not be known by its noise.
    """
    rng = np.random.default_rng(0)
    mix = np.linalg.qr(rng.standard_normal((4, 4)))[0]

    def scaled(rows: np.ndarray) -> np.ndarray:
        return classes_of(rows) / np.array(SIZES)

    def noise(rows: np.ndarray, dim: int) -> np.ndarray:
        return rng.standard_normal((len(rows), dim))

    return {
        "factors": scaled,
        "factors and 6 of noise": lambda rows: np.hstack([scaled(rows), noise(rows, 6)]),
        "factors with noise": lambda rows: scaled(rows) + 0.15 * noise(rows, 4),
        "factors turned": lambda rows: scaled(rows) @ mix,
        "noise": lambda rows: noise(rows, 6),
    }


class Data:
    """What disent's FactorVAE score asks of a data set; a sample is its row."""

    def __init__(self, seed: int) -> None:
        self.gt_data, self.rng = self, np.random.default_rng(seed)
        self.num_factors = len(SIZES)

    def sample_factors(self, num: int) -> np.ndarray:
        return np.stack([self.rng.integers(0, size, num) for size in SIZES], axis=1)

    def dataset_batch_from_factors(self, factors: np.ndarray, mode: str) -> np.ndarray:
        return np.ravel_multi_index(tuple(factors.T), SIZES)

    def dataset_sample_batch(self, num: int, mode: str) -> np.ndarray:
        return self.dataset_batch_from_factors(self.sample_factors(num), mode)


def compare(represent: Callable[[np.ndarray], np.ndarray]) -> dict[str, list[float]]:
    """Return each metric as [ours, theirs]."""
    import torch
    from disent.metrics import _dci, _factor_vae, _mig, _sap

    from qvae.metrics.disentanglement import dci, factor_vae_score, mig, sap

    rows = np.random.default_rng(1).integers(0, int(np.prod(SIZES)), 1500)
    codes, classes = represent(rows), classes_of(rows)
    cut = 1000
    table = (codes[:cut].T, classes[:cut].T, codes[cut:].T, classes[cut:].T)
    theirs_dci = _dci._compute_dci(*table)
    ours_dci = dci(codes, classes, predictor="boosting")
    np.random.seed(0)  # noqa: NPY002  # disent draws from the global generator
    voted = _factor_vae.metric_factor_vae(
        Data(0),
        lambda batch: torch.from_numpy(represent(np.asarray(batch))),
        num_train=1500,
        num_eval=1500,
    )
    ours_voted = factor_vae_score(represent, SIZES, num_train=1500, num_test=1500, min_std=0.0)
    r2 = _sap._compute_sap(codes.T, classes.T, codes.T, classes.T, True)
    accuracy = _sap._compute_sap(*table, False)
    return {
        "mig, 20 bins": [
            mig(codes, classes),
            _mig._compute_mig(codes.T, classes.T)["mig.discrete_score"],
        ],
        "sap, r2": [sap(codes, classes), r2["sap.score"]],
        "sap, accuracy": [sap(codes, classes, scale="accuracy"), accuracy["sap.score"]],
        "dci disentanglement, boosting": [
            ours_dci.disentanglement,
            theirs_dci["dci.disentanglement"],
        ],
        "dci completeness, boosting": [ours_dci.completeness, theirs_dci["dci.completeness"]],
        "dci informativeness, boosting": [
            ours_dci.informativeness,
            theirs_dci["dci.informativeness_test"],
        ],
        "factor_vae_score (other draws)": [ours_voted, voted["factor_vae.eval_accuracy"]],
    }


def main() -> None:
    """Compare, write and show."""
    sys.meta_path.append(Empty())
    from importlib.metadata import version

    versions = {name: version(name) for name in ("disent", "scikit-learn", "numpy")}
    found = {name: compare(represent) for name, represent in representations().items()}
    rounded = {
        name: {metric: [round(float(value), 4) for value in pair] for metric, pair in row.items()}
        for name, row in found.items()
    }
    report = {"versions": versions, "columns": ["ours", "disent"], "rows": rounded}
    (RESULTS / "disent_metrics.json").write_text(json.dumps(report, indent=1) + "\n")
    for name, row in rounded.items():
        for metric, (ours, theirs) in row.items():
            sys.stdout.write(f"{name:<24}{metric:<34}{ours:>8.4f}{theirs:>8.4f}\n")


if __name__ == "__main__":
    main()
