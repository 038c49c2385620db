"""The nearest-code search on NVIDIA GPUs: each program keeps its rows' best codes in registers.

No N by V matrix is made. What a program keeps is enough to know whether its answer is certain;
rows where it is not, because another code lies in the error band, are searched again by torch.
"""

from typing import Any

import torch
from torch import Tensor

from qvae.kernels.band import place_codes, place_rows
from qvae.kernels.reference import nearest as reference
from qvae.kernels.tiled import nearest as tiled

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
except ImportError:  # it comes with torch's CUDA builds only
    triton, constexpr = None, Any

__all__ = ["nearest"]

_ROWS, _CODES, _DEPTH = 64, 64, 32


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Search float32 rows exactly."""
    codes = place_codes(codebook)
    if codes is None:
        return reference(z, codebook)
    rows, norm, slack, usable = place_rows(z, codes)
    winner = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    certain = torch.zeros(len(z), dtype=torch.int8, device=z.device)
    if len(z):
        grid = (triton.cdiv(len(z), _ROWS),)
        _search[grid](
            *(rows, norm, slack, codes.moved, codes.half, codes.per_norm, codes.flat),
            *(winner, certain, len(z), len(codebook), z.shape[1]),
            ROWS=_ROWS,
            CODES=_CODES,
            DEPTH=_DEPTH,
        )
    open_rows = ((certain == 0) | ~usable).nonzero()[:, 0]
    if len(open_rows):
        winner[open_rows] = tiled(z[open_rows], codebook)
    return winner


def _program(
    rows: Any,
    norms: Any,
    slacks: Any,
    codes: Any,
    halves: Any,
    per_norms: Any,
    flats: Any,
    winners: Any,
    certain: Any,
    num_rows: Any,
    num_codes: Any,
    dim: Any,
    ROWS: constexpr,
    CODES: constexpr,
    DEPTH: constexpr,
) -> None:
    """Search ROWS rows: the two lowest ``score - band``, and the lowest ``score + band``.

    If the second of the two is above the third number, only the first code can be the nearest.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_rows = row < num_rows
    norm = tl.load(norms + row, mask=in_rows, other=0.0)
    upper = tl.full([ROWS], float("inf"), tl.float32)
    first = tl.full([ROWS], float("inf"), tl.float32)
    second = tl.full([ROWS], float("inf"), tl.float32)
    winner = tl.zeros([ROWS], tl.int32)
    for start in range(0, num_codes, CODES):
        code = start + tl.arange(0, CODES)
        in_codes = code < num_codes
        product = tl.zeros([ROWS, CODES], tl.float32)
        for depth in range(0, dim, DEPTH):
            step = depth + tl.arange(0, DEPTH)
            in_dim = step < dim
            z = tl.load(
                rows + row[:, None] * dim + step[None, :],
                mask=in_rows[:, None] & in_dim[None, :],
                other=0.0,
            )
            c = tl.load(
                codes + code[None, :].to(tl.int64) * dim + step[:, None],
                mask=in_codes[None, :] & in_dim[:, None],
                other=0.0,
            )
            product = tl.dot(z, c, product, input_precision="ieee")
        half = tl.load(halves + code, mask=in_codes, other=float("inf"))
        per_norm = tl.load(per_norms + code, mask=in_codes, other=0.0)
        flat = tl.load(flats + code, mask=in_codes, other=0.0)
        score = half[None, :] - product
        band = per_norm[None, :] * norm[:, None] + flat[None, :]
        upper = tl.minimum(upper, tl.min(score + band, axis=1))
        lower = score - band
        lowest = tl.min(lower, axis=1)
        place = tl.argmin(lower, axis=1)
        others = tl.where(tl.arange(0, CODES)[None, :] == place[:, None], float("inf"), lower)
        second = tl.minimum(tl.minimum(second, tl.min(others, axis=1)), tl.maximum(first, lowest))
        winner = tl.where(lowest < first, start + place, winner)
        first = tl.minimum(first, lowest)
    slack = tl.load(slacks + row, mask=in_rows, other=0.0)
    tl.store(winners + row, winner.to(tl.int64), mask=in_rows)
    tl.store(certain + row, (second > upper + slack).to(tl.int8), mask=in_rows)


_search: Any = triton.jit(_program) if triton is not None else None
