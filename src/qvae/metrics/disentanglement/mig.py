"""The mutual information gap, in both of its published flavours."""

import numpy as np
from jaxtyping import Float, Int

from qvae.metrics.disentanglement.lattice import checked_codes

__all__ = ["binned", "information", "mig", "mig_posterior"]

_CHUNK = 2**21  # densities computed at a time
_LOG_2PI = float(np.log(2 * np.pi))


def mig(
    codes: Float[np.ndarray, "N D"],
    classes: Int[np.ndarray, "N K"],
    *,
    num_bins: int = 20,
    is_discrete: bool = False,
) -> float:
    """Compute MIG on binned codes: the flavour "means, 20 bins, all factors".

    Paper: Chen et al. 2018, arXiv:1802.04942, section 4, equation 6; the estimator is that of
    Locatello et al. 2019, arXiv:1811.12359, appendix C: each coordinate is cut into bins of equal
    width between its least and its largest value.
    For each factor: the largest mutual information minus the second largest, over its entropy.
    Compare with no number of the other flavour, :func:`mig_posterior`.

    Args:
        codes: of a VAE, the means.
        classes: which value of each factor.
        num_bins: >= 2; not used for discrete codes.
        is_discrete: whether each different value is a bin of its own.

    Returns:
        The mean over factors, 0 to 1.

    Raises:
        ValueError: codes and classes do not go together, or fewer than 2 bins.

    Example:
        >>> classes = np.stack(np.unravel_index(np.arange(20), (4, 5)), axis=1)
        >>> round(mig(classes.astype(float), classes), 6)
        1.0
    """
    if num_bins < 2:
        raise ValueError(f"num_bins={num_bins}: must be at least 2")
    codes = checked_codes(codes, classes)
    bins = binned(codes, None if is_discrete else num_bins)
    return _mean_gap(information(bins, classes), classes)


def binned(codes: Float[np.ndarray, "N D"], num_bins: int | None) -> Int[np.ndarray, "N D"]:
    """Cut each coordinate into bins of equal width; None makes each value its own bin."""
    if num_bins is None:
        columns = [np.unique(column, return_inverse=True)[1] for column in codes.T]
        return np.stack(columns, axis=1)
    low, high = codes.min(axis=0), codes.max(axis=0)
    width = np.where(high > low, high - low, 1.0) / num_bins
    return np.minimum((codes - low) / width, num_bins - 1).astype(np.int64)


def information(
    bins: Int[np.ndarray, "N D"], classes: Int[np.ndarray, "N K"]
) -> Float[np.ndarray, "D K"]:
    """Compute the mutual information of each coordinate with each factor, in nats, by counting."""
    found = np.zeros((bins.shape[1], classes.shape[1]))
    for d, k in np.ndindex(found.shape):
        joint = np.zeros((bins[:, d].max() + 1, classes[:, k].max() + 1))
        np.add.at(joint, (bins[:, d], classes[:, k]), 1 / len(bins))
        product = np.outer(joint.sum(axis=1), joint.sum(axis=0))
        seen = joint > 0
        found[d, k] = (joint[seen] * np.log(joint[seen] / product[seen])).sum()
    return np.maximum(found, 0.0)


def mig_posterior(
    mean: Float[np.ndarray, "N D"],
    log_var: Float[np.ndarray, "N D"],
    classes: Int[np.ndarray, "N K"],
    *,
    num_samples: int = 10_000,
    seed: int = 0,
) -> float:
    """Compute MIG on samples of the posterior: the flavour "samples, densities".

    Paper: Chen et al. 2018, arXiv:1802.04942, section 4 and appendix B: ``I(z_j; v_k) =
    H(z_j) - H(z_j | v_k)``, with ``q(z_j)`` and ``q(z_j | v_k)`` the averages of the posteriors of
    all data, and of those that share the value. Ours differs: "all data" are the N rows given,
    drawn at random, where the paper takes every row of the data set. The paper leaves the factor
    "shape" out; drop its column to do the same.

    Args:
        mean: of ``q(z | x_n)``.
        log_var: of the same.
        classes: which value of each factor, for each n.
        num_samples: draws for the entropies, >= 1.
        seed: of the draws.

    Raises:
        ValueError: the tables do not go together, or no sample is asked for.

    Example:
        >>> classes = np.repeat(np.arange(4), 50)[:, None]
        >>> mean = np.hstack([10.0 * classes, np.zeros((200, 1))])
        >>> round(mig_posterior(mean, np.zeros((200, 2)), classes, num_samples=500), 3)
        1.0
    """
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples}: must be at least 1")
    mean, log_var = checked_codes(mean, classes), checked_codes(log_var, classes)
    if mean.shape != log_var.shape:
        raise ValueError(f"mean of shape {mean.shape}, log_var of {log_var.shape}: must be equal")
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(mean), num_samples)
    noise = rng.standard_normal((num_samples, mean.shape[1]))
    z = mean[rows] + np.exp(0.5 * log_var[rows]) * noise
    marginal = _log_mixture(z, mean, log_var)
    found = np.zeros((mean.shape[1], classes.shape[1]))
    for k in range(classes.shape[1]):
        for value in np.unique(classes[rows, k]):
            drawn, members = classes[rows, k] == value, classes[:, k] == value
            within = _log_mixture(z[drawn], mean[members], log_var[members])
            found[:, k] += (within - marginal[drawn]).sum(axis=0) / num_samples
    return _mean_gap(np.maximum(found, 0.0), classes)


def _log_mixture(
    z: Float[np.ndarray, "S D"], mean: Float[np.ndarray, "N D"], log_var: Float[np.ndarray, "N D"]
) -> Float[np.ndarray, "S D"]:
    """Log density of each coordinate under the average of N Gaussians."""
    result = np.empty_like(z)
    step = max(1, _CHUNK // len(mean))
    for d in range(z.shape[1]):
        precision = np.exp(-log_var[:, d])
        constant = -0.5 * (log_var[:, d] + _LOG_2PI)
        for start in range(0, len(z), step):
            part = slice(start, start + step)
            log_prob = constant - 0.5 * precision * np.square(z[part, d, None] - mean[:, d])
            top = log_prob.max(axis=1)
            total = np.exp(log_prob - top[:, None]).mean(axis=1)
            result[part, d] = top + np.log(total)
    return result


def _mean_gap(found: Float[np.ndarray, "D K"], classes: Int[np.ndarray, "N K"]) -> float:
    """Average over factors the gap between the two most telling coordinates, in entropies."""
    if len(found) == 1:  # there is no second coordinate that could know it too
        found = np.vstack([found, np.zeros_like(found)])
    top = np.sort(found, axis=0)[::-1]
    gaps = []
    for k in range(classes.shape[1]):
        share = np.unique(classes[:, k], return_counts=True)[1] / len(classes)
        gaps.append((top[0, k] - top[1, k]) / -(share * np.log(share)).sum())
    return float(np.mean(gaps))
