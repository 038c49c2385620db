"""The contract of a likelihood."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Likelihood", "check_range", "check_shapes", "to_levels", "widen"]


class Likelihood(nn.Module, ABC):
    """Give every sample a probability (density) under what the decoder put out.

    A module, so that a learned scale is a parameter. The numbers of a sample are independent
    given the parameters, hence ``nll`` is a sum over channels and positions, in float32 or more
    whatever autocast says.
    """

    is_discrete: ClassVar[bool]
    """True if ``nll`` is a probability of discrete values: only then do bits/dim mean something."""
    takes_unit: ClassVar[bool] = False
    """True if data must lie in [0, 1]; else any real number is allowed."""
    is_profile: bool = False
    """True if a width is fitted to the very x it judges: then ``nll`` is no density of x."""
    levels: int | None = None
    """Values that one number can take, ``k / (levels - 1)``; None for real numbers."""

    @abstractmethod
    def num_params(self, channels: int) -> int:
        """Count the decoder's output channels for data with so many channels."""

    @abstractmethod
    def nll(
        self, params: Float[Tensor, "B P *S"], x: Float[Tensor, "_B C *_S"]
    ) -> Float[Tensor, " B"]:
        """Compute -log p(x | params), nats per sample."""

    @abstractmethod
    def mean(self, params: Float[Tensor, "B P *S"]) -> Float[Tensor, "B C *S"]:
        """Compute the expected sample, in the data's range."""

    @abstractmethod
    def sample(
        self, params: Float[Tensor, "B P *S"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "B C *S"]:
        """Draw a sample."""


def check_shapes(likelihood: Likelihood, params: Tensor, x: Tensor) -> None:
    """Refuse parameters that do not belong to the data.

    Raises:
        ValueError: names both shapes.
    """
    needed = (len(x), likelihood.num_params(x.shape[1]), *x.shape[2:])
    if tuple(params.shape) != needed:
        raise ValueError(
            f"params of shape {tuple(params.shape)} for x of shape {tuple(x.shape)}: "
            f"{type(likelihood).__name__} needs params of shape {needed}"
        )


def widen(tensor: Tensor) -> Tensor:
    """Bring 16-bit numbers to float32, leave wider ones."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_range(likelihood: Likelihood, x: Tensor) -> None:
    """Refuse data outside [0, 1] (not looked at inside ``torch.compile``).

    Raises:
        ValueError: names the range found.
    """
    if torch.compiler.is_compiling() or x.numel() == 0:
        return
    low, high = (bound.item() for bound in x.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"x lies in [{low:g}, {high:g}]: {type(likelihood).__name__} takes data in [0, 1]"
        )


def to_levels(likelihood: Likelihood, x: Tensor) -> Tensor:
    """Turn data ``k / (levels - 1)`` into the float k.

    Raises:
        ValueError: if the data is outside [0, 1], or not on the levels.
    """
    check_range(likelihood, x)
    assert likelihood.levels is not None
    scaled = widen(x) * (likelihood.levels - 1)
    index = scaled.round()
    if not torch.compiler.is_compiling() and x.numel():
        error = (scaled - index).abs().max().item()
        if error > 0.02:
            raise ValueError(
                f"x is up to {error:.2f} levels away from k / {likelihood.levels - 1}: "
                f"{type(likelihood).__name__}(levels={likelihood.levels}) takes data on the levels"
            )
    return index
