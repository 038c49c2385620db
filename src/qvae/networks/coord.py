"""Networks that compute each pixel from its place: for pictures of a few things that move.

A convolution is the same everywhere, so a thing that turns with a condition (the hand of a clock)
must be learned anew at every angle. Here a pixel knows where it is, in several frames: a still
one, and two turned by each angle that the condition holds, one to each side: which of them things
follow is left to learn. Its features are ramps ``relu(a x + b y + c)`` in those frames, so what
was learned at one angle holds at all of them. It is a strong assumption, near to how a renderer
thinks; docs/clock.md says what it gives away.

Pixels lie in blocks, channels last ``[B, blocks, pixels of a block, C]``: a block's pixels are then
one vector for a linear layer, and nothing has to be copied into another order.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from qvae.networks.layers import check_shape, num_positions

__all__ = ["CoordDecoder", "CoordEncoder"]

Turns = Sequence[tuple[int, int]]
"""Columns of the condition's features that are the sine and the cosine of an angle."""

_STYLE = 256
_CANVAS = 8


def _check(shape: tuple[int, ...], multiple: int, **sizes: int) -> None:
    if len(shape) != 3 or any(size % multiple for size in shape[1:]):
        raise ValueError(
            f"shape={tuple(shape)}: coord networks take pictures (C, H, W) with H and W multiples "
            f"of {multiple}; images are resized by --data.size"
        )
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size}: must be at least 1")


def _blocks(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B blocks 4 C"]:
    """Cut into blocks of 2x2."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    x = x.unflatten(3, (width, 2)).unflatten(2, (height, 2))
    return x.permute(0, 2, 4, 3, 5, 1).reshape(len(x), height * width, 4, -1)


def _picture(blocks: Float[Tensor, "B C blocks 4"], height: int) -> Float[Tensor, "B C H W"]:
    """Undo :func:`_blocks`, channels first."""
    x = blocks.unflatten(3, (2, 2)).unflatten(2, (height // 2, -1))
    return x.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)


def _places(height: int, width: int) -> Float[Tensor, "HW 3"]:
    """Return x, y in [-1, 1] and 1 for each pixel, in the order of the blocks."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return _blocks(torch.stack([x, y, torch.ones_like(x)])[None]).view(-1, 3)


def _ramps(
    slopes: Float[Tensor, "B ramps 3"], places: Float[Tensor, "B HW 2"], dtype: torch.dtype
) -> Float[Tensor, "B HW ramps"]:
    """Return ``relu(a x + b y + c)``.

    Computed in float32, as 8 bits of mantissa in x would move a hand, and kept in ``dtype``:
    where a ramp starts, it is small, and small numbers are exact enough.
    """
    with torch.autocast(places.device.type, enabled=False):
        slopes = slopes.float().transpose(1, 2)
        return torch.baddbmm(slopes[:, 2:], places, slopes[:, :2]).to(dtype).relu()


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Return the type that a matrix product of ``x`` would have."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _num_frames(turns: Turns) -> int:
    """Count the frames: a still one, and two for each angle."""
    return 1 + 2 * len(turns)


def _turned(
    vectors: Float[Tensor, "_B frames n 2"], cond: Tensor | None, turns: Turns
) -> Float[Tensor, "_C frames*n 2"]:
    """Turn each frame's vectors by its angle; one set of them, or one for each sample."""
    if cond is None:
        return vectors.flatten(1, 2)
    frames = [vectors[:, 0].expand(len(cond), -1, -1)]
    senses = [(pair, sense) for pair in turns for sense in (1, -1)]
    for frame, ((sine, cosine), sense) in enumerate(senses, start=1):
        x, y = vectors[:, frame].unbind(-1)
        sin, cos = sense * cond[:, sine, None].float(), cond[:, cosine, None].float()
        frames.append(torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1))
    return torch.cat(frames, dim=1)


def _scattered(frames: int, num: int) -> Float[Tensor, "frames num 2"]:
    """Draw places evenly in radius and angle: dense in the middle, where things turn."""
    radius, angle = torch.rand(frames, num), 2 * math.pi * torch.rand(frames, num)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


class _Slopes(nn.Module):
    """The ramps' slopes ``[B, (1 + 2 * turns) * lines, 3]``: ``lines`` in each frame.

    The slopes are learned in their own frame, where conditions other than the angles may move
    them; then the frame is turned.
    """

    def __init__(self, lines: int, *, cond_dim: int, turns: Turns) -> None:
        super().__init__()
        self.turns = tuple(turns)
        self.bias = nn.Parameter(torch.randn(_num_frames(turns), lines, 3))
        angles = {column for pair in self.turns for column in pair}
        others = [column for column in range(cond_dim) if column not in angles]
        self.others = others
        self.told = nn.Linear(len(others), self.bias.numel(), bias=False) if others else None

    def forward(self, cond: Tensor | None, own: Tensor) -> Float[Tensor, "B ramps 3"]:
        """Return the slopes; ``own [B or 1, ramps * 3]`` are those of the sample itself."""
        slopes = self.bias + own.float().unflatten(1, self.bias.shape)
        if cond is not None and self.told is not None:
            moved = self.told(cond[:, self.others].float()).float()
            slopes = slopes + moved.unflatten(1, self.bias.shape)
        offsets = slopes[..., 2:].flatten(1, 2)
        directions = _turned(slopes[..., :2], cond, self.turns)
        return torch.cat([directions, offsets.expand(len(directions), -1, -1)], dim=-1)


class CoordEncoder(nn.Module):
    """Read a picture's style, knowing the condition: ``latents`` vectors, no grid.

    Two paths: convolutions over patches and ramps see shapes; spots, a small window each at a
    learned place of a frame, pick up colours and hand them to the latents as they are. A thing
    that turns lies under the same spot of its frame at every angle: its colour is there from the
    first step, while a network that must first find it learns to draw it grey.

    Shapes: ``x [B, C, H, W]``, ``cond [B, cond_dim]`` -> ``[B, latent_dim, latents]``.

    Args:
        shape: of one picture, H and W multiples of 16.
        cond_dim: width of the condition's features, 0 for none.
        hidden: channels of the convolutions, >= 1.
        turns: columns of ``cond`` that are the sine and cosine of an angle.
        lines: number of ramps in each frame, >= 1.
        spots: number of spots in each frame, >= 1.
        latents: number of latent vectors, >= 1.
        latent_dim: width of each, >= 1.

    Raises:
        ValueError: for another kind of shape or a size below 1.

    Example:
        >>> CoordEncoder((3, 32, 32), latents=8)(torch.zeros(2, 3, 32, 32), None).shape
        torch.Size([2, 1, 8])
    """

    places: Tensor
    at_rest: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        cond_dim: int = 0,
        hidden: int = 96,
        turns: Turns = (),
        lines: int = 8,
        spots: int = 96,
        latents: int = 48,
        latent_dim: int = 1,
    ) -> None:
        super().__init__()
        _check(shape, 16, hidden=hidden, lines=lines, spots=spots, latents=latents)
        _check(shape, 16, latent_dim=latent_dim)
        channels, height, width = shape
        self.shape, self.grid, self.out_dim = tuple(shape), (latents,), latent_dim
        self.slopes = _Slopes(lines, cond_dim=cond_dim, turns=turns)
        self.register_buffer("at_rest", torch.zeros(1, self.slopes.bias.numel()), persistent=False)
        places = _places(height // 2, width // 2)[:, :2]
        self.register_buffer("places", places, persistent=False)
        features = 4 * channels + lines * _num_frames(turns)
        self.turns = tuple(turns)
        self.spots = nn.Parameter(_scattered(_num_frames(turns), spots))
        self.patches = nn.Linear(4 * features, hidden)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.down = nn.Conv2d(hidden, 128, 4, stride=2, padding=1)
        self.down_again = nn.Conv2d(128, 128, 3, stride=2, padding=1)
        colours = _num_frames(turns) * spots * channels
        self.join = nn.Linear(128 * (height // 16) * (width // 16) + colours, _STYLE)
        self.out = nn.Linear(_STYLE, latents * latent_dim)
        self.direct = nn.Linear(colours, latents * latent_dim, bias=False)
        # Latents of unit size from the start: a quantizer then uses all its values at once.
        nn.init.normal_(self.out.weight, std=1.5 / _STYLE**0.5)

    def forward(
        self, x: Float[Tensor, "B C H W"], cond: Float[Tensor, "B F"] | None = None
    ) -> Float[Tensor, "B D latents"]:
        """Return the latent vectors."""
        check_shape("x", x, self.shape)
        pixels = _blocks(F.pixel_unshuffle(2 * x - 1, 2))
        slopes = self.slopes(cond, self.at_rest).expand(len(x), -1, -1)
        ramps = _ramps(slopes, self.places.expand(len(x), -1, -1), _compute_dtype(x))
        ramps = ramps.view(*pixels.shape[:3], -1)
        h = torch.cat([pixels.to(ramps.dtype), ramps], dim=-1)
        colours = self._colours(x, cond)
        style = self.join(torch.cat([self._shapes(h), colours], dim=1)).relu()
        out = self.out(style) + self.direct(colours)
        return out.view(len(x), self.out_dim, *self.grid)

    def _shapes(self, h: Float[Tensor, "B blocks 4 _F"]) -> Float[Tensor, "B F"]:
        h = self.patches(h.flatten(2)).relu()
        h = h.unflatten(1, (self.shape[1] // 4, -1)).permute(0, 3, 1, 2)  # channels last, no copy
        h = h + self.mix(h).relu()
        return self.down_again(self.down(h).relu()).relu().flatten(1)

    def _colours(self, x: Float[Tensor, "B C H W"], cond: Tensor | None) -> Float[Tensor, "B F"]:
        spots = _turned(self.spots[None].float(), cond, self.turns).expand(len(x), -1, -1)
        with torch.autocast(x.device.type, enabled=False):
            blurred = F.avg_pool2d(2 * x.float() - 1, 3, stride=1, padding=1)
            return F.grid_sample(blurred, spots[:, None], align_corners=True).flatten(1)


class CoordDecoder(nn.Module):
    """Draw a picture from its style and the condition, each pixel from its place.

    The style moves, scales and shears the picture. In it lie the ramps of the still and the
    turned frames, and a learned canvas for what does not turn. A small network of one pixel
    mixes them into weights of a few colours, which come from the style, and a faint rest.

    Shapes: ``z [B, latent_dim, *grid]``, ``cond [B, cond_dim]`` -> ``[B, C_out, H, W]``.

    Args:
        shape: of the parameters of one picture, H and W even.
        grid: of the latents.
        cond_dim: width of the condition's features, 0 for none.
        hidden: width of the pixel network, >= 1.
        turns: columns of ``cond`` that are the sine and cosine of an angle.
        lines: number of ramps in each frame, >= 1.
        colours: number of colours that a picture is mixed from, >= 1.
        num_blocks: layers of the pixel network, >= 1.
        latent_dim: width of a latent, >= 1.

    Raises:
        ValueError: for another kind of shape or a size below 1.

    Example:
        >>> CoordDecoder((3, 32, 32), grid=(8,))(torch.zeros(2, 1, 8), None).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        grid: tuple[int, ...],
        cond_dim: int = 0,
        hidden: int = 96,
        turns: Turns = (),
        lines: int = 8,
        colours: int = 12,
        num_blocks: int = 3,
        latent_dim: int = 1,
    ) -> None:
        super().__init__()
        _check(shape, 2, hidden=hidden, lines=lines, colours=colours, num_blocks=num_blocks)
        _check(shape, 2, latent_dim=latent_dim)
        self.shape, self.in_dim, self.colours = tuple(shape), latent_dim, colours
        size = num_positions(grid) * latent_dim
        self.style = nn.Sequential(
            nn.Linear(size, _STYLE), nn.ReLU(), nn.Linear(_STYLE, _STYLE), nn.ReLU()
        )
        self.frame = nn.Linear(_STYLE, 6)
        nn.init.zeros_(self.frame.weight)
        nn.init.zeros_(self.frame.bias)
        self.palette = nn.Linear(_STYLE, colours * shape[0])
        self.slopes = _Slopes(lines, cond_dim=cond_dim, turns=turns)
        self.style_slopes = nn.Linear(_STYLE, self.slopes.bias.numel())
        self.register_buffer("places", _places(*shape[1:]), persistent=False)
        self.canvas = nn.Parameter(0.1 * torch.randn(1, _CANVAS, *shape[1:]))
        self.mix_ramps = nn.Linear(4 * lines * _num_frames(turns), hidden)
        self.mix_canvas = nn.Linear(4 * _CANVAS, hidden, bias=False)
        self.mix = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(num_blocks))
        self.films = nn.ModuleList(nn.Linear(_STYLE, 2 * hidden) for _ in range(num_blocks + 1))
        self.head = nn.Linear(hidden, 4 * (colours + shape[0]))

    def forward(
        self, z: Float[Tensor, "B D *G"], cond: Float[Tensor, "B F"] | None = None
    ) -> Float[Tensor, "B C H W"]:
        """Return the parameters of each pixel."""
        style = self.style(z.flatten(1))
        ramps, canvas = self._scene(style, cond)
        h = self._styled(0, self.mix_ramps(ramps) + self.mix_canvas(canvas), style)
        for block, mix in enumerate(self.mix, start=1):
            h = h + self._styled(block, mix(h), style)
        # Colours first from here on: a softmax over a short last axis is slow.
        out = self.head(h).unflatten(-1, (4, -1)).flatten(1, 2).transpose(1, 2).float()
        weights, rest = out.split([self.colours, self.shape[0]], dim=1)
        palette = self.palette(style).float().view(len(z), self.shape[0], self.colours)
        with torch.autocast(z.device.type, enabled=False):
            pixels = torch.baddbmm(0.5 + 0.1 * rest, palette, weights.softmax(dim=1))
        return _picture(pixels.unflatten(2, (-1, 4)), self.shape[1])

    def _styled(self, block: int, h: Float[Tensor, "B blocks F"], style: Tensor) -> Tensor:
        """Scale and shift each channel as the style says (FiLM, arXiv:1709.07871), then ReLU."""
        scale, shift = self.films[block](style)[:, None].chunk(2, dim=-1)
        return torch.addcmul(shift, h, 1 + scale).relu()

    def _scene(self, style: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ramps and canvas in the sample's own frame, ``[B, blocks, F]`` each."""
        num = len(style)
        at_rest = torch.eye(3, 2, device=style.device)
        moved = at_rest + 0.3 * self.frame(style).float().view(-1, 3, 2)
        slopes = self.slopes(cond, self.style_slopes(style))
        with torch.autocast(style.device.type, enabled=False):
            places = self.places @ moved
            canvas = F.grid_sample(
                self.canvas.expand(num, -1, -1, -1),
                places.unflatten(1, (-1, 4)),
                padding_mode="border",
                align_corners=True,
            )
        ramps = _ramps(slopes, places, style.dtype).unflatten(1, (-1, 4)).flatten(2)
        return ramps, canvas.permute(0, 2, 3, 1).flatten(2).to(style.dtype)
