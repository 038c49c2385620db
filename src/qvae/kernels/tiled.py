"""The nearest-code search in plain torch, in tiles that stay in the cache."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from qvae.kernels.band import Codes, place_codes, place_rows
from qvae.kernels.reference import distances
from qvae.kernels.reference import nearest as reference

__all__ = ["nearest"]

_ROWS, _COLUMNS = 512, 1024  # of a tile
_BLOCK = 1 << 19  # numbers of a block of rows, or of the minima that it has
_BLOCK_ROWS = 4096
_PIECE = 1 << 17  # minima that are compared at a time: fresh megabytes cost page faults
_WORD = 8  # flags that are looked at together
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
    tiles = _tiles(len(codebook))
    codes = _fill(codes, prod(tiles))
    search = _Search(z, codebook, codes, _Groups(codes, tiles))
    step = _BLOCK // max(len(search.groups.flat), z.shape[1])
    step = min(max(step, _ROWS // 2), _BLOCK_ROWS)
    for start in range(0, len(z), step):
        search.add_rows(start, step)
    return search.finish()


def _tiles(num: int) -> tuple[int, int, int]:
    """How many tiles, how many groups in each, and how many codes in a group."""
    size = 16 if num >= 2048 else 4
    num_tiles = -(-num // _COLUMNS)
    return num_tiles, -(-num // (num_tiles * size * _WORD)) * _WORD, size


def _fill(codes: Codes, num: int) -> Codes:
    """Fill the last tile with codes that score infinity."""
    missing = num - len(codes.half)
    if not missing:
        return codes
    return replace(
        codes,
        moved=F.pad(codes.moved, (0, 0, 0, missing)),
        half=F.pad(codes.half, (0, missing), value=torch.inf),
        per_norm=F.pad(codes.per_norm, (0, missing)),
        flat=F.pad(codes.flat, (0, missing)),
    )


class _Groups:
    """Codes in groups of neighbours, and the tiles in which they are scored.

    A tile's column ``i * stride + j`` is member ``i`` of its group ``j``, so that the lowest of
    each group is a minimum of a few long pieces of a row.
    """

    def __init__(self, codes: Codes, tiles: tuple[int, int, int]) -> None:
        _, self.stride, self.size = tiles
        dim = codes.moved.shape[1]
        weights = codes.moved.view(*tiles, dim).transpose(1, 2).contiguous().neg_()
        self.weights = weights.view(tiles[0], -1, dim)
        self.biases = codes.half.view(tiles).mT.reshape(tiles[0], -1)
        self.moved = codes.moved.view(-1, self.size * dim)
        self.half, self.code_per_norm, self.code_flat = (
            values.view(-1, self.size) for values in (codes.half, codes.per_norm, codes.flat)
        )
        self.per_norm, self.flat = self.code_per_norm.amax(1), self.code_flat.amax(1)

    def lowest(self, rows: Tensor) -> Tensor:
        """The lowest score of each group, ``[N, groups]``."""
        minima = rows.new_empty(len(rows), len(self.flat))
        for some, out in zip(rows.split(_ROWS), minima.split(_ROWS), strict=True):
            parts = out.split(self.stride, dim=1)
            for weight, bias, part in zip(self.weights, self.biases, parts, strict=True):
                scores = _linear(some, weight, bias).view(len(some), self.size, self.stride)
                torch.amin(scores, 1, out=part)
        return minima

    def near(self, minima: Tensor, norm: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        """Which groups reach into the band ``[N, groups]``, and where it ends ``[N]``."""
        upper, is_near = torch.empty_like(slack), torch.empty_like(minima, dtype=torch.bool)
        step = max(1, _PIECE // minima.shape[1])
        pieces = (values.split(step) for values in (minima, norm[:, None], slack, upper, is_near))
        for lowest, length, rounding, end, flags in zip(*pieces, strict=True):
            band = torch.addcmul(self.flat, length, self.per_norm)
            torch.add((lowest + band).amin(1), rounding, out=end)
            torch.le(band.neg_().add_(lowest), end[:, None], out=flags)
        return is_near, upper

    def scores(self, rows: Tensor, groups: Tensor) -> Tensor:
        """Scores of each row against the codes of its group, ``[P, size]``."""
        moved = F.embedding(groups, self.moved).view(len(rows), self.size, -1)
        return self.half[groups] - torch.bmm(rows[:, None], moved.mT)[:, 0]


def _linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``rows @ weight.T + bias``, by oneDNN where torch has it.

    torch gives float32 products to its BLAS, where MKL leaves half of an AMD processor unused.
    """
    if rows.device.type == "cpu" and _has_onednn():
        scores: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return scores
    return F.linear(rows, weight, bias)


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _nonzero(flags: Tensor) -> tuple[Tensor, Tensor]:
    """``flags.nonzero()`` of few, one column each: words of flags first, most of which are 0."""
    row, word = flags.view(torch.int64).nonzero().unbind(1)
    which, flag = flags.view(len(flags), -1, _WORD)[row, word].nonzero().unbind(1)
    return row[which], word[which] * _WORD + flag


class _Search:
    """Candidates of all rows, and the winners of those that were decided early."""

    def __init__(self, z: Tensor, codebook: Tensor, codes: Codes, groups: _Groups) -> None:
        self.z, self.codebook, self.codes, self.groups = z, codebook, codes, groups
        self.best = torch.full((len(z),), torch.inf, dtype=torch.float64, device=z.device)
        self.winner = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.num_pending = 0
        self.unusable: list[Tensor] = []

    def add_rows(self, start: int, num: int) -> None:
        """Find the candidates of one block of rows."""
        groups = self.groups
        rows, norm, slack, usable = place_rows(self.z[start : start + num], self.codes)
        if not usable.all():
            self.unusable.append(start + (~usable).nonzero()[:, 0])
        is_near, upper = groups.near(groups.lowest(rows), norm, slack)
        found = _nonzero(is_near)
        step = max(1, _GATHERED // groups.moved.shape[1])
        for row, group in zip(*(index.split(step) for index in found), strict=True):
            band = torch.addcmul(
                groups.code_flat[group], norm[row, None], groups.code_per_norm[group]
            )
            lower = groups.scores(rows[row], group) - band
            which, member = (lower <= upper[row, None]).nonzero().unbind(1)
            self._wait(start + row[which], group[which] * groups.size + member)

    def finish(self) -> Tensor:
        """Decide what is open; a row with a single candidate needs no distance."""
        rows, codes = self._take()
        alone = (torch.bincount(rows, minlength=len(self.z))[rows] == 1) & self.best[rows].isinf()
        self.winner[rows[alone]] = codes[alone]
        self._decide(rows[~alone], codes[~alone])
        for odd in self.unusable:
            self.winner[odd] = reference(self.z[odd], self.codebook)
        return self.winner

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
        step = max(1, _GATHERED // (4 * self.z.shape[1]))  # several copies, twice as wide
        for row, code in zip(rows.split(step), codes.split(step), strict=True):
            yield row, code, distances(self.z[row], self.codebook[code])
