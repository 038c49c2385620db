"""Moving average of the weights: what is evaluated and saved in ``model/``."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from qvae.errors import FormatError

__all__ = ["WeightAverage"]


class WeightAverage:
    """Follow a model's parameters: ``a <- d a + (1 - d) p``, d = ``min(decay, (1+n)/(10+n))``.

    Paper: Polyak and Juditsky 1992; the warm-up is TensorFlow's ``ExponentialMovingAverage``.
    Buffers are not averaged: a codebook that follows its vectors is an average already.

    Args:
        model: whose parameters to follow.
        decay: in [0, 1); 0 is off.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._decay = decay
        self._parameters = dict(model.named_parameters()) if decay else {}
        self._averages = {n: p.detach().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Take in the parameters after the ``num_updates``-th step."""
        if self._averages:
            decay = min(self._decay, (1 + num_updates) / (10 + num_updates))
            parameters: list[Tensor] = list(self._parameters.values())
            torch._foreach_lerp_(list(self._averages.values()), parameters, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model hold the averages while the ``with`` block runs."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchange the model's parameters and the averages, bit for bit."""
        for name, parameter in self._parameters.items():
            parameter.data, self._averages[name] = self._averages[name], parameter.data

    def state(self) -> dict[str, Tensor]:
        """Return the averages by parameter name."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the averages.

        Raises:
            FormatError: names that are not the model's.
        """
        if set(tensors) != set(self._averages):
            names = sorted(set(tensors) ^ set(self._averages))
            raise FormatError(f"averaged weights: the model and the file differ in {names[:5]}")
        for name, average in self._averages.items():
            average.copy_(tensors[name])
