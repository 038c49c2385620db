"""Draw rows of a lattice of factors, all of it free or one factor held.

The rows of data with known factors count through all combinations, the last factor fastest. A
*representation* is any function from rows ``[B]`` to codes ``[B, D]``: a table, a trained encoder,
or the pixels themselves. So one metric serves all of them, continuous and discrete alike.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float, Int

from qvae.errors import UsageError

__all__ = [
    "Represent",
    "checked_codes",
    "draw_rows",
    "fixed_rows",
    "quiet_fit",
    "require_counts",
    "require_sklearn",
]

Represent = Callable[[Int[np.ndarray, " B"]], np.ndarray]
"""From rows of the lattice to codes ``[B, D]``."""


def require_sklearn() -> None:
    """Raise UsageError with the remedy where scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UsageError(
            "this needs scikit-learn, which is not installed: pip install 'qvae[sklearn]'"
        ) from None


@contextmanager
def quiet_fit() -> Iterator[None]:
    """Let scikit-learn fit without its remarks on convergence and on many classes.

    A metric is the classifier as it comes, converged or not.
    """
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        yield


def require_counts(**counts: int) -> None:
    """Raise ValueError for the first count below 2, by name."""
    for name, value in counts.items():
        if value < 2:
            raise ValueError(f"{name}={value}: must be at least 2")


def checked_codes(codes: np.ndarray, classes: np.ndarray) -> Float[np.ndarray, "N D"]:
    """Return codes as float64 after checking them against the factors' classes.

    Raises:
        ValueError: not two tables of equal length, no coordinate, a value that is not finite, or a
            factor that never changes.
    """
    codes = np.asarray(codes, dtype=np.float64)
    if codes.ndim != 2 or classes.ndim != 2 or len(codes) != len(classes) or 0 in codes.shape:
        raise ValueError(
            f"codes of shape {codes.shape} for classes of shape {classes.shape}: needs [N, D] and "
            "[N, K], N and D at least 1"
        )
    if not np.isfinite(codes).all():
        raise ValueError("codes: holds NaN or Inf, needs finite values")
    still = np.flatnonzero((classes == classes[:1]).all(axis=0))
    if len(still):
        raise ValueError(f"classes: factor {still[0]} is constant, every factor must vary")
    return codes


def draw_rows(sizes: Sequence[int], num: int, rng: np.random.Generator) -> Int[np.ndarray, " num"]:
    """Draw rows of the lattice, each as likely as any other.

    Example:
        >>> draw_rows((3, 2), 4, np.random.default_rng(0)).max() < 6
        np.True_
    """
    return rng.integers(0, int(np.prod(sizes)), num)


def fixed_rows(
    sizes: Sequence[int], factors: Int[np.ndarray, " B"], num: int, rng: np.random.Generator
) -> Int[np.ndarray, "B num"]:
    """Draw groups of rows; in group b the factor ``factors[b]`` is the same, the others are free.

    Args:
        sizes: how many values each factor takes, slowest first.
        factors: which factor each group holds.
        num: rows in a group.
        rng: what draws.

    Example:
        >>> rows = fixed_rows((3, 2), np.array([0]), 5, np.random.default_rng(0))
        >>> len(set((rows // 2).ravel().tolist()))
        1
    """
    classes = np.stack([rng.integers(0, size, (len(factors), num)) for size in sizes])
    groups = np.arange(len(factors))
    classes[factors, groups] = classes[factors, groups, :1]
    return np.ravel_multi_index(tuple(classes), tuple(sizes))
