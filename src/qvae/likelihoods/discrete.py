"""Probabilities of single values: a coin, or a die with as many sides as there are levels."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from qvae.likelihoods.base import Likelihood, check_range, check_shapes, to_levels, widen

__all__ = ["Bernoulli", "Categorical"]


class Bernoulli(Likelihood):
    """Take the decoder's output as the logit of a 1.

    Paper: AEVB, Kingma & Welling 2013, arXiv:1312.6114, appendix C.1, eq. 11. Grey values are
    allowed, as the chance of a 1: ``nll`` is then the expected nll of pixels drawn with it.
    Bits/dim mean something only on data whose values are 0 and 1.

    Shapes: params [B C *S], x [B C *S] in [0, 1]; num_params(C) = C.

    Example:
        >>> round(Bernoulli().nll(torch.zeros(1, 1, 2), torch.ones(1, 1, 2)).item(), 4)
        1.3863
    """

    is_discrete: ClassVar[bool] = True
    takes_unit: ClassVar[bool] = True
    levels: int | None = 2

    def num_params(self, channels: int) -> int:
        """Count one logit a channel."""
        return channels

    def nll(
        self, params: Float[Tensor, "B P *S"], x: Float[Tensor, "_B C *_S"]
    ) -> Float[Tensor, " B"]:
        """Compute the binary cross-entropy, summed.

        Raises:
            ValueError: if the shapes differ or the data is outside [0, 1].
        """
        check_shapes(self, params, x)
        check_range(self, x)
        nll = F.binary_cross_entropy_with_logits(widen(params), widen(x), reduction="none")
        return nll.flatten(1).sum(dim=1)

    def mean(self, params: Float[Tensor, "B P *S"]) -> Float[Tensor, "B C *S"]:
        """Compute the chance of a 1."""
        return widen(params).sigmoid()

    def sample(
        self, params: Float[Tensor, "B P *S"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "B C *S"]:
        """Draw zeros and ones."""
        return torch.bernoulli(self.mean(params), generator=generator)


class Categorical(Likelihood):
    """Give every level its own probability: a softmax over them for every number.

    Paper: PixelRNN, van den Oord et al. 2016, arXiv:1601.06759, section 3.4 (256-way softmax).
    Ours differs: channels are independent given the parameters.

    Shapes: params [B C*levels *S], the levels of a channel side by side; x [B C *S] with the
    values ``k / (levels - 1)``; num_params(C) = C * levels.

    Args:
        levels: values that one number can take, >= 2.

    Raises:
        ValueError: if there are fewer than 2 levels.

    Example:
        >>> nll = Categorical(levels=4).nll(torch.zeros(1, 4, 2), torch.ones(1, 1, 2))
        >>> round(nll.item(), 4)
        2.7726
    """

    is_discrete: ClassVar[bool] = True
    takes_unit: ClassVar[bool] = True

    def __init__(self, *, levels: int = 256) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels={levels}: must be >= 2")
        self.levels: int = levels

    def num_params(self, channels: int) -> int:
        """Count one logit a channel and level."""
        return channels * self.levels

    def nll(
        self, params: Float[Tensor, "B P *S"], x: Float[Tensor, "_B C *_S"]
    ) -> Float[Tensor, " B"]:
        """Compute the cross-entropy, summed.

        Raises:
            ValueError: if the shapes differ, or the data is outside [0, 1] or off the levels.
        """
        check_shapes(self, params, x)
        index = to_levels(self, x).long()
        log_prob = self._split(params).log_softmax(dim=2)
        return -log_prob.gather(2, index.unsqueeze(2)).flatten(1).sum(dim=1)

    def mean(self, params: Float[Tensor, "B P *S"]) -> Float[Tensor, "B C *S"]:
        """Compute the expected value, in [0, 1]."""
        prob = self._split(params).softmax(dim=2)
        values = torch.linspace(0, 1, self.levels, dtype=prob.dtype, device=prob.device)
        return (prob.movedim(2, -1) * values).sum(dim=-1)

    def sample(
        self, params: Float[Tensor, "B P *S"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "B C *S"]:
        """Draw one level for every number."""
        prob = self._split(params).softmax(dim=2).movedim(2, -1)
        index = torch.multinomial(prob.reshape(-1, self.levels), 1, generator=generator)
        return index.view(prob.shape[:-1]).to(prob.dtype) / (self.levels - 1)

    def _split(self, params: Tensor) -> Tensor:
        if params.shape[1] % self.levels:
            raise ValueError(
                f"params of shape {tuple(params.shape)}: the channels must be a multiple of "
                f"levels={self.levels}"
            )
        return widen(params).unflatten(1, (-1, self.levels))
