"""A mixture of logistic bells, cut into as many bins as there are levels."""

import math
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from qvae.likelihoods.base import Likelihood, check_shapes, to_levels, widen

__all__ = ["DiscretizedLogistic"]

_MAX_LOG_SCALE = 7.0
_EPSILON = 1e-6


class _Mixture(NamedTuple):
    """Each [B C num_mixtures *S]; means and scales on the axis where data spans [-1, 1]."""

    logits: Tensor
    means: Tensor
    log_scales: Tensor


class DiscretizedLogistic(Likelihood):
    """Spread probability over the levels by a mixture of logistic distributions.

    Paper: PixelCNN++, Salimans et al. 2017, arXiv:1701.05517, section 2.1, eq. 2. Ours differs:
    channels are independent given the parameters, so there may be any number of them; the mass of
    a bin is computed exactly, log(s(a) - s(b)) = log s(a) + log s(-b) + log(1 - e^(b-a)), with no
    approximation in the tails; the probabilities of the levels sum to 1.

    Shapes: params [B C*3*num_mixtures *S], for every channel the logits of the mixture, the means
    (data spans [-1, 1] there, so 0 is mid-grey), the log scales (kept in -7..7); x [B C *S] with
    the values ``k / (levels - 1)``.

    Args:
        num_mixtures: bells per number, >= 1.
        levels: values that one number can take, >= 2.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> likelihood = DiscretizedLogistic(num_mixtures=2)
        >>> likelihood.num_params(3)
        18
        >>> round(likelihood.nll(torch.zeros(1, 6, 1), torch.zeros(1, 1, 1)).item(), 3)
        1.31
    """

    is_discrete: ClassVar[bool] = True
    takes_unit: ClassVar[bool] = True

    def __init__(self, *, num_mixtures: int = 10, levels: int = 256) -> None:
        super().__init__()
        if num_mixtures < 1:
            raise ValueError(f"num_mixtures={num_mixtures}: must be >= 1")
        if levels < 2:
            raise ValueError(f"levels={levels}: must be >= 2")
        self.num_mixtures = num_mixtures
        self.levels: int = levels

    def num_params(self, channels: int) -> int:
        """Count logit, mean and log scale of every bell of every channel."""
        return 3 * self.num_mixtures * channels

    def nll(
        self, params: Float[Tensor, "B P *S"], x: Float[Tensor, "_B C *_S"]
    ) -> Float[Tensor, " B"]:
        """Compute -log of the probability of every number's level, summed.

        Raises:
            ValueError: if the shapes differ, or the data is outside [0, 1] or off the levels.
        """
        check_shapes(self, params, x)
        index = to_levels(self, x).unsqueeze(2)
        logits, means, log_scales = self._split(params)
        half = 1 / (self.levels - 1)
        centre = 2 * half * index - 1
        inverse = (-log_scales).exp()
        is_first, is_last = index == 0, index == self.levels - 1
        below_upper = F.logsigmoid((centre + half - means) * inverse)
        above_lower = F.logsigmoid((means - centre + half) * inverse)
        overlap = _log1mexp(2 * half * inverse)
        log_prob = (
            below_upper.masked_fill(is_last, 0.0)
            + above_lower.masked_fill(is_first, 0.0)
            + overlap.masked_fill(is_first | is_last, 0.0)
        )
        mixed = (logits.log_softmax(dim=2) + log_prob).logsumexp(dim=2)
        return -mixed.flatten(1).sum(dim=1)

    def mean(self, params: Float[Tensor, "B P *S"]) -> Float[Tensor, "B C *S"]:
        """Compute the mean of the mixture clipped to [0, 1], before rounding to levels.

        For one bell of mean m and scale s on [-1, 1] it is
        1 - s (softplus((1 - m) / s) - softplus((-1 - m) / s)).
        """
        logits, means, log_scales = self._split(params)
        scale = log_scales.exp()
        above, below = F.softplus((1 - means) / scale), F.softplus((-1 - means) / scale)
        clipped = (1 - scale * (above - below)).clamp(-1, 1)
        return (0.5 + 0.5 * (logits.softmax(dim=2) * clipped).sum(dim=2)).clamp(0, 1)

    def sample(
        self, params: Float[Tensor, "B P *S"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "B C *S"]:
        """Draw a bell, then a number from it, rounded to its level."""
        logits, means, log_scales = self._split(params)
        weights = logits.softmax(dim=2).movedim(2, -1)
        chosen = torch.multinomial(weights.reshape(-1, self.num_mixtures), 1, generator=generator)
        chosen = chosen.view(weights.shape[:-1]).unsqueeze(2)
        mean, log_scale = (t.gather(2, chosen).squeeze(2) for t in (means, log_scales))
        u = torch.rand(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        u = u.clamp(_EPSILON, 1 - _EPSILON)
        value = (mean + log_scale.exp() * (u.log() - (-u).log1p())).clamp(-1, 1)
        return ((value + 1) / 2 * (self.levels - 1)).round() / (self.levels - 1)

    def _split(self, params: Tensor) -> _Mixture:
        if params.shape[1] % (3 * self.num_mixtures):
            raise ValueError(
                f"params of shape {tuple(params.shape)}: the channels must be a multiple of "
                f"3 * num_mixtures={3 * self.num_mixtures}"
            )
        parts = widen(params).unflatten(1, (-1, 3, self.num_mixtures))
        logits, means, log_scales = parts.unbind(dim=2)
        return _Mixture(logits, means, log_scales.clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE))


def _log1mexp(width: Tensor) -> Tensor:
    """log(1 - e^-width) for width > 0, from the side that keeps its digits."""
    small = (-torch.expm1(-width.clamp(max=1.0))).log()
    large = torch.log1p(-(-width.clamp(min=math.log(2))).exp())
    return torch.where(width < math.log(2), small, large)
