"""DCI: disentanglement, completeness and informativeness, from what a predictor looks at."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from qvae.metrics.disentanglement.lattice import checked_codes, quiet_fit, require_sklearn

__all__ = ["DCI", "dci", "scores_of_importance"]


@dataclass(frozen=True, kw_only=True)
class DCI:
    """Three views of one table of importances, 0 to 1 each."""

    disentanglement: float
    """Does a coordinate serve one factor only?"""
    completeness: float
    """Is a factor served by one coordinate only?"""
    informativeness: float
    """How well are the factors predicted, on held-out rows? Accuracy, or R^2 for lasso."""


def dci(
    codes: Float[np.ndarray, "N D"],
    classes: Int[np.ndarray, "N K"],
    *,
    predictor: str = "forest",
    test_share: float = 1 / 3,
    seed: int = 0,
) -> DCI:
    """Fit one predictor a factor, and ask how its importances are spread.

    Paper: Eastwood & Williams 2018, openreview By-7dz-AZ, section 2. With ``R [D, K]`` the
    importance of coordinate i for factor j: disentanglement is the mean over coordinates, weighted
    by importance, of ``1 - H_K(R_i. / sum_j R_ij)``; completeness the same over the columns, to
    base D. The numbers depend on the predictor, so name it:

        boosting  gradient boosted trees, as Locatello et al. 2019 compute it; slow with factors of
                  many values
        forest    random forest of 100 trees (the paper's other choice, as a classifier); every
                  split looks at every coordinate, else the factors themselves would not score 1
        lasso     absolute weights of a lasso (alpha .02) from standardised codes to the
                  standardised number of the class (the paper's first choice); it sees straight
                  lines only

    Args:
        codes: of a VAE, the means; of a quantizer, integers.
        classes: which value of each factor.
        predictor: the flavour.
        test_share: share of the rows, the last ones, for informativeness, in (0, 1).
        seed: of the predictor.

    Raises:
        ValueError: an argument breaks its rule.
        UsageError: scikit-learn is not installed.

    Example:
        >>> classes = np.stack(np.unravel_index(np.arange(300) % 20, (4, 5)), axis=1)
        >>> round(dci(classes.astype(float), classes, predictor="lasso").disentanglement, 3)
        1.0
    """
    if predictor not in ("boosting", "forest", "lasso"):
        raise ValueError(f"predictor={predictor!r}: must be boosting, forest or lasso")
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}: must be in (0, 1)")
    codes = checked_codes(codes, classes)
    require_sklearn()
    cut = len(codes) - max(1, round(test_share * len(codes)))
    scaled = _standard(codes, cut)
    targets = _standard(classes.astype(np.float64), cut) if predictor == "lasso" else classes
    importance = np.zeros((codes.shape[1], classes.shape[1]))
    told = np.zeros(classes.shape[1])
    for k in range(classes.shape[1]):
        with quiet_fit():
            model = _make(predictor, seed).fit(scaled[:cut], targets[:cut, k])
            told[k] = model.score(scaled[cut:], targets[cut:, k])
        is_linear = predictor == "lasso"
        importance[:, k] = np.abs(model.coef_) if is_linear else model.feature_importances_
    disentanglement, completeness = scores_of_importance(importance)
    return DCI(
        disentanglement=disentanglement,
        completeness=completeness,
        informativeness=float(told.mean()),
    )


def _standard(table: Float[np.ndarray, "N D"], cut: int) -> Float[np.ndarray, "N D"]:
    """Shift and scale columns by the mean and deviation of the first ``cut`` rows."""
    spread = table[:cut].std(axis=0)
    return (table - table[:cut].mean(axis=0)) / np.where(spread > 0, spread, 1.0)


def _make(predictor: str, seed: int) -> Any:
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import Lasso

    if predictor == "boosting":
        return GradientBoostingClassifier(random_state=seed)
    if predictor == "forest":
        return RandomForestClassifier(max_features=None, random_state=seed)
    return Lasso(alpha=0.02)


def scores_of_importance(importance: Float[np.ndarray, "D K"]) -> tuple[float, float]:
    """Return disentanglement and completeness of a table of importances, all >= 0.

    Example:
        >>> scores_of_importance(np.array([[1.0, 0.0], [0.0, 1.0]]))
        (1.0, 1.0)
    """
    return _concentration(importance), _concentration(importance.T)


def _concentration(table: Float[np.ndarray, "R C"]) -> float:
    """Average over rows, by their sums, one minus the entropy of the row to base C."""
    total = table.sum()
    if total <= 0 or table.shape[1] == 1:
        return 0.0 if total <= 0 else 1.0
    sums = table.sum(axis=1, keepdims=True)
    share = table / np.where(sums > 0, sums, 1.0)
    logs = np.log(np.where(share > 0, share, 1.0)) / np.log(table.shape[1])
    return float(((1 + (share * logs).sum(axis=1)) * sums[:, 0]).sum() / total)
