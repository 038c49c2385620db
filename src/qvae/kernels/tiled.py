"""The nearest-code search in plain torch, in tiles that stay in the cache."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from qvae.kernels.band import Codes, place_codes, place_rows
from qvae.kernels.reference import distances
from qvae.kernels.reference import nearest as reference

__all__ = ["nearest"]

_ROWS, _COLUMNS = 256, 512
_GATHERED = 1 << 20  # numbers of a gathered piece
_PENDING = 1 << 18  # candidates that wait for float64


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Search float32 rows exactly.

    Scores are made a tile at a time, and of each group of codes only the lowest is kept: an argmin
    over all scores would cost more than the product itself. Groups that reach into the error band
    are scored again, code by code, and what is left in the band is decided in float64.
    """
    codes = place_codes(codebook)
    if codes is None:
        return reference(z, codebook)
    search = _Search(z, codebook, codes)
    for start in range(0, len(z), _ROWS):
        search.add_rows(start)
    return search.finish()


class _Groups:
    """Codes in groups: member i of a tile's group j is its column ``i * stride + j``."""

    def __init__(self, codes: Codes) -> None:
        num = len(codes.half)
        self.size = 16 if num >= 2048 else 4
        self.tiles = [slice(s, min(s + _COLUMNS, num)) for s in range(0, num, _COLUMNS)]
        firsts, strides, norms, flats = [], [], [], []
        for tile in self.tiles:
            stride = -(-(tile.stop - tile.start) // self.size)
            firsts.append(tile.start + torch.arange(stride, device=codes.half.device))
            strides.append(torch.full_like(firsts[-1], stride))
            norms.append(self._columns(codes.per_norm[tile], stride).amax(0))
            flats.append(self._columns(codes.flat[tile], stride).amax(0))
        self.first, self.stride = torch.cat(firsts), torch.cat(strides)
        self.per_norm, self.flat = torch.cat(norms), torch.cat(flats)
        self.last = num - 1

    def _columns(self, values: Tensor, stride: int) -> Tensor:
        missing = self.size * stride - len(values)
        return F.pad(values, (0, missing)).view(self.size, stride)

    def members(self, groups: Tensor) -> Tensor:
        """The codes of groups, ``[G, size]``; where a tile ends, the last code once more."""
        step = torch.arange(self.size, device=groups.device)
        return (self.first[groups, None] + self.stride[groups, None] * step).clamp(max=self.last)


class _Search:
    """Candidates of all rows, and the winners of those that were decided early."""

    def __init__(self, z: Tensor, codebook: Tensor, codes: Codes) -> None:
        self.z, self.codebook, self.codes = z, codebook, codes
        self.groups = _Groups(codes)
        self.scores = z.new_empty(_ROWS, _COLUMNS)
        self.best = torch.full((len(z),), torch.inf, dtype=torch.float64, device=z.device)
        self.winner = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.num_pending = 0
        self.unusable: list[Tensor] = []

    def add_rows(self, start: int) -> None:
        """Find the candidates of one block of rows."""
        rows, norm, slack, usable = place_rows(self.z[start : start + _ROWS], self.codes)
        if not usable.all():
            self.unusable.append(start + (~usable).nonzero()[:, 0])
        minima = torch.cat([self._lowest(rows, tile) for tile in self.groups.tiles], dim=1)
        band = torch.addcmul(self.groups.flat, norm[:, None], self.groups.per_norm)
        upper = (minima + band).amin(1) + slack
        found = (minima - band <= upper[:, None]).nonzero()
        step = max(1, _GATHERED // (self.groups.size * rows.shape[1]))
        for piece in found.split(step):
            row, group = piece.unbind(1)
            members = self.groups.members(group)
            scores = self._rescore(rows[row], members)
            codes = self.codes
            band = codes.per_norm[members] * norm[row, None] + codes.flat[members]
            keep = scores - band <= upper[row, None]
            self._wait(start + row[:, None].expand_as(members)[keep], members[keep])

    def finish(self) -> Tensor:
        """Decide what is open; a row with a single candidate needs no distance."""
        rows, codes = self._take()
        alone = (torch.bincount(rows, minlength=len(self.z))[rows] == 1) & self.best[rows].isinf()
        self.winner[rows[alone]] = codes[alone]
        self._decide(rows[~alone], codes[~alone])
        for odd in self.unusable:
            self.winner[odd] = reference(self.z[odd], self.codebook)
        return self.winner

    def _lowest(self, rows: Tensor, tile: slice) -> Tensor:
        """The lowest score of each group of a tile, ``[N, groups]``."""
        size, width = self.groups.size, tile.stop - tile.start
        stride = -(-width // size)
        scores = self.scores.view(-1)[: len(rows) * stride * size].view(len(rows), -1)
        moved, half = self.codes.moved[tile], self.codes.half[tile]
        torch.addmm(half, rows, moved.T, alpha=-1, out=scores[:, :width])
        scores[:, width:] = torch.inf
        return scores.view(len(rows), size, stride).amin(1)

    def _rescore(self, rows: Tensor, members: Tensor) -> Tensor:
        """Scores of each row against its own few codes, ``[P, size]``."""
        moved = F.embedding(members, self.codes.moved)  # quicker than an index for long rows
        half = self.codes.half[members]
        return torch.baddbmm(half[:, None], rows[:, None], moved.mT, alpha=-1)[:, 0]

    def _wait(self, rows: Tensor, codes: Tensor) -> None:
        self.pending.append((rows, codes))
        self.num_pending += len(rows)
        if self.num_pending > _PENDING:
            self._decide(*self._take())

    def _take(self) -> tuple[Tensor, Tensor]:
        none = self.winner[:0]
        parts = [(none, none), *self.pending]
        self.pending, self.num_pending = [], 0
        return torch.cat([rows for rows, _ in parts]), torch.cat([codes for _, codes in parts])

    def _decide(self, rows: Tensor, codes: Tensor) -> None:
        """Let candidates meet in float64; among equals the lowest code wins."""
        for row, code, distance in self._measured(rows, codes):
            before = self.best[row]
            self.best.scatter_reduce_(0, row, distance, "amin")
            best = self.best[row]
            # A code that held a larger distance has lost; one that holds the same may still win.
            self.winner[row[best < before]] = self.codebook.shape[0]
            equal = distance == best
            self.winner.scatter_reduce_(0, row[equal], code[equal], "amin")

    def _measured(self, rows: Tensor, codes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        step = max(1, _GATHERED // self.z.shape[1])
        for row, code in zip(rows.split(step), codes.split(step), strict=True):
            yield row, code, distances(self.z[row], self.codebook[code])
