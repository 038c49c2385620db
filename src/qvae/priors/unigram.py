"""The prior that only counts: how often each token was seen, at its position or anywhere.

It is what a quantizer run without a trained prior is sampled from, and the yardstick that a
trained prior has to beat.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from qvae.data.base import Split
from qvae.priors.independent import IndependentPrior
from qvae.types import Condition

__all__ = ["Unigram", "fit_unigram"]


class Unigram(IndependentPrior):
    """Smoothed frequencies of tokens; before :meth:`count` it is uniform.

    With c counts at a position and g the codebook's frequencies over all positions (add-one),
    ``p = (c + smoothing * g) / (sum(c) + smoothing)``, a Dirichlet prior of mean g.

    Args:
        vocab_size: number of tokens, the sum of ``codebook_sizes``.
        num_tokens: N, tokens in a sample.
        conditions: what ``cond`` columns mean; they are not used.
        codebook_sizes: sizes of the K codebooks; None is one of ``vocab_size``.
        grid: axes of the cells; not used.
        is_per_position: whether each position has its own frequencies, else p = g.
        smoothing: how many observations g is worth at a position; > 0.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> prior = Unigram(vocab_size=4, num_tokens=1, is_per_position=False)
        >>> prior.count(torch.tensor([[3], [3]]))
        >>> prior.table().exp().tolist()[0][3]
        0.5
    """

    counts: Int[Tensor, "N S"]

    def __init__(
        self,
        *,
        vocab_size: int,
        num_tokens: int,
        conditions: Iterable[Condition] = (),
        codebook_sizes: Sequence[int] | None = None,
        grid: Sequence[int] | None = None,
        is_per_position: bool = True,
        smoothing: float = 16.0,
    ) -> None:
        super().__init__(
            vocab_size=vocab_size,
            num_tokens=num_tokens,
            conditions=conditions,
            codebook_sizes=codebook_sizes,
            grid=grid,
        )
        if not 0 < smoothing < float("inf"):
            raise ValueError(f"smoothing={smoothing}: must be > 0 and finite")
        self.is_per_position, self.smoothing = is_per_position, smoothing
        shape = (num_tokens, max(self.codebook_sizes))
        self.register_buffer("counts", torch.zeros(shape, dtype=torch.long))

    @torch.no_grad()
    def count(
        self, tokens: Shaped[Tensor, "..."], *, lengths: Shaped[Tensor, "..."] | None = None
    ) -> None:
        """Add samples to what was seen; ``lengths`` as in :meth:`nll`.

        Raises:
            ValueError: a token outside its position's codebook.
        """
        _, digits, is_told = self.read(tokens.to(self.device), lengths)
        width = self.counts.shape[1]
        cells = digits + torch.arange(self.num_tokens, device=self.device) * width
        cells = cells.flatten() if is_told is None else cells[is_told]
        seen = torch.bincount(cells, minlength=self.counts.numel())
        self.counts += seen.view_as(self.counts)

    def table(self) -> Float[Tensor, "N S"]:
        """Return the logarithm of the smoothed frequencies."""
        num_codebooks = len(self.codebook_sizes)
        is_short = self._is_short()
        counts = self.counts.double()
        shared = counts.unflatten(0, (-1, num_codebooks)).sum(0) + 1
        shared = shared.masked_fill(is_short[:num_codebooks], 0)
        shared = (shared / shared.sum(1, keepdim=True)).repeat(self.num_tokens // num_codebooks, 1)
        if self.is_per_position:
            total = counts.sum(1, keepdim=True) + self.smoothing
            shared = (counts + self.smoothing * shared) / total
        return shared.log().float()


def fit_unigram(
    split: Split,
    *,
    codebook_sizes: Sequence[int],
    num_tokens: int,
    conditions: Iterable[Condition] = (),
    is_per_position: bool = True,
    smoothing: float = 16.0,
) -> Unigram:
    """Count all tokens of a split.

    Args:
        split: samples with ``Batch.x`` tokens ``[B, N]``.
        codebook_sizes: sizes of the K codebooks.
        num_tokens: N.
        conditions: what ``cond`` columns mean.
        is_per_position: as in :class:`Unigram`.
        smoothing: as in :class:`Unigram`.

    Raises:
        ValueError: a token outside its position's codebook.

    Example:
        >>> import tempfile
        >>> from qvae.data.tokens import TokenData, write_tokens
        >>> folder = tempfile.mkdtemp() + "/tokens"
        >>> facts = {"grid": (2,), "codebook_sizes": (4,), "tokenizer_hash": ""}
        >>> write_tokens(folder, {"train": (torch.tensor([[0, 3]] * 100), None)}, **facts)
        >>> prior = fit_unigram(TokenData(folder).train(), codebook_sizes=(4,), num_tokens=2)
        >>> prior.sample(1, temperature=0.0).tolist()
        [[0, 3]]
    """
    options = {"is_per_position": is_per_position, "smoothing": smoothing}
    prior = Unigram(
        vocab_size=sum(codebook_sizes),
        num_tokens=num_tokens,
        conditions=conditions,
        codebook_sizes=codebook_sizes,
        is_per_position=is_per_position,
        smoothing=smoothing,
    )
    prior.config = {"name": "unigram", **options}
    for start in range(0, len(split), 4096):
        batch = split.batch(np.arange(start, min(start + 4096, len(split))))
        prior.count(batch.x, lengths=batch.lengths)
    return prior
