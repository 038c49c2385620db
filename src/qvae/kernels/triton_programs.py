"""The programs that the search runs on a GPU, in Triton: ``search``, ``decide``, ``exhaust``.

``search`` reads every code once for each block of rows, as float16, and keeps no N by V matrix: of
each row it knows the lowest bar of every tile of codes and of every column. The two meet in the
best code. ``decide`` compares up to four codes of a row in float64, ``exhaust`` all of them.
"""

import inspect
from typing import Any

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
    from triton.language import tensor as Value  # triton reads annotations, and takes only its own
except ImportError:  # it comes with torch's CUDA builds only
    triton, constexpr, Value = None, Any, Any

__all__ = ["decide", "exhaust", "search"]


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
search, decide, exhaust = _jit(_search_program), _jit(_decide_program), _jit(_exhaust_program)
