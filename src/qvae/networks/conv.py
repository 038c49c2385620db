"""The convolutional pair of the VQ-VAE paper, for signals, images and volumes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qvae.networks.layers import (
    ResidualBlock,
    check_shape,
    conv,
    conv_transpose,
    divide,
    keep_scale,
    num_positions,
    per_axis,
)

__all__ = ["ConvDecoder", "ConvEncoder"]


def _strides(downsample: int | Sequence[int], num_axes: int) -> list[tuple[int, ...]]:
    """Factor a power of two per axis into steps of 2 (or 1 on axes that are done)."""
    if not 1 <= num_axes <= 3:
        raise ValueError(f"shape has {num_axes} spatial axes: a convolution takes 1, 2 or 3")
    factors = per_axis(downsample, num_axes)
    for axis, factor in enumerate(factors):
        if factor < 1 or factor & (factor - 1):
            raise ValueError(
                f"downsample={factor} on spatial axis {axis}: must be a power of two, 1 2 4 8 ..."
            )
    steps = max(factor.bit_length() - 1 for factor in factors)
    return [tuple(2 if factor >> step > 1 else 1 for factor in factors) for step in range(steps)]


def _widths(hidden: int, steps: int) -> list[int]:
    """Channels after each halving: hidden / 2 after the first of several, then hidden."""
    return [hidden // 2 if step == 0 and steps > 1 else hidden for step in range(steps)]


def _kernel(stride: Sequence[int]) -> tuple[int, ...]:
    """4 where the size halves, 3 where it stays; padding 1 suits both."""
    return tuple(4 if step == 2 else 3 for step in stride)


def _check_condition(cond_dim: int, num_blocks: int, *, is_spatial: bool) -> None:
    if cond_dim and is_spatial and not num_blocks:
        raise ValueError(
            f"num_blocks={num_blocks} with cond_dim={cond_dim}: on a spatial grid the condition "
            "enters by the residual blocks, so there must be at least one"
        )


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        low = 0 if name in ("num_blocks", "cond_dim") else 2 if name == "hidden" else 1
        if value < low:
            raise ValueError(f"{name}={value}: must be >= {low}")


class ConvEncoder(nn.Module):
    """Halve the sizes by strided convolutions, then refine by residual blocks.

    Paper: VQ-VAE, van den Oord et al. 2017, arXiv:1711.00937, section 4.1; widths as in DeepMind's
    Sonnet example (hidden / 2 after the first stride). Ours differs: any number of spatial axes,
    any power of two per axis, FiLM in the residual blocks where there is a condition. No
    normalisation.

    Shapes: x [B C *S] -> [B out_dim *grid]; the grid is S / downsample; with ``latents=n`` the
    features are flattened and mapped linearly (with the condition) to n vectors, grid ``(n,)``,
    and ``()`` for n = 1.

    Args:
        shape: ``(C, *S)`` of one sample, 1 to 3 spatial axes.
        cond_dim: width of the condition vector, 0 for none.
        hidden: channels, >= 2; ``out_dim`` of a spatial grid.
        residual: channels inside a residual block, >= 1.
        num_blocks: residual blocks, >= 0 (>= 1 for a condition on a spatial grid).
        downsample: a power of two for all axes or one for each; must divide the sizes.
        latents: None for a spatial grid, else how many latent vectors, >= 1.
        latent_dim: ``out_dim`` where ``latents`` is given, >= 1.

    Raises:
        ValueError: if a size is not a multiple of its factor, or an argument is out of range.

    Example:
        >>> encoder = ConvEncoder((3, 32, 32), hidden=16, residual=8)
        >>> encoder.out_dim, encoder.grid
        (16, (8, 8))
        >>> ConvEncoder((3, 32, 32), hidden=16, residual=8, latents=12).grid
        (12,)
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        cond_dim: int = 0,
        hidden: int = 128,
        residual: int = 32,
        num_blocks: int = 2,
        downsample: int | Sequence[int] = 4,
        latents: int | None = None,
        latent_dim: int = 64,
    ) -> None:
        super().__init__()
        num_axes = len(shape) - 1
        strides = _strides(downsample, num_axes)
        base = divide(shape, per_axis(downsample, num_axes), what="downsample")
        _check_sizes(
            cond_dim=cond_dim,
            hidden=hidden,
            residual=residual,
            num_blocks=num_blocks,
            latent_dim=latent_dim,
            latents=1 if latents is None else latents,
        )
        _check_condition(cond_dim, num_blocks, is_spatial=latents is None)
        self.shape = tuple(shape)
        dims = [shape[0], *_widths(hidden, len(strides))]
        self.down = nn.ModuleList(
            keep_scale(conv(dims[i], dims[i + 1], _kernel(stride), stride=stride, padding=1))
            for i, stride in enumerate(strides)
        )
        self.middle = keep_scale(conv(dims[-1], hidden, (3,) * num_axes, padding=1))
        self.blocks = nn.ModuleList(
            ResidualBlock(num_axes, hidden, residual=residual, cond_dim=cond_dim)
            for _ in range(num_blocks)
        )
        self.grid, self.out_dim, self.flat = base, hidden, None
        if latents is not None:
            self.grid, self.out_dim = () if latents == 1 else (latents,), latent_dim
            width = hidden * num_positions(base) + cond_dim
            self.flat = nn.Linear(width, latents * latent_dim)

    def forward(
        self, x: Float[Tensor, "B C *S"], cond: Float[Tensor, "B F"] | None = None
    ) -> Float[Tensor, "B D *G"]:
        """Encode samples to features on the grid.

        Raises:
            ValueError: if the samples have another shape.
        """
        check_shape("x", x, self.shape)
        h = x
        for layer in self.down:
            h = layer(h).relu_()
        h = self.middle(h)
        for block in self.blocks:
            h = block(h, cond)
        h = h.relu()
        if self.flat is None:
            return h
        h = h.flatten(1) if cond is None else torch.cat([h.flatten(1), cond.to(h.dtype)], dim=-1)
        return self.flat(h).view(len(x), self.out_dim, *self.grid)


class ConvDecoder(nn.Module):
    """Refine by residual blocks, then double the sizes by transposed convolutions.

    Paper: VQ-VAE, van den Oord et al. 2017, arXiv:1711.00937, section 4.1. Ours differs: as
    :class:`ConvEncoder`, whose mirror it is.

    Shapes: z [B in_dim *grid] -> [B C_out *S]. A grid of S / downsample is taken as spatial;
    ``()`` and ``(n,)`` are vectors, mapped linearly with the condition to that grid first. (On
    one axis with n = S / downsample both are the same shape, and it is taken as spatial.)

    Args:
        shape: ``(C_out, *S)`` of the result, 1 to 3 spatial axes.
        grid: the latent grid.
        cond_dim: width of the condition vector, 0 for none.
        hidden: channels, >= 2; ``in_dim`` of a spatial grid.
        residual: channels inside a residual block, >= 1.
        num_blocks: residual blocks, >= 0 (>= 1 for a condition on a spatial grid).
        downsample: a power of two for all axes or one for each; must divide the sizes.
        latent_dim: ``in_dim`` where the grid is not spatial, >= 1.

    Raises:
        ValueError: if a size is not a multiple of its factor, the grid does not fit, or an
            argument is out of range.

    Example:
        >>> decoder = ConvDecoder((3, 32, 32), grid=(8, 8), hidden=16, residual=8)
        >>> decoder(torch.zeros(2, decoder.in_dim, 8, 8)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        grid: tuple[int, ...],
        cond_dim: int = 0,
        hidden: int = 128,
        residual: int = 32,
        num_blocks: int = 2,
        downsample: int | Sequence[int] = 4,
        latent_dim: int = 64,
    ) -> None:
        super().__init__()
        num_axes = len(shape) - 1
        strides = _strides(downsample, num_axes)[::-1]
        base = divide(shape, per_axis(downsample, num_axes), what="downsample")
        _check_sizes(
            cond_dim=cond_dim,
            hidden=hidden,
            residual=residual,
            num_blocks=num_blocks,
            latent_dim=latent_dim,
        )
        if tuple(grid) != base and len(grid) > 1:
            raise ValueError(
                f"grid={tuple(grid)}: must be {base} (the sizes {tuple(shape[1:])} by downsample="
                f"{downsample}), or () or (n,) for latent vectors"
            )
        _check_condition(cond_dim, num_blocks, is_spatial=tuple(grid) == base)
        self.grid, self.base, self.hidden = tuple(grid), base, hidden
        self.in_dim, self.flat = hidden, None
        if self.grid != base:
            self.in_dim = latent_dim
            width = latent_dim * num_positions(grid) + cond_dim
            self.flat = nn.Linear(width, hidden * num_positions(base))
        self.middle = keep_scale(conv(hidden, hidden, (3,) * num_axes, padding=1))
        self.blocks = nn.ModuleList(
            ResidualBlock(num_axes, hidden, residual=residual, cond_dim=cond_dim)
            for _ in range(num_blocks)
        )
        dims = [*_widths(hidden, len(strides))[::-1], shape[0]]
        self.up = nn.ModuleList(
            conv_transpose(dims[i], dims[i + 1], _kernel(stride), stride=stride, padding=1)
            for i, stride in enumerate(strides)
        )
        for layer in self.up[:-1]:
            keep_scale(layer)
        self.last = None if strides else conv(hidden, shape[0], (3,) * num_axes, padding=1)

    def forward(
        self, z: Float[Tensor, "B D *G"], cond: Float[Tensor, "B F"] | None = None
    ) -> Float[Tensor, "B P *S"]:
        """Decode latents to the parameters of the likelihood.

        Raises:
            ValueError: if the latents have another shape.
        """
        check_shape("z", z, (self.in_dim, *self.grid))
        h = z
        if self.flat is not None:
            h = h.flatten(1)
            h = h if cond is None else torch.cat([h, cond.to(h.dtype)], dim=-1)
            h = self.flat(h).view(len(z), self.hidden, *self.base)
        h = self.middle(h)
        for block in self.blocks:
            h = block(h, cond)
        h = h.relu()
        for index, layer in enumerate(self.up):
            h = layer(h if index == 0 else h.relu_())
        return h if self.last is None else self.last(h)
