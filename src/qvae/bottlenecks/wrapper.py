"""What quantizers made of quantizers share: how the inner one is named, and who gets the hooks."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from qvae import registry
from qvae.bottlenecks.base import Quantizer

__all__ = ["Inner", "Wrapper", "build_inner", "mean_metrics"]

Inner = Annotated[Mapping[str, Any], registry.Nested("bottleneck")]
"""A quantizer as a recipe writes it: ``{name: vq_ema, codebook_size: 512, dim: 8}``."""


def build_inner(quantizer: Mapping[str, Any]) -> Quantizer:
    """Build a wrapper's quantizer from its name and arguments.

    Raises:
        UsageError: the registry does not hold the name.
        ValueError: it has no name, no codes, or an argument breaks its rule.

    Example:
        >>> build_inner({"name": "fsq", "levels": [8, 5]}).codebook_sizes
        (40,)
    """
    if not isinstance(quantizer, Mapping):
        raise ValueError(f"quantizer={quantizer!r}: must be a name and its arguments, as a mapping")
    arguments = dict(quantizer)
    if "name" not in arguments:
        raise ValueError(f"quantizer={arguments}: needs a name")
    name = arguments.pop("name")
    built = registry.resolve("bottleneck", name)(**arguments)
    if not isinstance(built, Quantizer):
        raise ValueError(f"quantizer={name!r}: has no codes, must be a quantizer such as vq_ema")
    return built


class Wrapper(Quantizer):
    """Hand what the training loop says to every quantizer inside."""

    quantizers: nn.ModuleList

    @property
    def is_started(self) -> Tensor:
        """Whether all of them have seen their first data."""
        return torch.stack([quantizer.is_started for quantizer in self._inner]).all()

    @property
    def has_fixed_rate(self) -> bool:
        """Whether none of them has a rate that weights change."""
        return all(quantizer.has_fixed_rate for quantizer in self._inner)

    @property
    def _inner(self) -> Sequence[Quantizer]:
        return list(self.quantizers)  # type: ignore[arg-type]  # a ModuleList of modules

    def after_step(self) -> None:
        """Let every quantizer commit what it counted, unless it is frozen."""
        for quantizer in self._inner:
            if quantizer.training:
                quantizer.after_step()

    def discard_step(self) -> None:
        """Let every quantizer drop what it counted."""
        for quantizer in self._inner:
            quantizer.discard_step()


def mean_metrics(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average the metrics that all of them have.

    Example:
        >>> mean_metrics([{"usage": torch.tensor(0.5)}, {"usage": torch.tensor(1.0)}])
        {'usage': tensor(0.7500)}
    """
    return {name: torch.stack([metrics[name] for metrics in found]).mean() for name in found[0]}
