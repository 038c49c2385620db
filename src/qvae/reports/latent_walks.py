"""Walks through a latent space, decoded: along a coordinate, between two samples, over a plane."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qvae.autoencoder import Autoencoder
from qvae.bottlenecks.base import Quantizer
from qvae.bottlenecks.gaussian import Gaussian
from qvae.errors import UsageError
from qvae.types import Batch

__all__ = ["Traversal", "interpolate", "manifold", "slerp", "traverse"]

_DRAWN = 4096


def slerp(
    a: Float[Tensor, "B *Z"], b: Float[Tensor, "B *Z"], share: Float[Tensor, " T"]
) -> Float[Tensor, "B T *Z"]:
    """Go from a to b on an arc around zero: spherical linear interpolation of each sample.

    Draws of a wide normal lie near a sphere, and so does the arc; the straight line between two of
    them passes through its inside, where no sample is. Lengths go from |a| to |b| evenly. Where
    the angle is no angle (a zero, or opposite directions) the line is taken.

    Paper: Shoemake 1985, section 3.3; for latent spaces White 2016, arXiv:1609.04468.

    Example:
        >>> slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0.5]))
        tensor([[[0.7071, 0.7071]]])
    """
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    long_a, long_b = flat_a.norm(dim=1, keepdim=True), flat_b.norm(dim=1, keepdim=True)
    unit_a, unit_b = flat_a / long_a.clamp(min=1e-12), flat_b / long_b.clamp(min=1e-12)
    angle = (unit_a * unit_b).sum(dim=1).clamp(-1, 1).acos()[:, None, None]
    t = share[None, :, None]
    arc = torch.sin((1 - t) * angle) * unit_a[:, None] + torch.sin(t * angle) * unit_b[:, None]
    length = (1 - t) * long_a[:, None] + t * long_b[:, None]
    straight = (1 - t) * flat_a[:, None] + t * flat_b[:, None]
    sine = torch.sin(angle)
    has_zero = (torch.minimum(long_a, long_b) < 1e-9)[:, None]
    is_flat = ((sine.abs() < 1e-4) | has_zero).expand_as(straight)
    path = torch.where(is_flat, straight, length * arc / torch.where(sine == 0, 1.0, sine))
    return path.view(len(a), len(share), *a.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Traversal:
    """A sample with one coordinate at a time moved, the most telling coordinate first."""

    x: Float[Tensor, "R T *CS"]
    kl: Float[Tensor, " R"]
    """Nats that each coordinate carries, on average."""
    dims: list[int]
    """Which coordinates of the flattened latent they are."""


@torch.inference_mode()
def traverse(
    model: Autoencoder,
    batch: Batch,
    *,
    index: int,
    values: Float[Tensor, " T"],
    most: int,
    seed: int = 0,
) -> Traversal:
    """Move each coordinate of a sample's posterior mean through ``values``.

    What a coordinate carries and where it goes follow the model's own prior. Under a learned one
    the KL is estimated from one draw a sample, and can come out negative for a coordinate that
    carries nothing; the middle and the deviation of a coordinate are those of 4096 draws.

    Args:
        model: with a Gaussian bottleneck.
        batch: on which the KL of each coordinate is averaged.
        index: the sample in it that is moved.
        values: from the prior's mean, in deviations of the prior.
        most: how many coordinates, those of the largest KL.
        seed: of those draws.

    Raises:
        UsageError: the bottleneck is not Gaussian.
    """
    bottleneck = _gaussian(model, "traversal")
    mean, log_var = bottleneck.posterior(model.embed(batch.x, batch.cond))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    drawn = mean + torch.exp(0.5 * log_var) * noise
    kl = bottleneck.cost(drawn, mean, log_var).flatten(1).mean(dim=0)
    order = kl.argsort(descending=True)[:most]
    middle, width = (part.expand(mean.shape[1:]).flatten() for part in _moments(bottleneck, seed))
    start = mean[index].flatten()
    z = start.repeat(len(order), len(values), 1)
    for row, dim in enumerate(order.tolist()):
        z[row, :, dim] = middle[dim] + width[dim] * values.to(z.device)
    cond = None if batch.cond is None else batch.cond[index : index + 1]
    x = _decode(model, z.view(-1, *mean.shape[1:]), cond)
    return Traversal(x=x.unflatten(0, (len(order), -1)), kl=kl[order].cpu(), dims=order.tolist())


def _moments(bottleneck: Gaussian, seed: int) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the prior, by coordinate of a cell."""
    if bottleneck.prior is None:
        return torch.zeros(bottleneck.out_dim), torch.ones(bottleneck.out_dim)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(_DRAWN, 2, bottleneck.out_dim, generator=generator)
    z = bottleneck.from_noise(noise.to(next(bottleneck.parameters()).device))
    return z.mean(dim=0), z.std(dim=0)


@torch.inference_mode()
def interpolate(model: Autoencoder, batch: Batch, *, num_steps: int) -> Float[Tensor, "P T *CS"]:
    """Decode the arcs between samples 0 and 1, 2 and 3, and so on, both ends included.

    Raises:
        UsageError: codes are integers, which have nothing between them.
    """
    if isinstance(model.bottleneck, Quantizer):
        raise UsageError("kind=interpolation: codes are integers, and have nothing between them")
    z = model.bottleneck.mode(model.embed(batch.x, batch.cond))
    paths = slerp(z[0::2], z[1::2], torch.linspace(0, 1, num_steps, device=z.device))
    conds = None if batch.cond is None else batch.cond[0::2].repeat_interleave(num_steps, dim=0)
    return _decode(model, paths.flatten(0, 1), conds).unflatten(0, (-1, num_steps))


@torch.inference_mode()
def manifold(
    model: Autoencoder, *, side: int, cond: Float[Tensor, "1 M"] | None = None
) -> Float[Tensor, "R C *CS"]:
    """Decode a plane of two coordinates at evenly spaced quantiles of the prior.

    Paper: Kingma & Welling 2013, arXiv:1312.6114, figure 4. Under a learned prior the quantiles of
    the second coordinate, upwards, are those that the first one leaves it, so equal areas of the
    plane are equally likely there, too.

    Args:
        model: with a Gaussian bottleneck of two coordinates.
        side: pictures in a row and in a column.
        cond: what to tell the decoder, raw numbers.

    Raises:
        UsageError: the latent is not Gaussian, or has not two coordinates.
    """
    bottleneck = _gaussian(model, "manifold")
    dims = bottleneck.out_dim * math.prod(model.grid)
    if dims != 2:
        raise UsageError(f"kind=manifold: the latent has {dims} coordinates, a plane needs 2")
    share = (torch.arange(side) + 0.5) / side
    down, across = torch.meshgrid(share.flip(0), share, indexing="ij")
    plane = torch.stack([across, down], dim=-1).to(next(model.parameters()).device)
    z = bottleneck.quantile(plane.view(-1, *model.grid, bottleneck.out_dim))
    x = _decode(model, z, cond)
    return x.unflatten(0, (side, side))


def _gaussian(model: Autoencoder, kind: str) -> Gaussian:
    if not isinstance(model.bottleneck, Gaussian):
        name = type(model.bottleneck).__name__
        raise UsageError(f"kind={kind}: {name} has no normal to walk in; train a VAE (gaussian)")
    return model.bottleneck


def _decode(model: Autoencoder, z: Tensor, cond: Tensor | None) -> Tensor:
    parts = []
    for start in range(0, len(z), 256):
        part = z[start : start + 256]
        told = cond
        if cond is not None:
            rows = cond.expand(len(z), -1) if len(cond) == 1 else cond
            told = rows[start : start + 256]
        parts.append(model.likelihood.mean(model.decode(part, told).float()).cpu())
    return torch.cat(parts)
