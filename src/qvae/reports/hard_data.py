"""Vectors and codebooks made to be hard: on them a search that rounds finds wrong codes."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["HARD", "normal", "tied"]

Problem = tuple[Float[Tensor, "N D"], Float[Tensor, "V D"]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tied(n: int, k: int, d: int) -> Problem:
    """Every code twice, anywhere in the codebook."""
    z, codebook = _normals(n, k, d)
    codebook[k // 2 :] = codebook[: k - k // 2].clone()
    return z, codebook[torch.randperm(k, generator=torch.Generator().manual_seed(2))]


def _normals(n: int, k: int, d: int, *, scale: float = 1.0, offset: float = 0.0) -> Problem:
    return normal(n, d) * scale + offset, normal(k, d, seed=1) * scale + offset


def _correlated(n: int, k: int, d: int) -> Problem:
    mix = normal(d, d, seed=3) * torch.logspace(0, -3, d)
    return normal(n, d) @ mix, normal(k, d, seed=1) @ mix


def _one_huge(n: int, k: int, d: int) -> Problem:
    z, codebook = _normals(n, k, d)
    codebook[k // 3] *= 1e4
    return z, codebook


def _small(n: int, k: int, d: int) -> Problem:
    uniform = torch.rand(k, d, generator=torch.Generator().manual_seed(1))
    return normal(n, d), (uniform * 2 - 1) / k


def _every_magnitude(n: int, k: int, d: int) -> Problem:
    z, codebook = _normals(n, k, d)
    return z * torch.logspace(-20, 18, n)[:, None], codebook


def _down_to_denormal(n: int, k: int, d: int) -> Problem:
    z, codebook = _normals(n, k, d)
    return z * torch.logspace(-44, 0, n)[:, None], codebook * torch.logspace(-44, 0, k)[:, None]


def _permuted_ones(n: int, k: int, d: int) -> Problem:
    """Codes of one norm in exact arithmetic: float64 sums of them differ by the order alone."""
    base, generator = normal(d), torch.Generator().manual_seed(1)
    codes = [base[torch.randperm(d, generator=generator)] for _ in range(k)]
    return torch.zeros(n, d), torch.stack(codes)


HARD: dict[str, Callable[[int, int, int], Problem]] = {
    "gaussian": _normals,
    "correlated": _correlated,
    "tied": tied,
    "integers": lambda n, k, d: (normal(n, d).round(), normal(k, d, seed=1).round()),
    "small": _small,
    "collapsed": lambda n, k, d: (normal(n, d), 1 + 1e-6 * normal(k, d, seed=1)),
    "identical": lambda n, k, d: (normal(n, d), torch.ones(k, d)),
    "offset": lambda n, k, d: _normals(n, k, d, offset=1000.0),
    "offset codes": lambda n, k, d: (normal(n, d), normal(k, d, seed=1) + 1000),
    "one huge code": _one_huge,
    "denormal": lambda n, k, d: _normals(n, k, d, scale=1e-40),
    "barely normal": lambda n, k, d: _normals(n, k, d, scale=1e-37),
    "tiny": lambda n, k, d: _normals(n, k, d, scale=1e-25),
    "enormous": lambda n, k, d: _normals(n, k, d, scale=1e37),
    "every magnitude": _every_magnitude,
    "down to denormal": _down_to_denormal,
    "rows are codes": lambda n, k, d: (normal(k, d, seed=1)[:n], normal(k, d, seed=1)),
    "permuted ones": _permuted_ones,
}
"""Kind of data -> ``(N, V, D) -> (z, codebook)``: what usual codebooks do, and worse."""
