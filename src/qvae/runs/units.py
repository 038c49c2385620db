"""What the loss of a model measures: bits, a density, or neither."""

from qvae.autoencoder import Autoencoder
from qvae.bottlenecks.identity import Identity

__all__ = ["gives_bits", "loss_unit", "nll_unit"]


def gives_bits(model: Autoencoder, levels: int | None) -> bool:
    """Whether nll + rate bounds the bits of data of so many levels.

    It does not for a plain autoencoder, whose rate is 0 by definition, nor for a likelihood over
    other values than the data's, which is no probability of it.
    """
    likelihood = model.likelihood
    has_rate = not isinstance(model.bottleneck, Identity)
    return has_rate and likelihood.is_discrete and likelihood.levels == levels


def loss_unit(model: Autoencoder, levels: int | None) -> str:
    """Return the unit of nll + rate by dimension."""
    if gives_bits(model, levels):
        return "bits/dim"
    if model.likelihood.is_profile:
        return "nats/dim, profile"
    if isinstance(model.bottleneck, Identity):
        return "nats/dim, no rate"
    is_probability = model.likelihood.is_discrete
    return "nats/dim, of other levels" if is_probability else "nats/dim, a density"


def nll_unit(model: Autoencoder) -> str:
    """Return the unit of -log p(x|z); a profile likelihood has seen x and is no density."""
    return "nats/sample, profile" if model.likelihood.is_profile else "nats/sample"
