"""Gaussian noise with a given, a learned or an optimal width."""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qvae.likelihoods.base import Likelihood, check_shapes, widen

__all__ = ["Gaussian"]


class Gaussian(Likelihood):
    """Take the decoder's output as the mean of Gaussian noise of one width.

    Paper: AEVB, Kingma & Welling 2013, arXiv:1312.6114, appendix C.2, and for a width that is not
    given sigma-VAE, Rybkin et al. 2021, arXiv:2006.13202, section 3. Ours differs: ``optimal`` is
    taken per sample, sigma^2 = that sample's mean squared error, so that the loss of a sample
    does not depend on the batch around it; ``nll`` is then (num_dims / 2) log MSE plus constants,
    a profile likelihood and not a density, as sigma has seen x.

    With a given sigma the nll is the squared error of the textbook autoencoder, divided by
    2 sigma^2, plus a constant: minimising the MSE is this likelihood with a fixed width, and the
    choice of the width is the choice of the KL's weight. A density has no bits/dim: on 8-bit pixels
    it can be made as high as one likes.

    Shapes: params [B C *S], x [B C *S]; num_params(C) = C.

    Args:
        sigma: the width > 0 in the data's unit, or ``learned`` (one parameter, ``log_sigma``,
            which starts at log 0.1), or ``optimal``.
        min_sigma: least width where it is not given, > 0. The default is the error of rounding
            to 8 bits, 1 / (255 sqrt 12).

    Raises:
        ValueError: if a width is not positive.

    Example:
        >>> likelihood = Gaussian(sigma=0.5)
        >>> round(likelihood.nll(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)).item(), 4)
        0.4516
    """

    is_discrete: ClassVar[bool] = False

    def __init__(
        self,
        *,
        sigma: float | Literal["learned", "optimal"] = 1.0,
        min_sigma: float = 0.00113,
    ) -> None:
        super().__init__()
        if isinstance(sigma, str):
            if sigma not in ("learned", "optimal"):
                raise ValueError(f"sigma={sigma!r}: must be a number > 0, 'learned' or 'optimal'")
        elif not (sigma > 0 and math.isfinite(sigma)):
            raise ValueError(f"sigma={sigma}: must be a number > 0, 'learned' or 'optimal'")
        if not min_sigma > 0:
            raise ValueError(f"min_sigma={min_sigma}: must be > 0")
        self.sigma, self.min_sigma = sigma, min_sigma
        self.is_profile = sigma == "optimal"
        if sigma == "learned":
            self.log_sigma = nn.Parameter(torch.tensor(math.log(0.1)))

    def num_params(self, channels: int) -> int:
        """Count one output a channel: the mean."""
        return channels

    def nll(
        self, params: Float[Tensor, "B P *S"], x: Float[Tensor, "_B C *_S"]
    ) -> Float[Tensor, " B"]:
        """Compute sum((x - mean)^2) / (2 sigma^2) + num_dims log(sigma sqrt(2 pi)).

        Raises:
            ValueError: if the shapes differ.
        """
        check_shapes(self, params, x)
        error = (widen(params) - widen(x)).flatten(1)
        square = error.square().sum(dim=1)
        num_dims = error.shape[1]
        variance = self._variance(square / num_dims)
        return 0.5 * (square / variance + num_dims * (2 * math.pi * variance).log())

    def mean(self, params: Float[Tensor, "B P *S"]) -> Float[Tensor, "B C *S"]:
        """Return the parameters, which are the mean (not clipped to the data's range)."""
        return widen(params)

    def sample(
        self, params: Float[Tensor, "B P *S"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "B C *S"]:
        """Draw mean + sigma * noise; under ``optimal``, whose sigma needs x, return the mean."""
        mean = widen(params)
        if self.sigma == "optimal":
            return mean
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + self._variance(mean.new_zeros(())).sqrt() * noise

    def _variance(self, mse: Tensor) -> Tensor:
        if self.sigma == "optimal":
            # Held constant: d/dsigma of the nll is 0 at the optimum, so its gradient is unchanged.
            return mse.detach().clamp(min=self.min_sigma**2)
        if self.sigma == "learned":
            return self.log_sigma.exp().square() + self.min_sigma**2
        return mse.new_tensor(float(self.sigma) ** 2)
