"""A density on [0, 1] in the form of the Bernoulli: what grey pixels under a cross-entropy lack."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from qvae.likelihoods.base import Likelihood, check_range, check_shapes, widen

__all__ = ["ContinuousBernoulli"]

_SMALL = 0.1
"""Below it a logit's functions are taken from their series, whose next term is under 1e-12."""


class ContinuousBernoulli(Likelihood):
    """Take the decoder's output as the logit of a continuous Bernoulli.

    Paper: Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845, eq. 4 to 8: p(x) = C lambda^x
    (1 - lambda)^(1 - x). Ours differs: written in the logit l = log(lambda / (1 - lambda)), the
    density is l e^(l x) / (e^l - 1), which is even around lambda = 1/2 and needs one short series
    there, for l near 0, where torch.distributions cuts a window of lambda out.

    A density has no bits/dim. Shapes: params [B C *S], x [B C *S] in [0, 1]; num_params(C) = C.

    Example:
        >>> likelihood = ContinuousBernoulli()
        >>> likelihood.nll(torch.zeros(1, 1, 3), torch.rand(1, 1, 3)).item()  # lambda 1/2: uniform
        0.0
        >>> likelihood.mean(torch.zeros(1, 1, 1)).item()
        0.5
    """

    is_discrete: ClassVar[bool] = False
    takes_unit: ClassVar[bool] = True

    def num_params(self, channels: int) -> int:
        """Count one logit a channel."""
        return channels

    def nll(
        self, params: Float[Tensor, "B P *S"], x: Float[Tensor, "_B C *_S"]
    ) -> Float[Tensor, " B"]:
        """Compute log((e^l - 1) / l) - l x, summed.

        Raises:
            ValueError: if the shapes differ or the data is outside [0, 1].
        """
        check_shapes(self, params, x)
        check_range(self, x)
        logits, x = widen(params), widen(x)
        # log((e^l - 1) / l) = l / 2 + log(2 sinh(l / 2) / l), and the last is even in l.
        return (_log_shc(logits) - (x - 0.5) * logits).flatten(1).sum(dim=1)

    def mean(self, params: Float[Tensor, "B P *S"]) -> Float[Tensor, "B C *S"]:
        """Compute the expected value, 1 / (1 - e^-l) - 1 / l; it is not lambda."""
        logits = widen(params)
        is_small = logits.abs() < _SMALL
        safe = logits.masked_fill(is_small, 1.0)
        square = logits.square()
        series = 0.5 + logits * (1 / 12 - square * (1 / 720 - square / 30240))
        direct = -1 / torch.expm1(-safe) - 1 / safe
        return torch.where(is_small, series, direct).clamp(0, 1)

    def sample(
        self, params: Float[Tensor, "B P *S"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "B C *S"]:
        """Draw by the inverse of the distribution function, log(1 + u (e^l - 1)) / l."""
        logits = widen(params)
        u = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
        size = logits.abs()
        is_small = size < 1e-3
        safe = size.masked_fill(is_small, 1.0)
        # For a negative logit 1 - x has the positive one; for it, keep e^l out of the sum.
        high = 1 + torch.log(u + (1 - u) * torch.exp(-safe)) / safe
        x = torch.where(is_small, u, high).clamp(0, 1)
        return torch.where(logits < 0, 1 - x, x)


def _log_shc(logits: Tensor) -> Tensor:
    """log(2 sinh(l / 2) / l): 0 at 0, l / 2 - log l far out."""
    size = logits.abs()
    is_small = size < _SMALL
    safe = size.masked_fill(is_small, 1.0)
    direct = 0.5 * safe + torch.log(-torch.expm1(-safe)) - torch.log(safe)
    square = logits.square()
    series = square * (1 / 24 - square * (1 / 2880 - square / 181440))
    return torch.where(is_small, series, direct)
