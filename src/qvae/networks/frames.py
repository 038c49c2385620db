"""Frames in which a pixel knows its place: a still one, and two turned by each angle it is told.

What was learned in a frame at one angle holds at all of them. A frame's features are ramps
``relu(a x + b y + c)``, and places in it where colours are looked up.

Pixels lie in blocks, channels last ``[B, blocks, pixels of a block, C]``: a block's pixels are then
one vector for a linear layer, and nothing has to be copied into another order.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "Slopes",
    "Turns",
    "blocks",
    "compute_dtype",
    "num_frames",
    "picture",
    "places_of",
    "ramps",
    "scattered",
    "turned",
    "upright",
]

Turns = Sequence[tuple[int, int]]
"""Columns of the condition's features that are the sine and the cosine of an angle."""

_KEPT = (0.17, 0.2, 0.23, 0.26, 0.29)  # places upright in a turned frame, along what points there


def blocks(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B blocks 4 C"]:
    """Cut into blocks of 2x2."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    x = x.unflatten(3, (width, 2)).unflatten(2, (height, 2))
    return x.permute(0, 2, 4, 3, 5, 1).reshape(len(x), height * width, 4, -1)


def picture(blocks: Float[Tensor, "B C blocks 4"], height: int) -> Float[Tensor, "B C H W"]:
    """Undo :func:`blocks`, channels first."""
    x = blocks.unflatten(3, (2, 2)).unflatten(2, (height // 2, -1))
    return x.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)


def places_of(height: int, width: int) -> Float[Tensor, "HW 3"]:
    """Return x, y in [-1, 1] and 1 for each pixel, in the order of the blocks."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return blocks(torch.stack([x, y, torch.ones_like(x)])[None]).view(-1, 3)


def ramps(
    slopes: Float[Tensor, "B ramps 3"], places: Float[Tensor, "B HW 2"], dtype: torch.dtype
) -> Float[Tensor, "B HW ramps"]:
    """Return ``relu(a x + b y + c)``.

    Computed in float32, as 8 bits of mantissa in x would move a hand, and kept in ``dtype``:
    where a ramp starts, it is small, and small numbers are exact enough.
    """
    with torch.autocast(places.device.type, enabled=False):
        slopes = slopes.float().transpose(1, 2)
        return torch.baddbmm(slopes[:, 2:], places, slopes[:, :2]).to(dtype).relu()


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the type that a matrix product of ``x`` would have."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def num_frames(turns: Turns) -> int:
    """Count the frames: a still one, and two for each angle."""
    return 1 + 2 * len(turns)


def turned(
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


def scattered(frames: int, num: int) -> Float[Tensor, "frames num 2"]:
    """Draw places evenly in radius and angle: dense in the middle, where things turn."""
    radius, angle = torch.rand(frames, num), 2 * math.pi * torch.rand(frames, num)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


def upright(frames: int) -> Float[Tensor, "frames num 2"]:
    """Return the places of each frame whose colours are kept."""
    radius = torch.tensor(_KEPT)
    return torch.stack([torch.zeros_like(radius), -radius], dim=-1).repeat(frames, 1, 1)


class Slopes(nn.Module):
    """The ramps' slopes ``[B, (1 + 2 * turns) * lines, 3]``: ``lines`` in each frame.

    The slopes are learned in their own frame, where conditions other than the angles may move
    them; then the frame is turned.
    """

    def __init__(self, lines: int, *, cond_dim: int, turns: Turns) -> None:
        super().__init__()
        self.turns = tuple(turns)
        self.bias = nn.Parameter(torch.randn(num_frames(turns), lines, 3))
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
        directions = turned(slopes[..., :2], cond, self.turns)
        return torch.cat([directions, offsets.expand(len(directions), -1, -1)], dim=-1)
