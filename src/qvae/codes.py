"""Counts of codes, and what they say of a codebook: usage, entropy, perplexity."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

__all__ = ["code_counts", "code_sums", "entropy", "perplexity", "usage"]


def code_counts(codes: Int[Tensor, " N"], size: int) -> Int[Tensor, " size"]:
    """Count how often each code occurs, without a one-hot of N by size.

    Example:
        >>> code_counts(torch.tensor([0, 2, 2]), 4).tolist()
        [1, 0, 2, 0]
    """
    if codes.device.type in ("cpu", "mps"):
        return torch.bincount(codes, minlength=size)
    # On CUDA bincount asks for the range of its input first, and so waits for the device, twice.
    return codes.new_zeros(size).scatter_add_(0, codes, torch.ones_like(codes))


def code_sums(
    vectors: Float[Tensor, "N D"], codes: Int[Tensor, " N"], size: int
) -> Float[Tensor, "size D"]:
    """Sum the vectors that chose each code, in float32.

    ``index_add_`` is deterministic on the CPU. On CUDA its atomics are not, so there the vectors
    are sorted by code first and each run of equal codes is summed on its own.

    Example:
        >>> code_sums(torch.ones(3, 1), torch.tensor([0, 2, 2]), 4).flatten().tolist()
        [1.0, 0.0, 2.0, 0.0]
    """
    vectors = vectors.to(torch.float32)
    if vectors.is_cuda:
        return _sorted_sums(vectors, codes, size)
    return torch.zeros(size, vectors.shape[1], device=vectors.device).index_add_(0, codes, vectors)


def _sorted_sums(vectors: Tensor, codes: Tensor, size: int) -> Tensor:
    """Sum runs of equal codes: the same order of additions every time."""
    order = torch.argsort(codes, stable=True)
    lengths, rows = code_counts(codes, size), vectors[order]
    # Unsafe is without a check of the lengths, for which the processor would wait.
    return torch.segment_reduce(rows, "sum", lengths=lengths, axis=0, initial=0.0, unsafe=True)


def usage(counts: Shaped[Tensor, " V"]) -> Float[Tensor, ""]:
    """Return the share of codes that were used at least once.

    Example:
        >>> usage(torch.tensor([3, 0, 1, 0])).item()
        0.5
    """
    return (counts > 0).to(torch.float32).mean()


def entropy(counts: Shaped[Tensor, " V"]) -> Float[Tensor, ""]:
    """Return the entropy of the codes' frequencies in nats; 0 for no codes at all.

    The plug-in estimate, which is too low where there are few codes for the codebook's size.

    Example:
        >>> round(entropy(torch.tensor([5, 5, 0])).item(), 4)
        0.6931
    """
    # Integers are counts over a whole data set: there float32 would round.
    counts = counts if counts.is_floating_point() else counts.double()
    p = counts / counts.sum().clamp(min=1)
    return -torch.xlogy(p, p).sum().clamp(max=0)


def perplexity(counts: Shaped[Tensor, " V"]) -> Float[Tensor, ""]:
    """Return exp of the entropy: the size of a codebook, evenly used, as informative as this one.

    Example:
        >>> perplexity(torch.tensor([5.0, 5.0, 0.0])).item()
        2.0
    """
    return entropy(counts).exp()
