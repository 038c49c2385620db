"""The prior that knows nothing: what a quantizer's rate assumes."""

import torch
from jaxtyping import Float
from torch import Tensor

from qvae.priors.independent import IndependentPrior

__all__ = ["Uniform"]


class Uniform(IndependentPrior):
    """Every token of a position's codebook is as probable: nll = sum over positions of ln V.

    Example:
        >>> prior = Uniform(vocab_size=8, num_tokens=4)
        >>> round(prior.nll(torch.zeros(1, 4, dtype=torch.long)).item(), 4)  # 4 ln 8
        8.3178
    """

    def table(self) -> Float[Tensor, "N S"]:
        """Return -ln V of each position's codebook."""
        sizes = (self.high - self.low).float()[:, None]
        return (
            (-sizes.log())
            .expand(-1, max(self.codebook_sizes))
            .masked_fill(self._is_short(), -torch.inf)
        )
