"""k-means, and a choice of vectors that a table does not serve yet."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qvae.codes import code_counts, code_sums
from qvae.kernels import nearest

__all__ = ["kmeans", "poorly_served", "random_order"]

_MOST_ITERATIONS = 10
_MOST_PAIRS = 2**33


def kmeans(
    vectors: Float[Tensor, "N D"], size: int, *, seed: int
) -> tuple[Float[Tensor, "size D"], Float[Tensor, " size"]]:
    """Return ``size`` centres and how many vectors each has, by Lloyd's iterations.

    A centre that no vector chooses moves to a vector that is far from its own centre, drawn by
    squared distance (Arthur & Vassilvitskii 2007, k-means++), so that many equal vectors, the
    background of a picture, do not waste centres. There are 10 iterations, or as many as fit in
    2^33 comparisons: with a large table and few vectors a row, more would change little.

    Args:
        vectors: at least ``size``, finite.
        size: number of centres, >= 1.
        seed: of the first choice and of every move.

    Raises:
        ValueError: there are fewer vectors than centres.

    Example:
        >>> centres, counts = kmeans(torch.tensor([[0.0], [0.2], [5.0]]), 2, seed=0)
        >>> sorted(round(c, 3) for c in centres.flatten().tolist()), sorted(counts.tolist())
        ([0.1, 5.0], [1.0, 2.0])
    """
    if len(vectors) < size:
        raise ValueError(f"vectors: {len(vectors)} are too few for size={size} centres")
    centres = vectors[random_order(len(vectors), seed, vectors.device)[:size]].clone()
    iterations = max(1, min(_MOST_ITERATIONS, _MOST_PAIRS // (len(vectors) * size)))
    counts = torch.zeros(size, device=vectors.device)
    for iteration in range(iterations):
        codes = nearest(vectors, centres)
        counts = code_counts(codes, size).float()
        means = code_sums(vectors, codes, size) / counts.clamp(min=1)[:, None]
        centres = torch.where((counts > 0)[:, None], means, centres)
        empty = torch.nonzero(counts == 0)[:, 0]
        if len(empty):
            errors = (vectors - centres[codes]).square().sum(1)
            fresh = poorly_served(vectors, errors, len(empty), seed=seed + iteration + 1)
            centres[empty[: len(fresh)]] = fresh
            counts[empty] = 1.0
    return centres, counts


def poorly_served(
    vectors: Float[Tensor, "N D"], errors: Float[Tensor, " N"], most: int, *, seed: int
) -> Float[Tensor, "M D"]:
    """Draw up to ``most`` different vectors without replacement, each in proportion to its error.

    Equal vectors are drawn once, and a vector without an error never: a code put there would
    never be chosen.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(errors), generator=generator).to(errors.device)
    # The largest of log(weight) + Gumbel noise are such a draw.
    keys = errors.log() - (-uniform.clamp(min=1e-20).log()).log()
    keys = torch.where(errors > 1e-12, keys, -torch.inf)
    count = min(2 * most, int((errors > 1e-12).sum()))
    drawn = vectors[keys.topk(count).indices]
    _, group = torch.unique(drawn, dim=0, return_inverse=True)
    order = torch.arange(count, device=drawn.device)
    first = torch.full_like(order, count).scatter_reduce(0, group, order, "amin")
    return drawn[first[first < count].sort().values[:most]]


def random_order(length: int, seed: int, device: torch.device) -> Int[Tensor, " length"]:
    """Shuffle, the same on every process and after every resume."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).to(device)
