"""The nearest-code search on NVIDIA GPUs: tensor cores rule out, float64 decides.

This file prepares the codes and sends rows from one program of ``triton_programs`` to the next.
docs/nearest.md has the proof.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qvae.kernels.band import Codes, place_codes
from qvae.kernels.tiled import nearest as tiled

try:
    import triton

    from qvae.kernels.triton_programs import decide, exhaust, search
except ImportError:  # it comes with torch's CUDA builds only
    triton = None

__all__ = ["CONFIGS", "Launch", "choose", "nearest", "prefilter"]

_LIFT = 64.0
"""Codes are this much larger than in the frame of ``band``, for the sake of the small ones."""
_EXTRA = 4
"""Columns of an operand after its coordinates: two parts of the half norm, two of the band."""
_WIDEST = 512
"""Wider rows and their codes do not fit a processor's shared memory; torch searches them."""
_UP = 1.001
_OPEN = 64
"""Rows of a program of ``decide``."""
_FEW, _MANY = 8, 128
"""Rows of a program of ``exhaust``, and the codes that it sees at a time."""
_PROGRAMS = 2048
"""Of ``exhaust``, about, where there are few rows."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How much a program of ``search`` holds, and how it is run.

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
        decide[(triton.cdiv(len(few), _OPEN),)](
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
    search[(triton.cdiv(num, launch.rows),)](
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
    exhaust[(blocks, parts)](
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
