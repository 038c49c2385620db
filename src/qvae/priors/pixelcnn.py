"""Gated PixelCNN over the token grid: the prior of the VQ-VAE paper."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from qvae.priors.base import Prior
from qvae.priors.draw import Choose
from qvae.priors.head import PositionInputs, head_layout, hide_conditions, read_out, swap_tokens
from qvae.priors.scoring import head_loss, log_probs_loss
from qvae.types import Batch, Loss

__all__ = ["PixelCNN"]


def _gate(x: Tensor) -> Tensor:
    """``[B, 2D, ...] -> [B, D, ...]``: tanh of one half times the sigmoid of the other."""
    signal, gate = x.chunk(2, 1)
    return signal.tanh() * gate.sigmoid()


class _Layer(nn.Module):
    """One layer of both stacks. Vertical sees whole rows above, horizontal the cells to the left.

    Both convolutions include their own place; that nothing sees itself is settled before the first
    layer: the horizontal stack is fed the cell to the left, and gets the vertical one's row above.
    """

    def __init__(self, *, dim: int, kernel: int) -> None:
        super().__init__()
        self.reach = (kernel + 1) // 2
        self.side = kernel // 2
        self.down = nn.Conv2d(dim, 2 * dim, (self.reach, kernel))
        self.right = nn.Conv2d(dim, 2 * dim, (1, self.reach))
        self.link = nn.Conv2d(2 * dim, 2 * dim, 1, bias=False)
        self.out = nn.Conv2d(dim, dim, 1)

    def vertical(self, rows: Float[Tensor, "B D R C"]) -> Float[Tensor, "B D2 R2 C"]:
        """Convolve rows; the first ``reach - 1`` are only looked at."""
        return self.down(F.pad(rows, (self.side, self.side, 0, 0)))

    def horizontal(self, cells: Float[Tensor, "B D R C"]) -> Float[Tensor, "B D2 R C2"]:
        """Convolve along a row; the first ``reach - 1`` cells are only looked at."""
        return self.right(cells)


class PixelCNN(Prior):
    """Convolutions that see only cells above and to the left: ``p(tokens | cond)``, cell by cell.

    "Conditional Image Generation with PixelCNN Decoders", arXiv 1606.05328, section 2 and
    equation 4: gated layers, a vertical and a horizontal stack, so that there is no blind spot.
    Ours differs: both stacks have residuals; a learned position and the condition's table enter
    before the first layer, as in our transformer; a grid of one or three axes is read as a
    plane, its last axis across; the K codebooks of a cell follow each other, each told the ones
    before. Sampling keeps each layer's last rows and cells, so a cell costs one cell's work.

    Args:
        num_layers: of both stacks; >= 1. Each reaches ``kernel // 2`` cells further.
        dim: width; >= 1.
        kernel: side of the square whose upper half is seen; odd, >= 3.
        null_prob: share of training rows whose condition is hidden, in [0, 1].
        swap_prob: share of training inputs replaced by another row's token, in [0, 1);
            the prior then forgives its own slips.
        cond_table: whether every position has its own map of the condition's features.
        **tokens: what :class:`~qvae.priors.base.Prior` takes.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> prior = PixelCNN(vocab_size=8, num_tokens=6, grid=(2, 3), num_layers=1, dim=16)
        >>> prior.sample(3, seed=0).shape
        torch.Size([3, 6])
    """

    head_rows: Int[Tensor, "K S"]
    short: Float[Tensor, "N S"]

    def __init__(
        self,
        *,
        num_layers: int = 10,
        dim: int = 128,
        kernel: int = 5,
        null_prob: float = 0.1,
        swap_prob: float = 0.0,
        cond_table: bool = True,
        **tokens: Any,
    ) -> None:
        super().__init__(**tokens)
        if num_layers < 1 or dim < 1 or kernel < 3 or kernel % 2 == 0:
            raise ValueError(
                f"num_layers={num_layers}, dim={dim}, kernel={kernel}: all are >= 1"
                " and the kernel is odd and >= 3"
            )
        if not 0 <= null_prob <= 1 or not 0 <= swap_prob < 1:
            raise ValueError(
                f"null_prob={null_prob}, swap_prob={swap_prob}: must be in [0, 1] and in [0, 1)"
            )
        self.dim, self.null_prob, self.swap_prob = dim, null_prob, swap_prob
        self.plane = (math.prod(self.grid[:-1]), self.grid[-1])
        num_cells = math.prod(self.plane)
        self.embedding = nn.Embedding(self.vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.within: nn.Embedding | None = None
        if self._num_codebooks > 1:
            self.within = nn.Embedding(self.vocab_size, dim)
            nn.init.normal_(self.within.weight, std=0.1)
        self.inputs = PositionInputs(self.conditions, num=num_cells, dim=dim, cond_table=cond_table)
        self.layers = nn.ModuleList(_Layer(dim=dim, kernel=kernel) for _ in range(num_layers))
        self.mix = nn.Conv2d(dim, dim, 1)
        self.head = nn.Linear(dim, self.vocab_size, bias=False)
        rows, mask = head_layout(self.codebook_sizes)
        self.register_buffer("head_rows", rows, persistent=False)
        self.register_buffer("short", mask.repeat(num_cells, 1), persistent=False)

    def log_probs(
        self, tokens: Shaped[Tensor, "B N"], cond: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "B N S"]:
        """Return log p of every digit, from one pass."""
        return self.logits(tokens, self.check_cond(cond, len(tokens))).log_softmax(-1)

    def forward(self, batch: Batch) -> Loss:
        """Return the objective; in training, hide conditions and swap inputs at random."""
        tokens, digits, is_told = self.read(batch.x, batch.lengths)
        cond = self.check_cond(batch.cond, len(digits))
        cond = hide_conditions(cond, self.null_prob, is_training=self.training)
        inputs = swap_tokens(tokens, self.swap_prob, is_training=self.training)
        if self._num_codebooks > 1:
            return log_probs_loss(self.logits(inputs, cond).log_softmax(-1), digits, is_told)
        return head_loss(self._features(inputs, cond), self.head.weight, digits, is_told)

    def logits(
        self, tokens: Shaped[Tensor, "B N"], cond: Float[Tensor, "B M"]
    ) -> Float[Tensor, "B N S"]:
        """Return float32 logits of every digit, -inf where a codebook is short."""
        x = self._features(tokens.long(), cond)
        return read_out(x, self.head.weight, self.head_rows) + self.short

    def _features(
        self, tokens: Int[Tensor, "B N"], cond: Float[Tensor, "B M"]
    ) -> Float[Tensor, "B N D"]:
        """Return what the head reads each position's logits from."""
        cells = self._plane(self.embedding(tokens).unflatten(1, (-1, self._num_codebooks)).sum(2))
        place = self._plane(self.inputs(cond))
        v, h = cells + place, F.pad(cells, (1, 0))[..., :-1] + place
        for layer in self._layers():
            above = layer.vertical(F.pad(v, (0, 0, layer.reach - 1, 0)))
            left = layer.horizontal(F.pad(h, (layer.reach - 1, 0)))
            linked = layer.link(F.pad(above, (0, 0, 1, 0))[:, :, :-1])
            v, h = v + _gate(above), h + layer.out(_gate(left + linked))
        x = self.mix(h.relu()).flatten(2).transpose(1, 2)
        return self._within(x, tokens)

    def _within(self, x: Float[Tensor, "B cells D"], tokens: Tensor) -> Float[Tensor, "B N D"]:
        """Give each codebook of a cell its features: the cell's and the codebooks' before it."""
        if self.within is None:
            return x.relu()
        told = self.within(tokens).unflatten(1, (-1, self._num_codebooks))
        before = F.pad(told.cumsum(2)[:, :, :-1], (0, 0, 1, 0))
        return (x[:, :, None] + before).flatten(1, 2).relu()

    @property
    def _num_codebooks(self) -> int:
        return len(self.codebook_sizes)

    def _plane(self, x: Float[Tensor, "B cells D"]) -> Float[Tensor, "B D R C"]:
        return x.transpose(1, 2).unflatten(2, self.plane)

    def _layers(self) -> list[_Layer]:
        return [layer for layer in self.layers if isinstance(layer, _Layer)]

    @torch.no_grad()
    def walk(
        self,
        cond: Float[Tensor, "B M"],
        choose: Choose,
        *,
        guidance: float = 1.0,
        needed: Sequence[bool] | None = None,
    ) -> Int[Tensor, "B N"]:
        """Decide cell after cell with the last rows and cells of each layer cached."""
        num = len(cond)
        is_guided = guidance != 1 and cond.shape[1] > 0
        if is_guided:
            cond = torch.cat([cond, torch.full_like(cond, torch.nan)])
        digits = torch.zeros(num, self.num_tokens, dtype=torch.long, device=self.device)
        place = self._plane(self.inputs(cond))
        width = self.plane[1]
        cells = place.new_zeros(len(cond), self.dim, 1, width)
        above = [
            place.new_zeros(len(cond), self.dim, layer.reach - 1, width) for layer in self._layers()
        ]
        links = [place.new_zeros(len(cond), 2 * self.dim, 1, width) for _ in self.layers]
        last = self.num_tokens - 1
        while needed is not None and last >= 0 and not needed[last]:
            last -= 1
        for cell in range(last // self._num_codebooks + 1):
            row, col = divmod(cell, width)
            if col == 0:
                if row:
                    self._row(cells + place[:, :, row - 1 : row], above, links)
                cells = torch.zeros_like(cells)
                left = [
                    x.new_zeros(len(cond), self.dim, 1, layer.reach - 1)
                    for layer, x in zip(self._layers(), above, strict=True)
                ]
            before = cells[..., col - 1 : col] if col else torch.zeros_like(cells[..., :1])
            h = before + place[:, :, row : row + 1, col : col + 1]
            x = self._cell(h, left, [link[..., col : col + 1] for link in links])
            cells[..., col] = self._choose(x, cell, digits, choose, guidance, is_guided)
        return digits

    def _row(self, v: Tensor, above: list[Tensor], links: list[Tensor]) -> None:
        """Take a whole row through the vertical stack; keep rows and links for the next."""
        for i, layer in enumerate(self._layers()):
            window = torch.cat([above[i], v], 2)
            above[i] = window[:, :, 1:]
            out = layer.vertical(window)
            links[i] = layer.link(out)
            v = v + _gate(out)

    def _cell(self, h: Tensor, left: list[Tensor], links: list[Tensor]) -> Float[Tensor, "B 1 D"]:
        """Take one cell through the horizontal stack."""
        for i, layer in enumerate(self._layers()):
            window = torch.cat([left[i], h], 3)
            left[i] = window[..., 1:]
            h = h + layer.out(_gate(layer.horizontal(window) + links[i]))
        return self.mix(h.relu()).flatten(2).transpose(1, 2)

    def _choose(
        self,
        x: Float[Tensor, "B 1 D"],
        cell: int,
        digits: Tensor,
        choose: Choose,
        guidance: float,
        is_guided: bool,
    ) -> Float[Tensor, "B D 1"]:
        """Decide a cell's codebooks one after the other; return the cell's embedding."""
        told, embedded = x[:, 0], torch.zeros_like(x[:, 0])
        for k in range(self._num_codebooks):
            n = cell * self._num_codebooks + k
            logits = F.linear(told.relu(), self.head.weight[self.head_rows[k]]).float()
            if is_guided:
                with_cond, null = logits.chunk(2)
                logits = null + guidance * (with_cond - null)
            digits[:, n] = choose(logits + self.short[n], n)
            token = digits[:, n] + self.low[n]
            token = token.repeat(2) if is_guided else token
            told = told if self.within is None else told + self.within(token)
            embedded = embedded + self.embedding(token)
        return embedded[..., None]
