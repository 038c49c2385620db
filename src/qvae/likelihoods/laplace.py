"""Laplace noise with a given or a learned width: the absolute error as a likelihood."""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qvae.likelihoods.base import Likelihood, check_shapes, widen

__all__ = ["Laplace"]


class Laplace(Likelihood):
    """Take the decoder's output as the centre of Laplace noise of one width.

    Paper: Ramesh et al. 2021, arXiv:2102.12092, appendix A.3: an L1 reconstruction loss is this
    distribution, as an L2 loss is the Gaussian. Ours differs: theirs is then bent into (0, 1) by a
    logistic function (the logit-Laplace); this is the plain one, over all real numbers, and its
    scale may be learned.

    With a given scale the nll is the absolute error divided by the scale, plus a constant: it
    forgives a few large errors where the Gaussian spreads them. A density has no bits/dim.

    Shapes: params [B C *S], x [B C *S]; num_params(C) = C.

    Args:
        scale: the width > 0 in the data's unit, or ``learned`` (one parameter, ``log_scale``,
            which starts at log 0.1).
        min_scale: least width where it is learned, > 0.

    Raises:
        ValueError: if a width is not positive.

    Example:
        >>> likelihood = Laplace(scale=0.5)
        >>> round(likelihood.nll(torch.zeros(1, 1, 2), torch.ones(1, 1, 2)).item(), 4)
        4.0
    """

    is_discrete: ClassVar[bool] = False

    def __init__(
        self, *, scale: float | Literal["learned"] = 0.1, min_scale: float = 0.00113
    ) -> None:
        super().__init__()
        is_number = not isinstance(scale, str)
        if scale != "learned" and not (is_number and 0 < float(scale) < math.inf):
            raise ValueError(f"scale={scale!r}: must be a number > 0 or 'learned'")
        if not min_scale > 0:
            raise ValueError(f"min_scale={min_scale}: must be > 0")
        self.scale, self.min_scale = scale, min_scale
        if scale == "learned":
            self.log_scale = nn.Parameter(torch.tensor(math.log(0.1)))

    def num_params(self, channels: int) -> int:
        """Count one output a channel: the centre."""
        return channels

    def nll(
        self, params: Float[Tensor, "B P *S"], x: Float[Tensor, "_B C *_S"]
    ) -> Float[Tensor, " B"]:
        """Compute sum |x - centre| / scale + num_dims log(2 scale).

        Raises:
            ValueError: if the shapes differ.
        """
        check_shapes(self, params, x)
        error = (widen(params) - widen(x)).abs().flatten(1)
        width = self._width(error)
        return error.sum(dim=1) / width + error.shape[1] * (2 * width).log()

    def mean(self, params: Float[Tensor, "B P *S"]) -> Float[Tensor, "B C *S"]:
        """Return the parameters, which are the mean (not clipped to the data's range)."""
        return widen(params)

    def sample(
        self, params: Float[Tensor, "B P *S"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "B C *S"]:
        """Draw centre + scale * noise."""
        centre = widen(params)
        u = torch.rand(centre.shape, generator=generator, dtype=centre.dtype, device=centre.device)
        side = u - 0.5
        noise = -side.sign() * torch.log1p((-2 * side.abs()).clamp(min=-1 + 1e-7))
        return centre + self._width(centre) * noise

    def _width(self, like: Tensor) -> Tensor:
        if self.scale == "learned":
            return self.log_scale.exp() + self.min_scale
        return like.new_tensor(float(self.scale))
