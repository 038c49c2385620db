"""Priors whose tokens know nothing of each other: one table of log-probabilities."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from qvae.priors.base import Prior
from qvae.priors.sampling import check_sampler, pick

__all__ = ["IndependentPrior"]


class IndependentPrior(Prior, ABC):
    """A prior that is one distribution for each position, whatever the condition."""

    @abstractmethod
    def table(self) -> Float[Tensor, "N S"]:
        """Return log p of every digit at every position; -inf where a codebook is short."""

    def log_probs(
        self, tokens: Shaped[Tensor, "B N"], cond: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "B N S"]:
        """Return the table, once for each row."""
        self.check_cond(cond, len(tokens))
        return self.table().expand(len(tokens), -1, -1)

    @torch.no_grad()
    def sample(
        self,
        num: int,
        cond: Float[Tensor, "..."] | None = None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "num N"]:
        """Draw every token by itself; ``guidance`` changes nothing, being told is no help.

        Arguments and errors are those of :meth:`Prior.sample`.
        """
        check_sampler(num=num, temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance)
        self.check_cond(cond, num)
        noise = self._noise(num, seed, generator)
        digits = noise.long()
        for n, logits in enumerate(self.table()):
            rows = logits.expand(num, -1)
            digits[:, n] = pick(
                rows, noise[:, n], temperature=temperature, top_k=top_k, top_p=top_p
            )
        return digits + self.low

    def _is_short(self) -> Tensor:
        """Where ``[N, S]`` is beyond the end of a position's codebook."""
        digits = torch.arange(max(self.codebook_sizes), device=self.device)
        return digits >= (self.high - self.low)[:, None]
