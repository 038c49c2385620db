"""The metric of the FactorVAE paper: which coordinate stands still when a factor is held?"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from qvae.metrics.disentanglement.lattice import (
    Represent,
    draw_rows,
    fixed_rows,
    require_counts,
)

__all__ = ["factor_vae_score"]

_ROWS = 8192  # represented at a time


def factor_vae_score(
    represent: Represent,
    sizes: Sequence[int],
    *,
    group_size: int = 64,
    num_train: int = 10_000,
    num_test: int = 5_000,
    num_spread: int = 10_000,
    min_std: float = 0.05,
    is_discrete: bool = False,
    seed: int = 0,
) -> float:
    """Score how well the stillest coordinate of a group names the factor that the group shares.

    Paper: Kim & Mnih 2018, arXiv:1802.05983, section 4. A vote: choose a factor, draw a group that
    agrees in it, divide each coordinate's variance by its variance over everything, and take the
    coordinate with the least. The classifier is the majority vote of each coordinate, learned on
    ``num_train`` votes, so there is nothing to tune. Coordinates that hardly move at all have no
    vote. With ``is_discrete`` values are names and not numbers, and the spread is Gini's: the
    chance that two draws differ (appendix B).

    Args:
        represent: from rows of the lattice to codes ``[B, D]``.
        sizes: how many values each factor takes, the last one fastest.
        group_size: L, >= 2.
        num_train: votes to learn from, >= 2.
        num_test: fresh votes, >= 2.
        num_spread: rows to measure the overall spread on, >= 2.
        min_std: coordinates with a smaller spread have no vote (Locatello et al. 2019: .05).
        is_discrete: whether the codes are names without an order, such as a codebook's rows.
        seed: of all draws.

    Returns:
        The share of fresh votes that are right, 0 to 1; 0 where no coordinate has a vote.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> truth = lambda rows: np.stack(np.unravel_index(rows, (4, 5)), axis=1)
        >>> factor_vae_score(truth, (4, 5), num_train=200, num_test=100)
        1.0
    """
    require_counts(
        group_size=group_size, num_train=num_train, num_test=num_test, num_spread=num_spread
    )
    rng = np.random.default_rng(seed)
    spread_of = _gini if is_discrete else _variance
    codes = _in_parts(represent, draw_rows(sizes, num_spread, rng))
    spread = spread_of(codes[None])[0]
    has_vote = np.sqrt(spread) >= min_std
    if not has_vote.any():
        return 0.0

    def count(num: int) -> Int[np.ndarray, "D K"]:
        held = rng.integers(0, len(sizes), num)
        stillest = np.empty(num, dtype=np.int64)
        step = max(1, _ROWS // group_size)
        for start in range(0, num, step):
            part = slice(start, start + step)
            rows = fixed_rows(sizes, held[part], group_size, rng)
            groups = np.asarray(represent(rows.ravel()), dtype=np.float64)
            local = spread_of(groups.reshape(*rows.shape, -1))
            stillest[part] = (local[:, has_vote] / spread[has_vote]).argmin(axis=1)
        votes = np.zeros((int(has_vote.sum()), len(sizes)), dtype=np.int64)
        np.add.at(votes, (stillest, held), 1)
        return votes

    factor_of = count(num_train).argmax(axis=1)
    votes = count(num_test)
    return float(votes[np.arange(len(votes)), factor_of].sum() / votes.sum())


def _in_parts(represent: Represent, rows: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B D"]:
    parts = [represent(rows[start : start + _ROWS]) for start in range(0, len(rows), _ROWS)]
    return np.concatenate(parts).astype(np.float64)


def _variance(groups: Float[np.ndarray, "B L D"]) -> Float[np.ndarray, "B D"]:
    return groups.var(axis=1, ddof=1)


def _gini(groups: Float[np.ndarray, "B L D"]) -> Float[np.ndarray, "B D"]:
    """Half the chance that two different members of a group have different values."""
    num = groups.shape[1]
    sorted_groups = np.sort(groups, axis=1)
    starts = np.ones(groups.shape, dtype=bool)
    starts[:, 1:] = sorted_groups[:, 1:] != sorted_groups[:, :-1]
    # Pairs that agree: the sum over runs of equal values of n^2 is the sum over members of n.
    run = np.cumsum(starts, axis=1) - 1
    equal = np.zeros((len(groups), groups.shape[2]))
    for b, d in np.ndindex(equal.shape):
        equal[b, d] = np.square(np.bincount(run[b, :, d])).sum()
    return 0.5 * (num * num - equal) / (num * (num - 1))
