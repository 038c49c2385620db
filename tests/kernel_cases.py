"""Rows and codebooks made to be hard: for the tests of every path of the nearest-code search."""

import os

import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton reads it when it is imported, so its tests run in a process of their own."""


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(n, k, d):
    mix = normal(d, d, seed=3) * torch.logspace(0, -3, d)
    return normal(n, d) @ mix, normal(k, d, seed=1) @ mix


def tied(n, k, d):
    z, codebook = normal(n, d), normal(k, d, seed=1)
    codebook[k // 2 :] = codebook[: k - k // 2].clone()
    return z, codebook[torch.randperm(k, generator=torch.Generator().manual_seed(2))]


def huge(n, k, d):
    z, codebook = normal(n, d), normal(k, d, seed=1)
    codebook[k // 3] *= 1e4
    return z, codebook


def far_apart(n, k, d):
    z, codebook = normal(n, d), normal(k, d, seed=1)
    return z * torch.logspace(-20, 18, n)[:, None], codebook


def fading(n, k, d):
    z, codebook = normal(n, d), normal(k, d, seed=1)
    return z * torch.logspace(-44, 0, n)[:, None], codebook * torch.logspace(-44, 0, k)[:, None]


HARD = {
    "gaussian": lambda n, k, d: (normal(n, d), normal(k, d, seed=1)),
    "correlated": correlated,
    "tied": tied,
    "integers": lambda n, k, d: (normal(n, d).round(), normal(k, d, seed=1).round()),
    "small": lambda n, k, d: (normal(n, d), (torch.rand(k, d) * 2 - 1) / k),
    "collapsed": lambda n, k, d: (normal(n, d), 1 + 1e-6 * normal(k, d, seed=1)),
    "identical": lambda n, k, d: (normal(n, d), torch.ones(k, d)),
    "offset": lambda n, k, d: (normal(n, d) + 1000, normal(k, d, seed=1) + 1000),
    "offset codes": lambda n, k, d: (normal(n, d), normal(k, d, seed=1) + 1000),
    "one huge code": huge,
    "denormal": lambda n, k, d: (normal(n, d) * 1e-40, normal(k, d, seed=1) * 1e-40),
    "barely normal": lambda n, k, d: (normal(n, d) * 1e-37, normal(k, d, seed=1) * 1e-37),
    "tiny": lambda n, k, d: (normal(n, d) * 1e-25, normal(k, d, seed=1) * 1e-25),
    "enormous": lambda n, k, d: (normal(n, d) * 1e37, normal(k, d, seed=1) * 1e37),
    "every magnitude": far_apart,
    "down to denormal": fading,
    "rows are codes": lambda n, k, d: (normal(k, d, seed=1)[:n], normal(k, d, seed=1)),
    "permuted ones": lambda n, k, d: (torch.zeros(n, d), shuffled(k, d)),
}


def shuffled(k, d):
    """Codes of one norm in exact arithmetic: float64 sums of them differ by the order alone."""
    base = normal(d)
    generator = torch.Generator().manual_seed(1)
    return torch.stack([base[torch.randperm(d, generator=generator)] for _ in range(k)])
