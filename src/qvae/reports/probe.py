"""What codes are worth to another model: a linear probe, beside pixels, PCA and neighbours."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tqdm import trange

from qvae.autoencoder import Autoencoder
from qvae.data.base import DataModule
from qvae.errors import DataError, UsageError
from qvae.metrics.disentanglement.lattice import require_sklearn
from qvae.runs.loading import Run
from qvae.runs.representations import flat_codes, require_untold

__all__ = ["probe_features", "probe_run", "probe_table"]

_STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_NEIGHBOURS = 5
_PARTS = ("train", "valid", "test")
_MOST_CLASSES = 1000
_BATCH = 256
_MOST_NUMBERS = 2**28
"""Of a part's samples that are read, 1 GiB; all of Fashion-MNIST is a sixth of it."""

Table = dict[str, Any]
"""Part -> a table: an array, or one-hot codes as a sparse matrix of SciPy."""


def probe_run(run: Run, data: DataModule, *, column: str, seed: int = 0) -> dict[str, Any]:
    """Tell a column of labels from a run's codes, and from what they should beat.

    Equal protocol for each: standardise the features on the training part, fit logistic
    regression at four strengths of the penalty, take the one that is best on the valid part,
    report accuracy on the test part. The codes of a VAE are the means; integers of a quantizer
    become one-hot. PCA has as many components as the code has numbers. k-NN takes 5 neighbours. Of
    a part that is larger than 1 GiB, as many samples are read at random.

    Args:
        run: an autoencoder's.
        data: with the column.
        column: the labels.
        seed: of PCA.

    Returns:
        ``{"column", "classes", "code_dim", "rows": {name: {"accuracy", "valid", "n", ...}}}``.

    Raises:
        UsageError: the run is a prior's, its encoder is told the column, or scikit-learn is
            missing.
        DataError: no such column, an empty label, or a label that only test or valid have.
    """
    if not isinstance(run.model, Autoencoder):
        raise UsageError(f"{run.path}: is the run of a prior; give its tokenizer's run")
    require_untold(run, column)
    require_sklearn()
    labels, names = _labels(data, column)
    rows = {part: _rows(data, part) for part in _PARTS}
    labels = {part: of_part[rows[part]] for part, of_part in labels.items()}
    codes, pixels = _read(run.model, data, rows)
    dim = codes["train"].shape[1]
    if codes["train"].dtype.kind == "i":
        codes = _one_hot(codes)
    return {
        "column": column,
        "classes": len(names),
        "code_dim": dim,
        "rows": probe_features(codes, pixels, labels, dim=dim, seed=seed),
    }


def probe_features(
    codes: Table, pixels: Table, labels: Table, *, dim: int, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Probe codes, pixels and their principal components, each a table by part.

    Returns:
        name -> accuracy on test, on valid, the strength that valid chose, and the test's N.
    """
    from sklearn.decomposition import PCA

    wide = min(dim, *pixels["train"].shape)
    solver = "randomized" if wide < min(pixels["train"].shape) else "full"
    fitted = PCA(wide, svd_solver=solver, random_state=seed).fit(pixels["train"])
    axes = {part: fitted.transform(pixels[part]) for part in _PARTS}
    tables: dict[str, tuple[Callable[[Table, Table], dict[str, Any]], Table]] = {
        "codes, logistic": (_logistic, codes),
        f"PCA-{wide}, logistic": (_logistic, axes),
        "pixels, logistic": (_logistic, pixels),
        "codes, k-NN": (_neighbours, codes),
        f"PCA-{wide}, k-NN": (_neighbours, axes),
        "pixels, k-NN": (_neighbours, pixels),
    }
    return {name: probe(table, labels) for name, (probe, table) in tables.items()}


def probe_table(found: dict[str, Any]) -> str:
    """Format a probe's rows, a line each."""
    head = f"{found['column']}: {found['classes']} classes, codes of {found['code_dim']} numbers"
    return "\n".join(
        [
            head,
            *(
                f"{name:<22}{row['accuracy']:>8.4f}  (test, N={row['n']})"
                for name, row in found["rows"].items()
            ),
        ]
    )


def _labels(data: DataModule, column: str) -> tuple[Table, list[str]]:
    texts = {part: data.column(column, part) for part in _PARTS}
    names = sorted(set(texts["train"]))
    if not 2 <= len(names) <= _MOST_CLASSES:
        raise DataError(
            f"column {column!r}: {len(names)} different labels in training, needs 2 to "
            f"{_MOST_CLASSES}"
        )
    place = {name: index for index, name in enumerate(names)}
    for part, words in texts.items():
        if "" in words:
            raise DataError(f"column {column!r}: a sample of {part} has no label")
        unseen = next((word for word in words if word not in place), None)
        if unseen is not None:
            raise DataError(f"column {column!r}: {part} has {unseen!r}, which training has not")
    return {part: np.array([place[word] for word in texts[part]]) for part in _PARTS}, names


def _rows(data: DataModule, part: str) -> Int[np.ndarray, " N"]:
    """Return which samples of a part are read: all, or as many at random as fit."""
    num = len(getattr(data, part)())
    most = max(1000, _MOST_NUMBERS // math.prod(data.spec.shape))
    if num <= most:
        return np.arange(num)
    return np.sort(np.random.default_rng(0).choice(num, most, replace=False))


def _read(model: Autoencoder, data: DataModule, rows: Table) -> tuple[Table, Table]:
    codes, pixels = {}, {}
    for part in _PARTS:
        found, split = [], getattr(data, part)()
        for start in trange(0, len(rows[part]), _BATCH, desc=f"encode {part}", disable=None):
            batch = split.batch(rows[part][start : start + _BATCH])
            found.append((flat_codes(model, batch.x, batch.cond), batch.x.flatten(1).numpy()))
        codes[part], pixels[part] = (np.concatenate(each) for each in zip(*found, strict=True))
    return codes, pixels


def _one_hot(codes: Table) -> Table:
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder(handle_unknown="ignore", dtype=np.float32).fit(codes["train"])
    return {part: encoder.transform(table) for part, table in codes.items()}


def _standard(tables: Table) -> Table:
    from sklearn.preprocessing import StandardScaler

    sparse = not isinstance(tables["train"], np.ndarray)
    scaler = StandardScaler(with_mean=not sparse).fit(tables["train"])
    return {part: scaler.transform(table) for part, table in tables.items()}


def _logistic(tables: Table, labels: Table) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    x = _standard(tables)
    tried = []
    for strength in _STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3)
        model.fit(x["train"], labels["train"])
        tried.append((_accuracy(model, x, labels, "valid"), strength, model))
    valid, strength, model = max(tried, key=lambda item: item[0])
    return {
        "accuracy": _accuracy(model, x, labels, "test"),
        "valid": valid,
        "strength": strength,
        "n": len(labels["test"]),
    }


def _neighbours(tables: Table, labels: Table) -> dict[str, Any]:
    from sklearn.neighbors import KNeighborsClassifier

    near = min(_NEIGHBOURS, len(labels["train"]))
    model = KNeighborsClassifier(near).fit(tables["train"], labels["train"])
    return {
        "accuracy": _accuracy(model, tables, labels, "test"),
        "valid": _accuracy(model, tables, labels, "valid"),
        "neighbours": near,
        "n": len(labels["test"]),
    }


def _accuracy(model: Any, tables: Table, labels: Table, part: str) -> float:
    found: Int[np.ndarray, " N"] = model.predict(tables[part])
    share: Float[np.ndarray, ""] = (found == labels[part]).mean()
    return float(share)
