"""Priors whose tokens know nothing of each other: one table of log-probabilities."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from qvae.priors.base import Prior
from qvae.priors.draw import Choose

__all__ = ["IndependentPrior"]


class IndependentPrior(Prior, ABC):
    """A prior that is one distribution for each position, whatever the condition.

    ``guidance`` changes nothing: being told is no help.
    """

    null_prob = 1.0

    @abstractmethod
    def table(self) -> Float[Tensor, "N S"]:
        """Return log p of every digit at every position; -inf where a codebook is short."""

    def log_probs(
        self, tokens: Shaped[Tensor, "B N"], cond: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "B N S"]:
        """Return the table, once for each row."""
        self.check_cond(cond, len(tokens))
        return self.table().expand(len(tokens), -1, -1)

    def walk(
        self,
        cond: Float[Tensor, "B M"],
        choose: Choose,
        *,
        guidance: float = 1.0,
        needed: Sequence[bool] | None = None,
    ) -> Int[Tensor, "B N"]:
        """Decide every token by itself."""
        num = len(cond)
        chosen = [choose(row.expand(num, -1), n) for n, row in enumerate(self.table())]
        return torch.stack(chosen, 1)

    def _is_short(self) -> Tensor:
        """Where ``[N, S]`` is beyond the end of a position's codebook."""
        digits = torch.arange(max(self.codebook_sizes), device=self.device)
        return digits >= (self.high - self.low)[:, None]
