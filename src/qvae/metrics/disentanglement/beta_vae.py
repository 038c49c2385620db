"""The metric of the beta-VAE paper: which factor did all these pairs share?"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from qvae.metrics.disentanglement.lattice import (
    Represent,
    fixed_rows,
    quiet_fit,
    require_counts,
    require_sklearn,
)

__all__ = ["beta_vae_score", "difference_points", "fit_adagrad"]

_ROWS = 8192  # represented at a time


def beta_vae_score(
    represent: Represent,
    sizes: Sequence[int],
    *,
    classifier: str = "logistic",
    factors: Sequence[int] | None = None,
    num_pairs: int = 64,
    num_train: int = 10_000,
    num_test: int = 5_000,
    steps: int = 10_000,
    seed: int = 0,
) -> float:
    """Tell which factor was held from how much each coordinate differs within pairs.

    Paper: Higgins et al. 2017, openreview Sy2fzU9gl, section 3. A point: choose a factor; draw
    ``num_pairs`` pairs that agree in it and nowhere else; average ``|z_1 - z_2|`` over the pairs.
    The score is the accuracy of a linear classifier, from these points to the factor, on fresh
    points.

    The score saturates: a linear classifier also reads a factor that is spread over many
    coordinates, so 100 % is no proof of axes. Two protocols are in use, and give different numbers:

        logistic  scikit-learn's LogisticRegression as it comes (Locatello et al. 2019,
                  arXiv:1811.12359, with 64 pairs, 10,000 and 5,000 points)
        adagrad   softmax regression from zero, Adagrad at .01 on batches of 10, for ``steps``

    Args:
        represent: from rows of the lattice to codes ``[B, D]``; a VAE's are the means.
        sizes: how many values each factor takes, the last one fastest.
        classifier: the protocol.
        factors: which factors are held; None is all. Chance is one over their number.
        num_pairs: L, >= 2.
        num_train: points to learn from, >= 2.
        num_test: fresh points, >= 2.
        steps: of adagrad, >= 2.
        seed: of all draws.

    Returns:
        The share of fresh points that are classified rightly, 0 to 1.

    Raises:
        ValueError: an argument is out of range.
        UsageError: ``logistic``, and scikit-learn is not installed.

    Example:
        >>> truth = lambda rows: np.stack(np.unravel_index(rows, (4, 5)), axis=1)
        >>> beta_vae_score(truth, (4, 5), num_train=300, num_test=100)
        1.0
    """
    require_counts(num_pairs=num_pairs, num_train=num_train, num_test=num_test, steps=steps)
    held = np.arange(len(sizes)) if factors is None else np.asarray(factors)
    if len(held) < 2 or not set(held.tolist()) <= set(range(len(sizes))):
        raise ValueError(f"factors={held.tolist()}: needs two or more of 0..{len(sizes) - 1}")
    if classifier not in ("logistic", "adagrad"):
        raise ValueError(f"classifier={classifier!r}: must be logistic or adagrad")
    rng = np.random.default_rng(seed)
    x, y = difference_points(represent, sizes, held, num_train, num_pairs, rng)
    x_test, y_test = difference_points(represent, sizes, held, num_test, num_pairs, rng)
    if classifier == "adagrad":
        weights, bias = fit_adagrad(x, y, len(held), steps=steps, rng=rng)
        predicted = (x_test @ weights + bias).argmax(axis=1)
    else:
        predicted = _logistic(x, y).predict(x_test)
    return float((predicted == y_test).mean())


def difference_points(
    represent: Represent,
    sizes: Sequence[int],
    held: Int[np.ndarray, " K"],
    num: int,
    num_pairs: int,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "num D"], Int[np.ndarray, " num"]]:
    """Draw points for the classifier, and the place in ``held`` of the factor each one held."""
    labels = rng.integers(0, len(held), num)
    parts = []
    group = max(1, _ROWS // (2 * num_pairs))
    for start in range(0, num, group):
        some = labels[start : start + group]
        # A pair is one group of two rows: the held factor's value may differ between pairs.
        rows = fixed_rows(sizes, np.repeat(held[some], num_pairs), 2, rng)
        codes = np.asarray(represent(rows.ravel()), dtype=np.float32)
        first, second = codes.reshape(len(some), num_pairs, 2, -1).swapaxes(0, 2)
        parts.append(np.abs(first - second).mean(axis=0))
    return np.concatenate(parts), labels


def _logistic(x: np.ndarray, y: np.ndarray):  # type: ignore[no-untyped-def]  # scikit-learn's own
    require_sklearn()
    from sklearn.linear_model import LogisticRegression

    with quiet_fit():
        return LogisticRegression().fit(x, y)


def fit_adagrad(
    x: Float[np.ndarray, "N D"],
    y: Int[np.ndarray, " N"],
    num_classes: int,
    *,
    steps: int,
    rng: np.random.Generator,
    lr: float = 0.01,
    batch_size: int = 10,
) -> tuple[Float[np.ndarray, "D C"], Float[np.ndarray, " C"]]:
    """Fit softmax regression by Adagrad (Duchi et al. 2011) on random batches; start at zero.

    Returns:
        Weights and bias.
    """
    weights, bias = np.zeros((x.shape[1], num_classes)), np.zeros(num_classes)
    square_w, square_b = np.full_like(weights, 1e-10), np.full_like(bias, 1e-10)
    for _ in range(steps):
        rows = rng.integers(0, len(x), batch_size)
        batch = x[rows]
        logits = batch @ weights + bias
        prob = np.exp(logits - logits.max(axis=1, keepdims=True))
        prob /= prob.sum(axis=1, keepdims=True)
        prob[np.arange(batch_size), y[rows]] -= 1
        slope_w, slope_b = batch.T @ prob / batch_size, prob.mean(axis=0)
        square_w += slope_w * slope_w
        square_b += slope_b * slope_b
        weights -= lr * slope_w / np.sqrt(square_w)
        bias -= lr * slope_b / np.sqrt(square_b)
    return weights, bias
