"""Networks that compute each pixel from its place: for pictures of a few things that move.

A convolution is the same everywhere, so a thing that turns with a condition (the hand of a clock)
must be learned anew at every angle. Here a pixel knows where it is, in several frames: a still
one, and two turned by each angle that the condition holds, one to each side: which of them things
follow is left to learn. Its features are ramps in those frames, see :mod:`qvae.networks.frames`.
It is a strong assumption, near to how a renderer thinks; docs/clock.md says what it gives away.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from qvae.networks import frames
from qvae.networks.frames import Slopes, Turns
from qvae.networks.layers import check_shape, num_positions

__all__ = ["CoordDecoder", "CoordEncoder"]

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


class CoordEncoder(nn.Module):
    """Read a picture's style, knowing the condition: ``latents`` vectors, no grid.

    Two paths: convolutions over patches and ramps see shapes; spots, a small window each at a
    learned place of a frame, pick up colours and hand them to the latents as they are. A thing
    that turns lies under the same spot of its frame at every angle, so its colour is there from
    the first step. Yet spots wander off, and latents find other uses, before the decoder has
    learned to read a small thing's colour: it then stays grey for good. So one colour of each
    turned frame is kept: the mean over a few fixed places, upright and near the middle, where what
    points along the frame lies. It goes straight into latents of its own, which learn nothing.

    Shapes: ``x [B, C, H, W]``, ``cond [B, cond_dim]`` -> ``[B, latent_dim, latents]``.

    Args:
        shape: of one picture, H and W multiples of 16.
        cond_dim: width of the condition's features, 0 for none.
        hidden: channels of the convolutions, >= 1.
        turns: columns of ``cond`` that are the sine and cosine of an angle.
        lines: number of ramps in each frame, >= 1.
        spots: number of spots in each frame, >= 1.
        latents: number of latent vectors, >= 1; with their width more than the kept colours,
            C for each turned frame.
        latent_dim: width of each, >= 1.

    Raises:
        ValueError: for another kind of shape, a size below 1 or too few latents.

    Example:
        >>> CoordEncoder((3, 32, 32), latents=8)(torch.zeros(2, 3, 32, 32), None).shape
        torch.Size([2, 1, 8])
    """

    places: Tensor
    at_rest: Tensor
    upright: Tensor

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
        self.slopes = Slopes(lines, cond_dim=cond_dim, turns=turns)
        self.register_buffer("at_rest", torch.zeros(1, self.slopes.bias.numel()), persistent=False)
        places = frames.places_of(height // 2, width // 2)[:, :2]
        self.register_buffer("places", places, persistent=False)
        features = 4 * channels + lines * frames.num_frames(turns)
        self.turns = tuple(turns)
        self.spots = nn.Parameter(frames.scattered(frames.num_frames(turns), spots))
        self.patches = nn.Linear(4 * features, hidden)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.down = nn.Conv2d(hidden, 128, 4, stride=2, padding=1)
        self.down_again = nn.Conv2d(128, 128, 3, stride=2, padding=1)
        colours = frames.num_frames(turns) * spots * channels
        self.join = nn.Linear(128 * (height // 16) * (width // 16) + colours, _STYLE)
        free = latents * latent_dim - (frames.num_frames(turns) - 1) * channels
        if free < 1:
            raise ValueError(
                f"latents={latents}: with latent_dim={latent_dim}, must hold more than the "
                f"{latents * latent_dim - free} numbers of the colours that are kept"
            )
        self.register_buffer("upright", frames.upright(frames.num_frames(turns)), persistent=False)
        self.out = nn.Linear(_STYLE, free)
        self.direct = nn.Linear(colours, free, bias=False)
        # Latents of unit size from the start: a quantizer then uses all its values at once.
        nn.init.normal_(self.out.weight, std=1.5 / _STYLE**0.5)

    def forward(
        self, x: Float[Tensor, "B C H W"], cond: Float[Tensor, "B F"] | None = None
    ) -> Float[Tensor, "B D latents"]:
        """Return the latent vectors."""
        check_shape("x", x, self.shape)
        pixels = frames.blocks(F.pixel_unshuffle(2 * x - 1, 2))
        slopes = self.slopes(cond, self.at_rest).expand(len(x), -1, -1)
        ramps = frames.ramps(slopes, self.places.expand(len(x), -1, -1), frames.compute_dtype(x))
        ramps = ramps.view(*pixels.shape[:3], -1)
        h = torch.cat([pixels.to(ramps.dtype), ramps], dim=-1)
        kept, colours = self._colours(x, cond)
        style = self.join(torch.cat([self._shapes(h), colours], dim=1)).relu()
        free = self.out(style) + self.direct(colours)
        return torch.cat([kept, free], dim=1).view(len(x), self.out_dim, *self.grid)

    def _shapes(self, h: Float[Tensor, "B blocks 4 _F"]) -> Float[Tensor, "B F"]:
        h = self.patches(h.flatten(2)).relu()
        h = h.unflatten(1, (self.shape[1] // 4, -1)).permute(0, 3, 1, 2)  # channels last, no copy
        h = h + self.mix(h).relu()
        return self.down_again(self.down(h).relu()).relu().flatten(1)

    def _colours(self, x: Float[Tensor, "B C H W"], cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the kept colours ``[B, turned frames * C]`` and those under the spots."""
        fixed = self.upright.shape[1]
        places = torch.cat([self.upright, self.spots.float()], dim=1)
        places = frames.turned(places[None], cond, self.turns).expand(len(x), -1, -1)
        with torch.autocast(x.device.type, enabled=False):
            blurred = F.avg_pool2d(2 * x.float() - 1, 3, stride=1, padding=1)
            seen = F.grid_sample(blurred, places[:, None], align_corners=True)
        seen = seen.view(*x.shape[:2], len(self.upright), -1)
        kept = 1.5 * seen[..., 1:, :fixed].mean(dim=-1)  # as wide as the other latents
        return kept.flatten(1), seen[..., fixed:].flatten(1)


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
        self.slopes = Slopes(lines, cond_dim=cond_dim, turns=turns)
        self.style_slopes = nn.Linear(_STYLE, self.slopes.bias.numel())
        self.register_buffer("places", frames.places_of(*shape[1:]), persistent=False)
        self.canvas = nn.Parameter(0.1 * torch.randn(1, _CANVAS, *shape[1:]))
        self.mix_ramps = nn.Linear(4 * lines * frames.num_frames(turns), hidden)
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
        return frames.picture(pixels.unflatten(2, (-1, 4)), self.shape[1])

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
        ramps = frames.ramps(slopes, places, style.dtype).unflatten(1, (-1, 4)).flatten(2)
        return ramps, canvas.permute(0, 2, 3, 1).flatten(2).to(style.dtype)
