"""How much of a codebook is used, from counts of its codes."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from qvae.codes import code_counts, entropy, perplexity, usage

__all__ = ["CodebookUsage", "entropy_bits"]


def entropy_bits(counts: Int[Tensor, " V"]) -> float:
    """Compute the entropy of the codes' frequencies, bits per code; 0 for no codes at all.

    Example:
        >>> entropy_bits(torch.tensor([1, 1, 2, 0]))
        1.5
    """
    return entropy(counts).item() / math.log(2)


class CodebookUsage:
    """Count codes batch by batch, and tell how they are spread.

    Args:
        codebook_sizes: one per codebook, each >= 1.

    Raises:
        ValueError: if there is no codebook or one is empty.

    Example:
        >>> counter = CodebookUsage((4,))
        >>> counter.update(torch.tensor([[0], [0], [1], [1]]))
        >>> counter.result()["usage"], counter.result()["perplexity"]
        (0.5, 2.0)
    """

    def __init__(self, codebook_sizes: Sequence[int]) -> None:
        if not codebook_sizes or min(codebook_sizes) < 1:
            raise ValueError(f"codebook_sizes={tuple(codebook_sizes)}: needs sizes >= 1")
        self.codebook_sizes = tuple(codebook_sizes)
        self.counts = [torch.zeros(size, dtype=torch.int64) for size in self.codebook_sizes]

    def update(self, codes: Int[Tensor, "*rest K"]) -> None:
        """Count codes, of any leading axes.

        Raises:
            ValueError: if there is not one column per codebook, or a code is not in its codebook.
        """
        if codes.shape[-1] != len(self.counts):
            raise ValueError(
                f"codes has {codes.shape[-1]} columns: there are {len(self.counts)} codebooks"
            )
        flat = codes.reshape(-1, codes.shape[-1])
        if not len(flat):
            return
        columns = flat.long().unbind(dim=1)
        for index, (column, size) in enumerate(zip(columns, self.codebook_sizes, strict=True)):
            low, high = (bound.item() for bound in column.aminmax())
            if low < 0 or high >= size:
                wrong = low if low < 0 else high
                raise ValueError(f"code {wrong} of codebook {index}: must be in 0..{size - 1}")
        for column, count in zip(columns, self.counts, strict=True):
            count += code_counts(column, len(count)).cpu()

    def result(self) -> dict[str, float | int | list[float]]:
        """Tell the use so far.

        Returns:
            ``num_codes`` counted per codebook; ``usage`` and ``perplexity`` as means over the
            codebooks; ``entropy_bits`` and ``max_bits`` as sums over them (bits a grid cell);
            with several codebooks also ``usage_by_codebook`` and ``perplexity_by_codebook``.
        """
        used = [usage(count).item() for count in self.counts]
        spread = [perplexity(count).item() for count in self.counts]
        result: dict[str, float | int | list[float]] = {
            "num_codes": int(self.counts[0].sum().item()),
            "usage": sum(used) / len(used),
            "perplexity": sum(spread) / len(spread),
            "entropy_bits": sum(entropy_bits(count) for count in self.counts),
            "max_bits": sum(math.log2(size) for size in self.codebook_sizes),
        }
        if len(self.counts) > 1:
            result |= {"usage_by_codebook": used, "perplexity_by_codebook": spread}
        return result
