"""Code a sample by patches that do not overlap: linearly, or with a small transformer."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qvae.networks.layers import (
    TransformerBlock,
    check_shape,
    conv,
    conv_transpose,
    divide,
    num_positions,
    per_axis,
)

__all__ = ["PatchDecoder", "PatchEncoder"]


class _Mixer(nn.Module):
    """Add the condition to every cell; with layers, add positions and let the cells mix."""

    def __init__(
        self, grid: Sequence[int], dim: int, *, cond_dim: int, num_layers: int, num_heads: int
    ) -> None:
        super().__init__()
        for name, value, low in (
            ("hidden", dim, 1),
            ("cond_dim", cond_dim, 0),
            ("num_layers", num_layers, 0),
        ):
            if value < low:
                raise ValueError(f"{name}={value}: must be >= {low}")
        self.cond = nn.Linear(cond_dim, dim, bias=False) if cond_dim else None
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, num_heads=num_heads) for _ in range(num_layers)
        )
        self.positions, self.norm = None, None
        if num_layers:
            self.positions = nn.Parameter(0.02 * torch.randn(num_positions(grid), dim))
            self.norm = nn.LayerNorm(dim)

    def forward(
        self, h: Float[Tensor, "B D *G"], cond: Float[Tensor, "B F"] | None
    ) -> Float[Tensor, "B D *G"]:
        """Mix the cells."""
        if self.cond is not None:
            assert cond is not None, "a network with cond_dim > 0 is always given cond"
            told = self.cond(cond)
            h = h + told.view(*told.shape, *(1,) * (h.ndim - 2))
        if self.positions is None or self.norm is None:
            return h
        tokens = h.flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).transpose(1, 2).reshape(h.shape)


class PatchEncoder(nn.Module):
    """Map every patch to one vector; with layers, let the patches see each other.

    Paper: ViT, Dosovitskiy et al. 2020, arXiv:2010.11929, eq. 1-4. Ours differs: no class token,
    1 to 3 axes, the condition is added to every patch; with ``num_layers=0`` there is only the
    linear map, the same for every patch, and no positions.

    Shapes: x [B C *S] -> [B hidden *grid], grid = S / patch.

    Args:
        shape: ``(C, *S)`` of one sample, 1 to 3 spatial axes.
        cond_dim: width of the condition vector, 0 for none.
        patch: size of a patch for all axes or one for each; must divide the sizes.
        hidden: width of a patch's vector, >= 1; this is ``out_dim``.
        num_layers: transformer layers, >= 0; 0 means linear.
        num_heads: attention heads, must divide ``hidden`` where there are layers.

    Raises:
        ValueError: if a size is not a multiple of the patch, or an argument is out of range.

    Example:
        >>> encoder = PatchEncoder((1, 28, 28), patch=4, hidden=32)
        >>> encoder.out_dim, encoder.grid
        (32, (7, 7))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        cond_dim: int = 0,
        patch: int | Sequence[int] = 4,
        hidden: int = 128,
        num_layers: int = 0,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        sizes = per_axis(patch, len(shape) - 1)
        self.shape, self.out_dim = tuple(shape), hidden
        self.grid = divide(shape, sizes, what="patch")
        self.mixer = _Mixer(
            self.grid, hidden, cond_dim=cond_dim, num_layers=num_layers, num_heads=num_heads
        )
        self.embed = conv(shape[0], hidden, sizes, stride=sizes)

    def forward(
        self, x: Float[Tensor, "B C *S"], cond: Float[Tensor, "B F"] | None = None
    ) -> Float[Tensor, "B D *G"]:
        """Encode samples to one vector a patch.

        Raises:
            ValueError: if the samples have another shape.
        """
        check_shape("x", x, self.shape)
        return self.mixer(self.embed(x), cond)


class PatchDecoder(nn.Module):
    """Map every cell's vector to one patch; with layers, let the cells see each other first.

    Paper: as :class:`PatchEncoder`, whose mirror it is.

    Shapes: z [B hidden *grid] -> [B C_out *S], S = grid * patch.

    Args:
        shape: ``(C_out, *S)`` of the result, 1 to 3 spatial axes.
        grid: the latent grid, which must be S / patch.
        cond_dim: width of the condition vector, 0 for none.
        patch: size of a patch for all axes or one for each; must divide the sizes.
        hidden: width of a cell's vector, >= 1; this is ``in_dim``.
        num_layers: transformer layers, >= 0; 0 means linear.
        num_heads: attention heads, must divide ``hidden`` where there are layers.

    Raises:
        ValueError: if a size is not a multiple of the patch, the grid is not that of the patches,
            or an argument is out of range.

    Example:
        >>> decoder = PatchDecoder((1, 28, 28), grid=(7, 7), patch=4, hidden=32)
        >>> decoder(torch.zeros(2, decoder.in_dim, 7, 7)).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        grid: tuple[int, ...],
        cond_dim: int = 0,
        patch: int | Sequence[int] = 4,
        hidden: int = 128,
        num_layers: int = 0,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        sizes = per_axis(patch, len(shape) - 1)
        self.grid, self.in_dim = divide(shape, sizes, what="patch"), hidden
        if tuple(grid) != self.grid:
            raise ValueError(
                f"grid={tuple(grid)}: must be {self.grid}, the sizes {tuple(shape[1:])} by "
                f"patch={patch}"
            )
        self.mixer = _Mixer(
            self.grid, hidden, cond_dim=cond_dim, num_layers=num_layers, num_heads=num_heads
        )
        self.paint = conv_transpose(hidden, shape[0], sizes, stride=sizes)

    def forward(
        self, z: Float[Tensor, "B D *G"], cond: Float[Tensor, "B F"] | None = None
    ) -> Float[Tensor, "B P *S"]:
        """Decode one vector a cell to the parameters of the likelihood.

        Raises:
            ValueError: if the latents have another shape.
        """
        check_shape("z", z, (self.in_dim, *self.grid))
        return self.paint(self.mixer(z, cond))
