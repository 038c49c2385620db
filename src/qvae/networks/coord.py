"""A decoder that computes each pixel from its place: coordinates in a frame of the sample's own."""

import math

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["CoordDecoder"]


class CoordDecoder(nn.Module):
    def __init__(
        self,
        shape,
        *,
        grid,
        cond_dim=0,
        dim=64,
        style_dim=256,
        lines=96,
        width=64,
        num_blocks=2,
        upscale=2,
    ):
        super().__init__()
        self.shape = shape
        self.grid = grid
        n = math.prod(grid)
        self.in_dim = dim
        self.size = (shape[1] // upscale, shape[2] // upscale)
        self.upscale = upscale
        self.style = nn.Sequential(
            nn.Linear(n * dim, style_dim), nn.SiLU(), nn.Linear(style_dim, style_dim), nn.SiLU()
        )
        self.frame = nn.Linear(style_dim, 6)
        nn.init.zeros_(self.frame.weight)
        nn.init.zeros_(self.frame.bias)
        self.lines_z = nn.Linear(style_dim, lines * 3)
        self.lines_c = nn.Linear(cond_dim, lines * 3) if cond_dim else None
        ys, xs = torch.meshgrid(
            torch.linspace(-1, 1, self.size[0]), torch.linspace(-1, 1, self.size[1]), indexing="ij"
        )
        self.register_buffer(
            "xy1",
            torch.stack([xs.flatten(), ys.flatten(), torch.ones(xs.numel())], 0),
            persistent=False,
        )
        self.lines = lines
        self.canvas = nn.Parameter(torch.randn(1, width, 16, 16) * 0.1)
        self.inp = nn.Conv2d(lines, width, 1)
        self.blocks = nn.ModuleList()
        self.films = nn.ModuleList()
        ctx = style_dim + cond_dim
        for i in range(num_blocks):
            self.blocks.append(nn.Sequential(nn.Conv2d(width, width, 3, padding=1)))
            self.films.append(nn.Linear(ctx, 2 * width))
        self.film0 = nn.Linear(ctx, 2 * width)
        self.head = nn.Conv2d(width, shape[0] * upscale**2, 3, padding=1)
        self.ctx = ctx

    def forward(self, z, cond=None):
        B = len(z)
        s = self.style(z.flatten(1))
        A = torch.eye(2, 3, device=z.device) + 0.3 * self.frame(s).float().view(-1, 2, 3)
        uv = A @ self.xy1  # B,2,P
        uv1 = torch.cat([uv, torch.ones_like(uv[:, :1])], 1)
        W = self.lines_z(s).float().view(B, self.lines, 3)
        if self.lines_c is not None:
            W = W + 3 * self.lines_c(cond).float().view(B, self.lines, 3)
        f = torch.relu(W @ uv1).view(B, self.lines, *self.size)
        ctx = torch.cat([s, cond], 1) if cond is not None else s
        h = self.inp(f)
        h = h + F.interpolate(self.canvas, size=self.size, mode="bilinear")
        a, b = self.film0(ctx)[:, :, None, None].chunk(2, 1)
        h = torch.relu(h * (1 + a) + b)
        for blk, film in zip(self.blocks, self.films):
            a, b = film(ctx)[:, :, None, None].chunk(2, 1)
            h = h + torch.relu(blk(h) * (1 + a) + b)
        return F.pixel_shuffle(self.head(h), self.upscale)
