"""Pieces that the networks share; one code for 1, 2 and 3 spatial axes."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "Attention",
    "FiLM",
    "ResidualBlock",
    "TransformerBlock",
    "check_shape",
    "conv",
    "conv_transpose",
    "divide",
    "keep_scale",
    "num_positions",
    "per_axis",
]

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _pick(table: Sequence[type[nn.Module]], num_axes: int) -> type[nn.Module]:
    if not 1 <= num_axes <= len(table):
        raise ValueError(f"shape has {num_axes} spatial axes: a convolution takes 1, 2 or 3")
    return table[num_axes - 1]


def conv(
    in_dim: int,
    out_dim: int,
    kernel: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
) -> nn.Module:
    """Make a convolution with as many axes as the kernel, drawn as PyTorch draws it.

    Example:
        >>> conv(3, 8, (4, 4), stride=2, padding=1)
        Conv2d(3, 8, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1))
    """
    make = _pick(_CONV, len(kernel))
    stride, padding = per_axis(stride, len(kernel)), per_axis(padding, len(kernel))
    return make(in_dim, out_dim, tuple(kernel), stride=stride, padding=padding)


def conv_transpose(
    in_dim: int,
    out_dim: int,
    kernel: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
) -> nn.Module:
    """Make a transposed convolution with as many axes as the kernel.

    PyTorch draws its weights for the fan-in of the ordinary convolution; here they are drawn for
    what really enters an output, ``in_dim * prod(kernel / stride)``.
    """
    make = _pick(_CONV_TRANSPOSE, len(kernel))
    stride, padding = per_axis(stride, len(kernel)), per_axis(padding, len(kernel))
    layer = make(in_dim, out_dim, tuple(kernel), stride=stride, padding=padding)
    bound = _fan_in(layer) ** -0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound)
    return layer


def keep_scale(layer: nn.Module) -> nn.Module:
    """Draw a convolution's weights anew, so that after a ReLU the features are as large as before.

    Paper: He et al. 2015, arXiv:1502.01852, equation 10: variance ``2 / fan_in``, no bias. As
    PyTorch draws them a sixth of that, features shrink to a third at every layer, and what six
    layers hand to a quantizer are differences of a hundredth: codes hardly tell pictures apart,
    and the first thousand steps go by until they do.

    Example:
        >>> layer = keep_scale(conv(64, 64, (3, 3), padding=1))
        >>> bool(0.8 < layer(torch.randn(9, 64, 8, 8).relu()).std() < 1.2)
        True
    """
    weight, bias = layer.parameters()
    nn.init.normal_(weight, std=math.sqrt(2 / _fan_in(layer)))
    nn.init.zeros_(bias)
    return layer


def _fan_in(layer: nn.Module) -> float:
    """How many numbers enter one of a convolution's outputs."""
    assert isinstance(layer, (*_CONV, *_CONV_TRANSPOSE))
    every = math.prod(layer.stride) if isinstance(layer, _CONV_TRANSPOSE) else 1
    return layer.in_channels * math.prod(layer.kernel_size) / every


def per_axis(value: int | Sequence[int], num_axes: int) -> tuple[int, ...]:
    """Spread one number over the axes, or take one number per axis.

    Raises:
        ValueError: if there are as many numbers as neither 1 nor the axes.

    Example:
        >>> per_axis(2, 3), per_axis((1, 2), 2)
        ((2, 2, 2), (1, 2))
    """
    values = (value,) * num_axes if isinstance(value, int) else tuple(value)
    if len(values) != num_axes:
        raise ValueError(f"{list(values)} has {len(values)} numbers for {num_axes} spatial axes")
    return values


def divide(shape: Sequence[int], factors: Sequence[int], *, what: str) -> tuple[int, ...]:
    """Divide the spatial sizes of ``(C, *S)`` by one factor each.

    Args:
        shape: channels, then spatial sizes.
        factors: one per spatial axis, each >= 1.
        what: the name of the argument that holds the factors, for the error.

    Raises:
        ValueError: names the axis whose size is not a multiple, the size and the factor.

    Example:
        >>> divide((3, 32, 64), (4, 4), what="downsample")
        (8, 16)
    """
    for axis, (size, factor) in enumerate(zip(shape[1:], factors, strict=True)):
        if factor < 1:
            raise ValueError(f"{what}={factor} on spatial axis {axis}: must be >= 1")
        if size % factor:
            raise ValueError(
                f"spatial axis {axis} has size {size}: it must be a multiple of {what}={factor}"
            )
    return tuple(size // factor for size, factor in zip(shape[1:], factors, strict=True))


def num_positions(grid: Sequence[int]) -> int:
    """Count the cells of a grid; the empty grid has one.

    Example:
        >>> num_positions((8, 8)), num_positions(())
        (64, 1)
    """
    return math.prod(grid)


def check_shape(name: str, x: Tensor, shape: Sequence[int]) -> None:
    """Refuse a batch whose samples have another shape.

    Raises:
        ValueError: names both shapes.
    """
    if tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(
            f"{name} has samples of shape {tuple(x.shape[1:])}: this network takes {tuple(shape)}"
        )


class FiLM(nn.Module):
    """Scale and shift every channel by what the condition says.

    Paper: FiLM, Perez et al. 2018, arXiv:1709.07871, eq. 2. Ours differs: the scale is 1 + gamma.

    Shapes: h [B D *S], cond [B cond_dim] -> [B D *S].
    """

    def __init__(self, dim: int, *, cond_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(cond_dim, 2 * dim)

    def forward(
        self, h: Float[Tensor, "B D *S"], cond: Float[Tensor, "B F"]
    ) -> Float[Tensor, "B D *S"]:
        """Modulate the channels."""
        modulation = self.linear(cond)
        gamma, beta = modulation.view(*modulation.shape, *(1,) * (h.ndim - 2)).chunk(2, dim=1)
        return torch.addcmul(h + beta, h, gamma)


class ResidualBlock(nn.Module):
    """Add ReLU, 3-wide convolution, ReLU, 1-wide convolution to the input; no normalisation.

    Paper: VQ-VAE, van den Oord et al. 2017, arXiv:1711.00937, section 4.1. Ours differs: FiLM
    after the first convolution where there is a condition.

    Shapes: [B dim *S] -> [B dim *S].
    """

    def __init__(self, num_axes: int, dim: int, *, residual: int, cond_dim: int = 0) -> None:
        super().__init__()
        self.spread = keep_scale(conv(dim, residual, (3,) * num_axes, padding=1))
        self.film = FiLM(residual, cond_dim=cond_dim) if cond_dim else None
        self.mix = conv(residual, dim, (1,) * num_axes)

    def forward(
        self, x: Float[Tensor, "B D *S"], cond: Float[Tensor, "B F"] | None = None
    ) -> Float[Tensor, "B D *S"]:
        """Refine the features."""
        h = self.spread(x.relu())
        if self.film is not None:
            assert cond is not None, "a network with cond_dim > 0 is always given cond"
            h = self.film(h, cond)
        return x + self.mix(h.relu_())


class Attention(nn.Module):
    """Let every position look at every other: plain softmax(Q K^T / sqrt d) V.

    Paper: Vaswani et al. 2017, arXiv:1706.03762, eq. 1. Written as two matrix products: on CPU in
    bfloat16 the backward pass of the fused kernel is several times slower.

    Shapes: [B N dim] -> [B N dim].
    """

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads}: must divide the width {dim}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Mix the positions."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.out((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Refine tokens by attention and a two-layer network, each after a LayerNorm.

    Paper: pre-norm transformer, Xiong et al. 2020, arXiv:2002.04745, figure 1b.

    Shapes: [B N dim] -> [B N dim].
    """

    def __init__(self, dim: int, *, num_heads: int, expansion: int = 4) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads=num_heads)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim)
        )

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Refine the tokens."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))
