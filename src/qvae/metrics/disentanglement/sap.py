"""SAP: how much better the best coordinate tells a factor than the second best."""

import numpy as np
from jaxtyping import Float, Int

from qvae.metrics.disentanglement.lattice import checked_codes, quiet_fit, require_sklearn

__all__ = ["sap"]


def sap(
    codes: Float[np.ndarray, "N D"],
    classes: Int[np.ndarray, "N K"],
    *,
    scale: str = "r2",
    test_share: float = 1 / 3,
    is_discrete: bool = False,
) -> float:
    """Compute the separated attribute predictability score.

    Paper: Kumar et al. 2018, arXiv:1711.00848, section 3. Each coordinate alone predicts each
    factor; the score is the best minus the second best, averaged over factors. The word is used
    for two scales that must not be compared:

        r2        the squared correlation with the class's number: factors as quantities. Good
                  codes reach .5.
        accuracy  the accuracy of a linear SVM (C = .01, balanced) on held-out rows: factors as
                  names, as Locatello et al. 2019 compute it. Good codes reach .1, since one
                  coordinate and straight cuts cannot tell 32 positions apart.

    Args:
        codes: of a VAE, the means.
        classes: which value of each factor.
        scale: the flavour.
        test_share: share of the rows, the last ones, that accuracy is measured on, in (0, 1).
        is_discrete: codes are names: ``accuracy`` takes each value's commonest class; ``r2`` is
            refused.

    Raises:
        ValueError: an argument breaks its rule.
        UsageError: ``accuracy``, and scikit-learn is not installed.

    Example:
        >>> classes = np.stack(np.unravel_index(np.arange(20), (4, 5)), axis=1)
        >>> round(sap(classes.astype(float), classes), 6)
        1.0
    """
    if scale not in ("r2", "accuracy"):
        raise ValueError(f"scale={scale!r}: must be r2 or accuracy")
    if scale == "r2" and is_discrete:
        raise ValueError("scale='r2': codes that are names have no correlation; use accuracy")
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}: must be in (0, 1)")
    codes = checked_codes(codes, classes)
    if scale == "r2":
        scores = _square_correlation(codes, classes)
    else:
        cut = len(codes) - max(1, round(test_share * len(codes)))
        predict = _by_value if is_discrete else _by_svm
        scores = np.zeros((codes.shape[1], classes.shape[1]))
        for d, k in np.ndindex(scores.shape):
            found = predict(codes[:cut, d], classes[:cut, k], codes[cut:, d])
            scores[d, k] = (found == classes[cut:, k]).mean()
    if len(scores) == 1:
        scores = np.vstack([scores, np.zeros_like(scores)])
    top = np.sort(scores, axis=0)[::-1]
    return float((top[0] - top[1]).mean())


def _square_correlation(codes: np.ndarray, classes: np.ndarray) -> Float[np.ndarray, "D K"]:
    z, v = codes - codes.mean(axis=0), classes - classes.mean(axis=0)
    scale = np.square(z).sum(axis=0)[:, None] * np.square(v).sum(axis=0)
    still = scale <= 1e-12 * len(codes)  # a coordinate that never moves tells nothing
    return np.where(still, 0.0, np.square(z.T @ v) / np.where(still, 1.0, scale))


def _by_svm(z: np.ndarray, v: np.ndarray, z_test: np.ndarray) -> np.ndarray:
    require_sklearn()
    from sklearn.svm import LinearSVC

    if len(np.unique(v)) == 1:
        return np.full(len(z_test), v[0])
    with quiet_fit():
        model = LinearSVC(C=0.01, class_weight="balanced", random_state=0)
        return model.fit(z[:, None], v).predict(z_test[:, None])


def _by_value(z: np.ndarray, v: np.ndarray, z_test: np.ndarray) -> np.ndarray:
    """Predict the commonest class of each value; of a value never seen, that of all rows."""
    values, index = np.unique(z, return_inverse=True)
    counts = np.zeros((len(values), int(v.max()) + 1), dtype=np.int64)
    np.add.at(counts, (index, v), 1)
    place = np.searchsorted(values, z_test).clip(max=len(values) - 1)
    is_known = values[place] == z_test
    return np.where(is_known, counts.argmax(axis=1)[place], counts.sum(axis=0).argmax())
