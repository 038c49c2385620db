"""Fully connected pair: the network of the VAE paper, and with no hidden layer a linear map."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qvae.networks.layers import check_shape, num_positions

__all__ = ["MLPDecoder", "MLPEncoder"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}


def _activation(name: str) -> nn.Module:
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation={name!r}: must be one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


def _check(hidden: Sequence[int], latents: int, latent_dim: int, cond_dim: int) -> None:
    if any(width < 1 for width in hidden):
        raise ValueError(f"hidden={list(hidden)}: every width must be >= 1")
    for name, value, low in (
        ("latents", latents, 1),
        ("latent_dim", latent_dim, 1),
        ("cond_dim", cond_dim, 0),
    ):
        if value < low:
            raise ValueError(f"{name}={value}: must be >= {low}")


def _layers(widths: Sequence[int], activation: str) -> nn.Sequential:
    """Linear maps from each width to the next, the activation between them."""
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        layers += [_activation(activation)] if index else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


def _join(x: Tensor, cond: Tensor | None) -> Tensor:
    x = x.flatten(1)
    return x if cond is None else torch.cat([x, cond.to(x.dtype)], dim=-1)


class MLPEncoder(nn.Module):
    """Flatten a sample and map it through hidden layers to latent vectors.

    Paper: AEVB, Kingma & Welling 2013, arXiv:1312.6114, appendix C (one tanh layer). Ours differs:
    the last linear map gives ``latent_dim`` numbers a vector, which the Autoencoder's projection
    then maps to what the bottleneck takes; a condition is joined to the input.

    Shapes: x [B C *S] -> [B latent_dim *grid]; grid () for one vector, (n,) for n.

    Args:
        shape: ``(C, *S)`` of one sample, any number of spatial axes.
        cond_dim: width of the condition vector, 0 for none.
        hidden: widths of the hidden layers; none makes the encoder linear.
        activation: relu, tanh or silu.
        latents: latent vectors in a sample, >= 1.
        latent_dim: width of each, >= 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> encoder = MLPEncoder((1, 28, 28), hidden=(500,), activation="tanh")
        >>> encoder.out_dim, encoder.grid
        (64, ())
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        cond_dim: int = 0,
        hidden: Sequence[int] = (512, 512),
        activation: str = "relu",
        latents: int = 1,
        latent_dim: int = 64,
    ) -> None:
        super().__init__()
        _activation(activation)
        _check(hidden, latents, latent_dim, cond_dim)
        self.shape, self.out_dim = tuple(shape), latent_dim
        self.grid: tuple[int, ...] = () if latents == 1 else (latents,)
        widths = [num_positions(shape) + cond_dim, *hidden, latents * latent_dim]
        self.layers = _layers(widths, activation)

    def forward(
        self, x: Float[Tensor, "B C *S"], cond: Float[Tensor, "B F"] | None = None
    ) -> Float[Tensor, "B D *G"]:
        """Encode samples to latent vectors.

        Raises:
            ValueError: if the samples have another shape.
        """
        check_shape("x", x, self.shape)
        return self.layers(_join(x, cond)).view(len(x), self.out_dim, *self.grid)


class MLPDecoder(nn.Module):
    """Map latent vectors through hidden layers to a sample's parameters.

    Paper: AEVB, Kingma & Welling 2013, arXiv:1312.6114, appendix C. Ours differs: as
    :class:`MLPEncoder`, whose mirror it is.

    Shapes: z [B latent_dim *grid] -> [B C_out *S]; any grid, its cells are flattened.

    Args:
        shape: ``(C_out, *S)`` of the result, any number of spatial axes.
        grid: the latent grid.
        cond_dim: width of the condition vector, 0 for none.
        hidden: widths of the hidden layers from latent to data; none makes the decoder linear.
        activation: relu, tanh or silu.
        latent_dim: width of a latent vector as the decoder takes it, >= 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> decoder = MLPDecoder((1, 28, 28), grid=(), hidden=(500,), activation="tanh")
        >>> decoder(torch.zeros(2, decoder.in_dim)).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        grid: tuple[int, ...],
        cond_dim: int = 0,
        hidden: Sequence[int] = (512, 512),
        activation: str = "relu",
        latent_dim: int = 64,
    ) -> None:
        super().__init__()
        _activation(activation)
        _check(hidden, 1, latent_dim, cond_dim)
        self.shape, self.grid, self.in_dim = tuple(shape), tuple(grid), latent_dim
        widths = [latent_dim * num_positions(grid) + cond_dim, *hidden, num_positions(shape)]
        self.layers = _layers(widths, activation)

    def forward(
        self, z: Float[Tensor, "B D *G"], cond: Float[Tensor, "B F"] | None = None
    ) -> Float[Tensor, "B P *S"]:
        """Decode latent vectors to the parameters of the likelihood.

        Raises:
            ValueError: if the latents have another shape.
        """
        check_shape("z", z, (self.in_dim, *self.grid))
        return self.layers(_join(z, cond)).view(len(z), *self.shape)
