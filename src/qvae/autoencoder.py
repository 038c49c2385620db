"""The graph of every rung: encoder -> bottleneck -> decoder -> likelihood, and its loss."""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qvae import registry
from qvae.bottlenecks.base import Bottleneck
from qvae.bottlenecks.gaussian import Gaussian
from qvae.errors import UsageError
from qvae.likelihoods import Likelihood
from qvae.networks.condition import ConditionFeatures
from qvae.objectives import RatePrice, edge_error, importance_bound
from qvae.types import Batch, DataSpec, Latent, Loss, cond_width

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
    VQ-VAE (arXiv:1711.00937, equation 3). Other prices of the rate, which may follow the step, are
    those of :class:`~qvae.objectives.RatePrice`. With ``num_samples`` > 1 the objective is the
    importance weighted bound (arXiv:1509.00519, equation 8) in place of the ELBO.

    Shapes: ``x [B, C, *S]``, ``cond [B, M]``; the encoder's ``h [B, F, *G]`` is channels first,
    everything between the two projections is channels last.

    Args:
        spec: shape and conditions of the data.
        encoder: ``(x, cond_features) -> [B, out_dim, *grid]``, with those two attributes.
        bottleneck: what the code is.
        decoder: ``(z [B, in_dim, *grid], cond_features) -> params [B, P, *S]``.
        likelihood: ``p(x|z)``, ``P = likelihood.num_params(C)``.
        beta: weight of the rate, >= 0.
        beta_start: where its way to beta starts, >= 0: a line from 0, else by equal factors.
        beta_warmup: steps until the weight is beta, >= 0.
        free_bits: nats below which a latent coordinate's mean KL costs the same, >= 0.
        capacity: nats the mean rate is led to, at ``beta`` a nat of distance; none: no such aim.
        capacity_steps: steps in which the capacity rises from 0, >= 0.
        num_samples: draws of z a sample, >= 1; more make it an importance weighted autoencoder.
        conditioner: turns raw conditions into features; None ignores the conditions.
        swap_prob: share of grid cells whose latent is taken from another sample of the batch
            while training. The decoder then forgives the slips of a prior.
        edge_weight: extra weight of squared errors where the picture has edges, a training-only
            penalty: thin things are a small part of the likelihood and are learned late.

    Raises:
        ValueError: a negative weight, a probability outside [0, 1), what does not go together.
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
        beta_start: float = 0.0,
        beta_warmup: int = 0,
        free_bits: float = 0.0,
        capacity: float | None = None,
        capacity_steps: int = 0,
        num_samples: int = 1,
        conditioner: ConditionFeatures | None = None,
        swap_prob: float = 0.0,
        edge_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.price = RatePrice(
            beta=beta,
            beta_start=beta_start,
            beta_warmup=beta_warmup,
            free_bits=free_bits,
            capacity=capacity,
            capacity_steps=capacity_steps,
        )
        if edge_weight < 0:
            raise ValueError(f"edge_weight={edge_weight}: must not be negative")
        if not 0 <= swap_prob < 1:
            raise ValueError(f"swap_prob={swap_prob}: must be in [0, 1)")
        _check_samples(num_samples, self.price, bottleneck, likelihood)
        if num_samples > 1 and (swap_prob or edge_weight):
            raise ValueError(f"num_samples={num_samples}: takes no swap_prob and no edge_weight")
        self.spec = spec
        self.encoder, self.bottleneck, self.decoder = encoder, bottleneck, decoder
        self.likelihood = likelihood
        self.conditioner = conditioner
        self.proj_in = _projection(encoder.out_dim, bottleneck.in_dim)
        self.proj_out = _projection(bottleneck.out_dim, decoder.in_dim)
        self.num_samples, self.swap_prob, self.edge_weight = num_samples, swap_prob, edge_weight
        self.config: dict[str, Any] | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """The latent grid's sizes; empty when a sample has one latent."""
        return self.encoder.grid

    def forward(self, batch: Batch) -> Loss:
        """Return the objective of a batch and its parts."""
        if self.num_samples > 1:
            return self._importance_weighted(batch)
        latent = self.encode(batch.x, batch.cond)
        z = self._swap(latent.z) if self.training and self.swap_prob else latent.z
        params = self.decode(z, batch.cond).float()
        nll = self.likelihood.nll(params, batch.x)
        penalty = latent.penalty
        if self.training and self.edge_weight:
            penalty = penalty + self.edge_weight * edge_error(self.likelihood.mean(params), batch.x)
        total = (nll + self.price(latent, batch.step) + penalty).mean()
        metrics = dict(latent.metrics)
        if not self.training:  # the mean of some likelihoods costs as much as their nll
            metrics["mse"] = (self.likelihood.mean(params) - batch.x).square().mean().detach()
        return Loss(total=total, nll=nll, rate=latent.rate, penalty=penalty, metrics=metrics)

    def _importance_weighted(self, batch: Batch) -> Loss:
        """Bound log p(x) by several draws; the penalty is what they save over one (never more)."""
        beta = self.price.weight(batch.step)
        z_e = self.embed(batch.x, batch.cond)
        latent = self.bottleneck(z_e)
        nll, ratio = self._draws(z_e, batch.x, batch.cond, num=self.num_samples)
        loss = -importance_bound(-(nll + beta * ratio)) + latent.penalty
        mean_nll, rate = nll.mean(0), ratio.mean(0)
        return Loss(
            total=loss.mean(),
            nll=mean_nll,
            rate=rate,
            penalty=loss - mean_nll - beta * rate,
            metrics=latent.metrics,
        )

    def draws(
        self, x: Float[Tensor, "B *CS"], cond: Float[Tensor, "B M"] | None = None, *, num: int
    ) -> tuple[Float[Tensor, "K B"], Float[Tensor, "K B"]]:
        """Return -log p(x|z) and log q(z|x) - log p(z) at ``num`` draws of z for each sample.

        Minus their sum is the log importance weight of a draw. Memory grows with ``num``.

        Raises:
            ValueError: the bottleneck has no posterior to draw from.
        """
        return self._draws(self.embed(x, cond), x, cond, num=num)

    def _draws(
        self, z_e: Tensor, x: Tensor, cond: Tensor | None, *, num: int
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(self.bottleneck, Gaussian):
            raise ValueError(
                f"{type(self.bottleneck).__name__}: has no density over z to draw from"
            )
        z, ratio = self.bottleneck.draw(z_e.expand(num, *z_e.shape).flatten(0, 1))
        told = None if cond is None else cond.repeat(num, 1)
        params = self.decode(z, told).float()
        nll = self.likelihood.nll(params, x.expand(num, *x.shape).flatten(0, 1))
        return nll.view(num, -1), ratio.view(num, -1)

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

    def check_price(self) -> None:
        """Refuse, before training, a price for a rate that it cannot change.

        Raises:
            ValueError: names the price and the bottleneck.
        """
        plain, own = vars(RatePrice()), vars(self.price)
        changed = [f"{name}={value}" for name, value in own.items() if value != plain[name]]
        if changed and self.bottleneck.has_fixed_rate:
            raise ValueError(
                f"{', '.join(changed)}: the rate of {type(self.bottleneck).__name__} is fixed, so "
                "its price teaches nothing; needs a bottleneck such as gaussian"
            )

    def after_step(self) -> None:
        """Let the bottleneck commit what it counted, unless it is frozen."""
        if self.bottleneck.training:
            self.bottleneck.after_step()

    def discard_step(self) -> None:
        """Let the bottleneck drop what it counted."""
        self.bottleneck.discard_step()

    def _features(self, cond: Tensor | None, num: int) -> Tensor | None:
        if self.conditioner is None:
            return None
        if cond is None:  # not told anything
            weight = next(self.parameters())
            width = cond_width(self.spec.conditions)
            cond = torch.full((num, width), torch.nan, device=weight.device)
        return self.conditioner(cond)

    def _swap(self, z: Float[Tensor, "B *G D"]) -> Float[Tensor, "B *G D"]:
        swapped = torch.rand(z.shape[:-1], device=z.device) < self.swap_prob
        return torch.where(swapped[..., None], z.roll(1, dims=0), z)


def _check_samples(
    num_samples: int, price: RatePrice, bottleneck: Bottleneck, likelihood: Likelihood
) -> None:
    """Refuse what has no meaning together."""
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples}: must be at least 1")
    if num_samples > 1 and not price.is_plain:
        raise ValueError(f"num_samples={num_samples}: takes no free_bits and no capacity")
    if num_samples > 1 and likelihood.is_profile:
        raise ValueError(f"num_samples={num_samples}: takes no sigma=optimal, it is no density")
    for name, value in (("num_samples", num_samples - 1), ("free_bits", price.free_bits)):
        if value and not isinstance(bottleneck, Gaussian):
            raise ValueError(f"{name}: needs a gaussian bottleneck, its KL or its density")


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
    try:
        return component(*runtime, **extra, **arguments)
    except UsageError:
        raise
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from error
