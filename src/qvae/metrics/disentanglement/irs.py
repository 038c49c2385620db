"""IRS: does a coordinate keep still when everything but its own factor is changed?"""

import numpy as np
from jaxtyping import Float, Int

from qvae.metrics.disentanglement.lattice import checked_codes

__all__ = ["irs"]


def irs(
    codes: Float[np.ndarray, "N D"],
    classes: Int[np.ndarray, "N K"],
    *,
    quantile: float = 0.99,
) -> float:
    """Compute the interventional robustness score.

    Paper: Suter et al. 2019, arXiv:1811.00007, section 4 and algorithm 1. For coordinate i and
    factor k: within the rows that share a value of k, how far does ``z_i`` get from its mean
    there? That is averaged over the values and divided by how far ``z_i`` gets from its overall
    mean; one minus it is the robustness. A coordinate's score is that of its best factor, and the
    result is their mean, weighted by how far they move. "How far" is a quantile of the absolute
    deviations within a value, and the largest overall, as in Locatello et al. 2019.

    Args:
        codes: of a VAE, the means.
        classes: which value of each factor.
        quantile: in (0, 1]; 1 is the largest deviation, as the paper has it.

    Returns:
        0 to 1; 0 where no coordinate moves.

    Raises:
        ValueError: codes and classes do not go together, or the quantile is outside (0, 1].

    Example:
        >>> classes = np.stack(np.unravel_index(np.arange(20), (4, 5)), axis=1)
        >>> irs(classes.astype(float), classes)
        1.0
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile={quantile}: must be in (0, 1]")
    codes = checked_codes(codes, classes)
    reach = np.abs(codes - codes.mean(axis=0)).max(axis=0)
    moves = reach > 1e-12
    if not moves.any():
        return 0.0
    codes, reach = codes[:, moves], reach[moves]
    within = np.zeros((codes.shape[1], classes.shape[1]))
    for k in range(classes.shape[1]):
        values = np.unique(classes[:, k])
        for value in values:
            rows = codes[classes[:, k] == value]
            away = np.abs(rows - rows.mean(axis=0))
            within[:, k] += np.quantile(away, quantile, axis=0) / len(values)
    robustness = (1 - within / reach[:, None]).max(axis=1)
    return float(np.average(robustness, weights=reach))
