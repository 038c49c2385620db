"""The graph of every rung: encoder -> bottleneck -> decoder -> likelihood, and its loss."""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qvae import registry
from qvae.bottlenecks.base import Bottleneck
from qvae.likelihoods import Likelihood
from qvae.networks.condition import ConditionFeatures
from qvae.types import Batch, DataSpec, Latent, Loss

__all__ = ["Autoencoder", "Decoder", "Encoder", "build_autoencoder"]


@runtime_checkable
class Encoder(Protocol):
    """A module that looks at data."""

    out_dim: int
    """Channels of what it returns."""
    grid: tuple[int, ...]
    """Axes of what it returns; empty for one vector a sample."""

    def __call__(self, x: Tensor, cond: Tensor | None) -> Tensor:
        """Turn ``x [B, C, *S]`` and condition features ``[B, F]`` into ``[B, out_dim, *grid]``."""


@runtime_checkable
class Decoder(Protocol):
    """A module that draws data."""

    in_dim: int
    """Channels of what it takes."""

    def __call__(self, z: Tensor, cond: Tensor | None) -> Tensor:
        """Turn ``z [B, in_dim, *grid]`` and condition features into ``[B, P, *S]``."""


class Autoencoder(nn.Module):
    """Encode, squeeze through the bottleneck, decode, and say how well.

    ``forward`` is the objective, per sample and in nats: ``nll + beta * rate + penalty``. Which
    rung this is follows from the bottleneck alone: ``identity`` an autoencoder, ``gaussian`` a VAE
    (arXiv:1312.6114, equation 3 with the sign turned), with ``beta`` > 1 a beta-VAE, ``vq`` a
    VQ-VAE (arXiv:1711.00937, equation 3).

    Shapes: ``x [B, C, *S]``, ``cond [B, M]``; the encoder's ``h [B, F, *G]`` is channels first,
    everything between the two projections is channels last.

    Args:
        spec: shape and conditions of the data.
        encoder: ``(x, cond_features) -> [B, out_dim, *grid]``, with those two attributes.
        bottleneck: what the code is.
        decoder: ``(z [B, in_dim, *grid], cond_features) -> params [B, P, *S]``.
        likelihood: ``p(x|z)``, ``P = likelihood.num_params(C)``.
        beta: weight of the rate, >= 0.
        conditioner: turns raw conditions into features; None ignores the conditions.
        swap_prob: share of grid cells whose latent is taken from another sample of the batch
            while training. The decoder then forgives the slips of a prior.
        edge_weight: extra weight of squared errors where the picture has edges, a training-only
            penalty: thin things are a small part of the likelihood and are learned late.

    Raises:
        ValueError: for a negative weight or a probability outside [0, 1).
    """

    def __init__(
        self,
        spec: DataSpec,
        encoder: Encoder,
        bottleneck: Bottleneck,
        decoder: Decoder,
        likelihood: Likelihood,
        *,
        beta: float = 1.0,
        conditioner: ConditionFeatures | None = None,
        swap_prob: float = 0.0,
        edge_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if beta < 0 or edge_weight < 0:
            raise ValueError(f"beta={beta}, edge_weight={edge_weight}: must not be negative")
        if not 0 <= swap_prob < 1:
            raise ValueError(f"swap_prob={swap_prob}: must be in [0, 1)")
        self.spec = spec
        self.encoder, self.bottleneck, self.decoder = encoder, bottleneck, decoder
        self.likelihood = likelihood
        self.conditioner = conditioner
        self.proj_in = _projection(encoder.out_dim, bottleneck.in_dim)
        self.proj_out = _projection(bottleneck.out_dim, decoder.in_dim)
        self.beta, self.swap_prob, self.edge_weight = beta, swap_prob, edge_weight
        self.config: dict[str, Any] | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """The latent grid's sizes; empty when a sample has one latent."""
        return self.encoder.grid

    def forward(self, batch: Batch) -> Loss:
        """Return the objective of a batch and its parts."""
        latent = self.encode(batch.x, batch.cond)
        z = self._swap(latent.z) if self.training and self.swap_prob else latent.z
        params = self.decode(z, batch.cond).float()
        nll = self.likelihood.nll(params, batch.x)
        penalty = latent.penalty
        if self.training and self.edge_weight:
            penalty = penalty + self.edge_weight * self._edge_error(params, batch.x)
        total = (nll + self.beta * latent.rate + penalty).mean()
        metrics = dict(latent.metrics)
        if not self.training:  # the mean of some likelihoods costs as much as their nll
            metrics["mse"] = (self.likelihood.mean(params) - batch.x).square().mean().detach()
        return Loss(total=total, nll=nll, rate=latent.rate, penalty=penalty, metrics=metrics)

    def encode(self, x: Float[Tensor, "B *CS"], cond: Float[Tensor, "B M"] | None = None) -> Latent:
        """Return the latent of each sample."""
        return self.bottleneck(self.embed(x, cond))

    def embed(
        self, x: Float[Tensor, "B *CS"], cond: Float[Tensor, "B M"] | None = None
    ) -> Float[Tensor, "B *G D"]:
        """Return ``z_e``: what the encoder gives the bottleneck."""
        if tuple(x.shape[1:]) != self.spec.shape:
            raise ValueError(f"x: shape {tuple(x.shape)}, must be (B, *{self.spec.shape})")
        h = self.encoder(x, self._features(cond, len(x)))
        return self.proj_in(h.movedim(1, -1)).float()

    def decode(
        self, z: Float[Tensor, "B *G D"], cond: Float[Tensor, "B M"] | None = None
    ) -> Float[Tensor, "B *PS"]:
        """Return the likelihood's parameters."""
        h = self.proj_out(z).movedim(-1, 1)
        return self.decoder(h, self._features(cond, len(z)))

    def reconstruct(
        self, x: Float[Tensor, "B *CS"], cond: Float[Tensor, "B M"] | None = None
    ) -> Float[Tensor, "B *CS"]:
        """Return the mean of ``p(x|z)`` at the most likely z."""
        z = self.bottleneck.mode(self.embed(x, cond))
        return self.likelihood.mean(self.decode(z, cond).float())

    def after_step(self) -> None:
        """Let the bottleneck commit what it counted."""
        self.bottleneck.after_step()

    def discard_step(self) -> None:
        """Let the bottleneck drop what it counted."""
        self.bottleneck.discard_step()

    def _features(self, cond: Tensor | None, num: int) -> Tensor | None:
        if self.conditioner is None:
            return None
        if cond is None:  # not told anything
            weight = next(self.parameters())
            cond = torch.full((num, len(self.spec.conditions)), torch.nan, device=weight.device)
        return self.conditioner(cond)

    def _swap(self, z: Float[Tensor, "B *G D"]) -> Float[Tensor, "B *G D"]:
        swapped = torch.rand(z.shape[:-1], device=z.device) < self.swap_prob
        return torch.where(swapped[..., None], z.roll(1, dims=0), z)

    def _edge_error(self, params: Tensor, x: Tensor) -> Float[Tensor, " B"]:
        """Squared error weighted by the data's own gradient, in the unit of the likelihood."""
        edges = torch.zeros_like(x)
        for axis in range(2, x.ndim):
            step = x.diff(dim=axis).abs()
            edges.narrow(axis, 0, step.shape[axis]).add_(step)
            edges.narrow(axis, 1, step.shape[axis]).add_(step)
        error = (self.likelihood.mean(params) - x).square()
        scale = 2 * error.detach().flatten(1).mean(1).clamp(min=1e-4)
        return (edges.clamp(max=1) * error).flatten(1).sum(1) / scale


def _projection(width: int, new_width: int) -> nn.Module:
    return nn.Identity() if width == new_width else nn.Linear(width, new_width)


def build_autoencoder(config: Mapping[str, Any], spec: DataSpec) -> Autoencoder:
    """Build the model that a recipe's ``model`` section names.

    ``config`` holds ``encoder``, ``bottleneck``, ``decoder`` and ``likelihood``, each a name of
    the registry and its arguments, and the keyword arguments of :class:`Autoencoder`;
    ``conditional: true`` gives the conditions to encoder and decoder, cyclic ones by
    ``harmonics`` (8) multiples of their angle.

    Raises:
        UsageError: for a name that the registry does not hold.
        ValueError: for an argument that a component refuses.
    """
    rest = {key: value for key, value in config.items() if key not in _PARTS}
    conditioner, cond_dim = None, 0
    harmonics = rest.pop("harmonics", 8)
    if rest.pop("conditional", False):
        if not spec.conditions:
            raise ValueError("model.conditional=true: the data has no condition; name one (--cond)")
        conditioner = ConditionFeatures(spec.conditions, harmonics=harmonics)
        cond_dim = conditioner.dim
    likelihood = _make("likelihood", config)
    told = {"cond_dim": cond_dim, "turns": conditioner.turns if conditioner else ()}
    encoder = _make("encoder", config, spec.shape, **told)
    params_shape = (likelihood.num_params(spec.shape[0]), *spec.shape[1:])
    decoder = _make("decoder", config, params_shape, grid=encoder.grid, **told)
    model = Autoencoder(
        spec,
        encoder,
        _make("bottleneck", config),
        decoder,
        likelihood,
        conditioner=conditioner,
        **rest,
    )
    model.config = dict(config)
    return model


_PARTS = ("encoder", "bottleneck", "decoder", "likelihood")


def _make(kind: str, config: Mapping[str, Any], *runtime: Any, **extra: Any) -> Any:
    arguments = dict(config[kind])
    component = registry.resolve(kind, arguments.pop("name"))
    takes = inspect.signature(component).parameters
    extra = {name: value for name, value in extra.items() if name != "turns" or name in takes}
    return component(*runtime, **extra, **arguments)
