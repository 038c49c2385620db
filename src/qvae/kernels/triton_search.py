"""The nearest-code search on NVIDIA GPUs: tensor cores rule out, float64 decides.

Three kernels. ``_search`` reads every code once for each block of rows, as float16, and keeps no
N by V matrix: of each row it knows the lowest bar of every tile of codes and of every column. The
two meet in the best code. ``_decide`` compares up to four codes of a row in float64, ``_exhaust``
all of them. docs/nearest.md has the proof.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qvae.kernels.band import Codes, place_codes
from qvae.kernels.tiled import nearest as tiled

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
    from triton.language import tensor as Value  # triton reads annotations, and takes only its own
except ImportError:  # it comes with torch's CUDA builds only
    triton, constexpr, Value = None, Any, Any

__all__ = ["CONFIGS", "Launch", "choose", "nearest", "prefilter"]

_LIFT = 64.0
"""Codes are this much larger than in the frame of ``band``, for the sake of the small ones."""
_EXTRA = 4
"""Columns of an operand after its coordinates: two parts of the half norm, two of the band."""
_WIDEST = 512
"""Wider rows and their codes do not fit a processor's shared memory; torch searches them."""
_UP = 1.001
_OPEN = 64
"""Rows of a program of ``_decide``."""
_FEW, _MANY = 8, 128
"""Rows of a program of ``_exhaust``, and the codes that it sees at a time."""
_PROGRAMS = 2048
"""Of ``_exhaust``, about, where there are few rows."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How much a program of ``_search`` holds, and how it is run.

    Args:
        rows: of a program.
        codes: of a tile.
        warps: that share a program.
        stages: tiles of codes under way.
        registers: of a thread at most, so that two programs can share a processor.
    """

    rows: int
    codes: int
    warps: int
    stages: int
    registers: int = 255


CONFIGS = (
    Launch(128, 64, 4, 3),
    Launch(128, 64, 4, 4),
    Launch(128, 64, 4, 3, 168),
    Launch(128, 64, 8, 4, 128),
    Launch(128, 128, 8, 3),
    Launch(64, 128, 4, 3),
    Launch(64, 64, 4, 4, 128),
)
"""Launches worth timing on a new device; the first is taken, up to 64 wide."""


def nearest(z: Tensor, codebook: Tensor, launch: Launch | None = None) -> Tensor:
    """Search float32 rows exactly."""
    z, codebook = z.contiguous(), codebook.contiguous()
    if not len(z):
        return torch.zeros(0, dtype=torch.int64, device=z.device)
    if z.shape[1] > _WIDEST:
        return tiled(z, codebook)
    codes = place_codes(codebook)
    if codes is None:
        winner = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        _run_exhaust(z, codebook, torch.arange(len(z), device=z.device), winner)
        return winner
    launch = launch or choose(z.shape[1])
    try:
        winner, rival, doubt = prefilter(z, codes, launch)
    except triton.OutOfResources:  # wide rows on a GPU with less shared memory than a data centre's
        return tiled(z, codebook)
    few, rest = ((doubt == level).nonzero()[:, 0] for level in (1, 2))
    if len(few):
        _decide[(triton.cdiv(len(few), _OPEN),)](
            *(z, codebook, few, winner, rival, len(few), len(codebook)),
            DIM=z.shape[1],
            CODES=launch.codes,
            ROWS=_OPEN,
            enable_fp_fusion=False,
        )
    if len(rest):
        _run_exhaust(z, codebook, rest, winner)
    return winner


def choose(dim: int) -> Launch:
    """The launch for rows of a width; rows and the tiles under way share 227 KB."""
    if dim <= 64:
        return CONFIGS[0]
    if dim <= 128:
        return Launch(128, 64, 8, 3)
    return Launch(128, 64, 8, 2) if dim <= 256 else Launch(64, 64, 8, 2)


def _widths(dim: int) -> tuple[int, int]:
    """The width of the operands as a power of two, and 16 or 0 more."""
    need = dim + _EXTRA
    below = 1 << (need.bit_length() - 1)
    if below >= 16 and need <= below + 16:
        return below, 16 if need > below else 0
    return max(16, 2 * below), 0


def prefilter(z: Tensor, codes: Codes, launch: Launch) -> tuple[Tensor, Tensor, Tensor]:
    """The best code of each row; a second whose tile or column may hold the nearest; the doubt.

    Doubt is 0 where the best code is the nearest, 1 where the nearest is among the best code's
    and its rival's tiles and columns, and 2 where it can be any.
    """
    num, dim = z.shape
    width, tail = _widths(dim)
    unit = 2.0 ** max(0, (dim - 1).bit_length() - 1)
    operands, bounds = _operands(codes, width + tail, unit, launch.codes)
    winner = torch.empty(num, dtype=torch.int64, device=z.device)
    rival = torch.empty(num, dtype=torch.int32, device=z.device)
    doubt = torch.empty(num, dtype=torch.int8, device=z.device)
    _search[(triton.cdiv(num, launch.rows),)](
        *(z, codes.centre, codes.scale, operands, bounds, winner, rival, doubt),
        *(num, len(operands) // launch.codes),
        DIM=dim,
        WIDTH=width,
        TAIL=tail,
        ROWS=launch.rows,
        CODES=launch.codes,
        LIFT=_LIFT,
        UNIT=unit,
        WIDEN=codes.widen,
        SLACK=2 * codes.eta * _UP,
        FURTHEST=unit * 2.0**26 / dim**0.5,
        num_warps=launch.warps,
        num_stages=launch.stages,
        maxnreg=launch.registers,
    )
    return winner, rival, doubt


def _operands(codes: Codes, width: int, unit: float, tile: int) -> tuple[Tensor, Tensor]:
    """Codes as the tensor cores see them, ``[V', width]``, and their bands ``[V', 3]``.

    A row's operand is its coordinates, two powers of two, its norm, and its rounding residue, so
    that one product is the lower bar of a score: ``|c|^2 / 2 - z.c - band``.
    """
    size, dim = codes.moved.shape
    lifted = codes.moved * _LIFT
    rounded = lifted.half()
    residue = (lifted - rounded.float()).square().sum(1).sqrt() * codes.widen
    half = codes.half * _LIFT**2
    norm = (2 * half).sqrt() * codes.widen
    gamma = (2 * dim + 8 * width + 48) * 2.0**-24 * _UP
    # A tensor core aligns a float16 below 2^-14 as if it were that large, so small ones count more.
    faint = dim**0.5 * 2.0**-14
    per_norm = _half_up((residue + gamma * (norm + faint)) * _UP)
    per_residue = _half_up((norm + residue + gamma * faint) * _UP)
    flat = ((norm + faint).square() * gamma + norm.square() * codes.eta) * _UP
    flat = flat + unit * (gamma * 2.0**-13 + 2.0**-35) + (dim + 1) * 2.0**-40
    out = codes.moved.new_zeros(-(-size // tile) * tile, width, dtype=torch.float16)
    out[:size, :dim] = -rounded
    rest = half - flat
    for part in range(2):
        weight = unit * 2.0 ** (-11 * part)
        out[:size, dim + part] = rest / weight
        rest = rest - out[:size, dim + part].float() * weight
    out[size:, dim] = torch.inf
    out[:size, dim + 2], out[:size, dim + 3] = -per_norm, -per_residue
    bounds = torch.stack([per_norm.float(), per_residue.float(), flat], 1)
    return out, F.pad(bounds, (0, 0, 0, len(out) - size))


def _half_up(x: Tensor) -> Tensor:
    """Float16 that is not below ``x``."""
    return (x * (1 + 2.0**-10) + 2.0**-24).half()


def _run_exhaust(z: Tensor, codebook: Tensor, rows: Tensor, winner: Tensor) -> None:
    """Search some rows as the definition says it, from any winners that they have.

    Few rows would leave most of a GPU idle, so then programs share the codes of a row.
    """
    blocks, tiles = triton.cdiv(len(rows), _FEW), triton.cdiv(len(codebook), _MANY)
    parts = max(1, min(_PROGRAMS // blocks, tiles))
    distances = torch.empty(parts, len(rows), dtype=torch.float64, device=z.device)
    places = torch.empty(parts, len(rows), dtype=torch.int64, device=z.device)
    _exhaust[(blocks, parts)](
        *(z, codebook, codebook.T.contiguous(), rows, winner, distances, places),
        *(len(rows), len(codebook), triton.cdiv(tiles, parts)),
        DIM=z.shape[1],
        ROWS=_FEW,
        CODES=_MANY,
        SHORT=1 - (2 * z.shape[1] + 16) * 2.0**-24,
        TINY=z.shape[1] * 2.0**-120,
        enable_fp_fusion=False,
    )
    is_far = distances > distances.amin(0)
    winner[rows] = places.masked_fill(is_far, len(codebook)).amin(0)


def _moved_program(
    z: Value,
    centre: Value,
    scale: Value,
    row: Value,
    step: Value,
    num_rows: Value,
    DIM: Value,
    LIFT: Value,
) -> Value:
    """Some coordinates of rows in the lifted frame; 0 beyond the last."""
    here = (row < num_rows)[:, None] & (step < DIM)[None, :]
    value = tl.load(z + row[:, None] * DIM + step[None, :], mask=here, other=0.0)
    middle = tl.load(centre + step, mask=step < DIM, other=0.0)
    moved = (value - middle[None, :]) * tl.load(scale) * LIFT
    return tl.where(here, moved, 0.0)


def _operand_program(
    moved: Value, step: Value, unit: Value, norm: Value, residue: Value, DIM: constexpr
) -> Value:
    """Some columns of the rows' operand: coordinates, two powers of two, norm and residue."""
    step = step[None, :]
    value = tl.where(step == DIM, unit[:, None], moved)
    value = tl.where(step == DIM + 1, unit[:, None] / 2048, value)
    value = tl.where(step == DIM + 2, norm[:, None], value)
    value = tl.where(step == DIM + 3, residue[:, None], value)
    return value.to(tl.float16)


def _up_program(value: Value) -> Value:
    """Float32 that is not below ``value`` and that float16 holds exactly."""
    return (value * (1 + 2.0**-10) + 2.0**-24).to(tl.float16).to(tl.float32)


def _lost_program(moved: Value) -> Value:
    """The squared norm of what float16 loses."""
    lost = moved - moved.to(tl.float16).to(tl.float32)
    return tl.sum(lost * lost, axis=1)


def _band_program(bounds: Value, code: Value, norm: Value, residue: Value, shrink: Value) -> Value:
    """How wrong the score of a code can be, for a row each."""
    at = bounds + code.to(tl.int64) * 3
    return tl.load(at) * norm + tl.load(at + 1) * residue + tl.load(at + 2) * shrink


def _search_program(
    z: Value,
    centre: Value,
    scale: Value,
    operands: Value,
    bounds: Value,
    winners: Value,
    rivals: Value,
    doubts: Value,
    num_rows: Value,
    num_tiles: Value,
    DIM: constexpr,
    WIDTH: constexpr,
    TAIL: constexpr,
    ROWS: constexpr,
    CODES: constexpr,
    LIFT: constexpr,
    UNIT: constexpr,
    WIDEN: constexpr,
    SLACK: constexpr,
    FURTHEST: constexpr,
) -> None:
    """Find of ROWS rows the best code, and how much of the codebook reaches into its band.

    Codes are a table of tiles and columns. A code in the band makes the lowest bar of its tile and
    that of its column reach in; so two tiles and two columns hold all of them, unless a third does.
    """
    infinity = float("inf")
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    step = tl.arange(0, WIDTH)
    moved = _moved(z, centre, scale, row, step, num_rows, DIM, LIFT)
    inside = tl.sum((tl.abs(moved) <= FURTHEST).to(tl.int32), axis=1)  # NaN is not
    if TAIL:  # the last coordinates may be in the tail, so norms need both parts
        tail = WIDTH + tl.arange(0, TAIL)
        more = _moved(z, centre, scale, row, tail, num_rows, DIM, LIFT)
        inside += tl.sum((tl.abs(more) <= FURTHEST).to(tl.int32), axis=1)
    usable = inside == WIDTH + TAIL
    moved = tl.where(usable[:, None], moved, 0.0)
    square = tl.sum(moved * moved, axis=1)
    if TAIL:
        more = tl.where(usable[:, None], more, 0.0)
        square += tl.sum(more * more, axis=1)
    norm = tl.sqrt(square) * WIDEN
    # A power of two brings the norm below 2^15, where float16 has no trouble.
    power = tl.maximum((norm.to(tl.int32, bitcast=True) >> 23) - 141, 0)
    shrink = ((127 - power) << 23).to(tl.float32, bitcast=True)
    moved *= shrink[:, None]
    norm *= shrink
    lost = _lost(moved)
    if TAIL:
        more *= shrink[:, None]
        lost += _lost(more)
    norm, residue = _up(norm), _up(tl.sqrt(lost) * WIDEN)
    unit = UNIT * shrink
    rows = _operand(moved, step, unit, norm, residue, DIM)
    if TAIL:
        rows_tail = _operand(more, tail, unit, norm, residue, DIM)

    column = tl.arange(0, CODES)
    lowest = tl.full([ROWS, CODES], infinity, tl.float32)
    first = tl.full([ROWS], infinity, tl.float32)
    second = tl.full([ROWS], infinity, tl.float32)
    third = tl.full([ROWS], infinity, tl.float32)
    tile_1 = tl.zeros([ROWS], tl.int32)
    tile_2 = tl.zeros([ROWS], tl.int32)
    start = operands + column[None, :] * (WIDTH + TAIL)
    for tile in range(num_tiles):
        bar = tl.dot(rows, tl.load(start + step[:, None]))
        if TAIL:
            bar = tl.dot(rows_tail, tl.load(start + tail[:, None]), bar)
        start += CODES * (WIDTH + TAIL)
        lowest = tl.minimum(lowest, bar)
        here = tl.min(bar, axis=1)
        third = tl.minimum(third, tl.maximum(second, here))
        tile_2 = tl.where(here < first, tile_1, tl.where(here < second, tile, tile_2))
        second = tl.minimum(second, tl.maximum(first, here))
        tile_1 = tl.where(here < first, tile, tile_1)
        first = tl.minimum(first, here)

    column_1 = tl.argmin(lowest, axis=1)
    lowest = tl.where(column[None, :] == column_1[:, None], infinity, lowest)
    second = tl.minimum(second, tl.min(lowest, axis=1))
    column_2 = tl.argmin(lowest, axis=1)
    lowest = tl.where(column[None, :] == column_2[:, None], infinity, lowest)
    third = tl.minimum(third, tl.min(lowest, axis=1))

    code = tile_1 * CODES + column_1
    band = _band(bounds, code, norm, residue, shrink)
    # Of two codes with the same lowest bar, one may have given the tile and the other the column:
    # both are among the four where tiles and columns meet, and so is the band that counts.
    crossed = _band(bounds, tile_1 * CODES + column_2, norm, residue, shrink)
    crossed = tl.maximum(crossed, _band(bounds, tile_2 * CODES + column_1, norm, residue, shrink))
    crossed = tl.maximum(crossed, _band(bounds, tile_2 * CODES + column_2, norm, residue, shrink))
    band = tl.where(second > first, band, tl.maximum(band, crossed))
    end = first + band * 2.001 + norm * norm / shrink * SLACK
    doubt = tl.where(second > end, 0, tl.where(third > end, 1, 2))
    in_rows = row < num_rows
    tl.store(winners + row, code.to(tl.int64), mask=in_rows)
    tl.store(rivals + row, tile_2 * CODES + column_2, mask=in_rows)
    tl.store(doubts + row, tl.where(usable, doubt, 2).to(tl.int8), mask=in_rows)


def _decide_program(
    z: Value,
    codebook: Value,
    open_rows: Value,
    winners: Value,
    rivals: Value,
    num_open: Value,
    num_codes: Value,
    DIM: constexpr,
    CODES: constexpr,
    ROWS: constexpr,
) -> None:
    """Compare the four codes where the tiles of winner and rival meet their columns."""
    which = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = which < num_open
    row = tl.load(open_rows + which, mask=in_rows, other=0)
    winner = tl.load(winners + row)
    rival = tl.load(rivals + row).to(tl.int64)
    other = tl.arange(0, 4)[None, :]
    tile = tl.where(other < 2, winner[:, None], rival[:, None]) // CODES
    column = tl.where(other % 2 == 0, winner[:, None], rival[:, None]) % CODES
    code = tile * CODES + column
    exists = code < num_codes
    distance = tl.zeros([ROWS, 4], tl.float64)
    for step in range(DIM):
        x = tl.load(z + row * DIM + step).to(tl.float64)
        y = tl.load(codebook + code * DIM + step, mask=exists, other=0.0).to(tl.float64)
        difference = x[:, None] - y
        distance = distance + difference * difference
    distance = tl.where(exists, distance, float("inf"))
    nearest = tl.min(distance, axis=1)
    code = tl.where(distance == nearest[:, None], code, num_codes - 1)
    tl.store(winners + row, tl.min(code, axis=1), mask=in_rows)


def _exhaust_program(
    z: Value,
    codebook: Value,
    columns: Value,
    some_rows: Value,
    winners: Value,
    distances: Value,
    places: Value,
    num_some: Value,
    num_codes: Value,
    tiles_each: Value,
    DIM: constexpr,
    ROWS: constexpr,
    CODES: constexpr,
    SHORT: constexpr,
    TINY: constexpr,
) -> None:
    """Compare rows with a part of the codes; ``columns`` is the codebook, transposed.

    Float32 distances, which have no large terms that cancel, tell which tiles can hold a nearer
    code; these are measured in float64.
    """
    infinity = float("inf")
    which = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = which < num_some
    row = tl.load(some_rows + which, mask=in_rows, other=0)
    winner = tl.load(winners + row)
    nearest = tl.zeros([ROWS], tl.float64)
    for step in range(DIM):
        x = tl.load(z + row * DIM + step).to(tl.float64)
        difference = x - tl.load(codebook + winner * DIM + step).to(tl.float64)
        nearest = nearest + difference * difference
    nearest = tl.where(nearest == nearest, nearest, infinity)
    begin = tl.program_id(1) * tiles_each * CODES
    for start in range(begin, tl.minimum(begin + tiles_each * CODES, num_codes), CODES):
        code = start + tl.arange(0, CODES)
        exists = code < num_codes
        rough = tl.zeros([ROWS, CODES], tl.float32)
        at = columns + code
        for step in range(DIM):
            x = tl.load(z + row * DIM + step)
            gap = x[:, None] - tl.load(at, mask=exists, other=0.0)[None, :]
            rough += gap * gap
            at += num_codes
        least = rough.to(tl.float64) * SHORT - TINY
        near = ((least <= nearest[:, None]) | (rough == infinity)) & exists[None, :]
        if tl.max(near.to(tl.int32)) > 0:
            distance = tl.zeros([ROWS, CODES], tl.float64)
            at = columns + code
            for step in range(DIM):
                x = tl.load(z + row * DIM + step).to(tl.float64)
                y = tl.load(at, mask=exists, other=0.0).to(tl.float64)
                difference = x[:, None] - y[None, :]
                distance = distance + difference * difference
                at += num_codes
            distance = tl.where((distance == distance) & exists[None, :], distance, infinity)
            here = tl.min(distance, axis=1)
            place = start + tl.argmin(distance, axis=1).to(tl.int64)
            is_better = (here < nearest) | ((here == nearest) & (place < winner))
            winner = tl.where(is_better, place, winner)
            nearest = tl.where(is_better, here, nearest)
    at = tl.program_id(1).to(tl.int64) * num_some + which
    tl.store(distances + at, nearest, mask=in_rows)
    tl.store(places + at, winner, mask=in_rows)


def _jit(program: Any) -> Any:
    # Whoever checks types as modules are imported has wrapped it; triton wants the function itself.
    return triton.jit(inspect.unwrap(program)) if triton is not None else None


_moved, _operand = _jit(_moved_program), _jit(_operand_program)
_up, _lost, _band = _jit(_up_program), _jit(_lost_program), _jit(_band_program)
_search, _decide, _exhaust = _jit(_search_program), _jit(_decide_program), _jit(_exhaust_program)
