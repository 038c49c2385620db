"""How far a fast score can be from the truth. The proof is in docs/nearest.md; so are the names.

A code k scores ``s = |c|^2 / 2 - z.c``, which orders codes as their distance to z does. Computed in
float32 it is wrong by at most ``band``. So the nearest code is among those with ``s - band`` not
above the lowest ``s + band``, and only these are compared in float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Codes", "place_codes", "place_rows"]

_UP = 1.001
"""Covers the rounding of norms and of bands themselves."""
_FAR = 2.0**80
"""Rows of a larger squared norm are compared in float64 alone."""
_SAMPLE, _PART = 15, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """A codebook in a frame of reference where float32 is at its best.

    Args:
        moved: ``(codebook - centre) * scale``, ``[V, D]`` in float32.
        half: ``|moved|^2 / 2``, ``[V]``.
        per_norm: the band of a code is ``per_norm * |z| + flat``, ``[V]``.
        flat: see ``per_norm``.
        centre: any point near the codes, ``[D]``.
        scale: a power of two that brings the largest coordinate to [1, 2).
        eta: of the float64 distances that decide, ``(D + 4) 2^-53``.
        widen: what turns a float32 norm into an upper bound of the norm.
    """

    moved: Tensor
    half: Tensor
    per_norm: Tensor
    flat: Tensor
    centre: Tensor
    scale: Tensor
    eta: float
    widen: float


def place_codes(codebook: Tensor) -> Codes | None:
    """Move and scale a float32 codebook, and bound its errors; None if it is not finite there."""
    size, dim = codebook.shape
    # The middle of a few codes, coordinate by coordinate, is near them even if one is far away.
    sample = codebook[torch.arange(0, size, -(-size // _SAMPLE), device=codebook.device)]
    centre = torch.nan_to_num(sample.median(dim=0).values, posinf=0.0, neginf=0.0)
    moved = codebook.contiguous() - centre
    largest = torch.linalg.vector_norm(moved, ord=torch.inf)
    if not torch.isfinite(largest):
        return None
    exponent = (1 - torch.frexp(largest).exponent).clamp(-126, 126)
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    moved = moved.mul_(scale)
    # In parts: the squares of a large codebook would be another copy of it.
    half = torch.cat([part.square().sum(1) for part in moved.split(_PART)]) / 2
    gamma = (2 * dim + 16) * 2.0**-24 * _UP
    eta = (dim + 4) * 2.0**-53 * _UP
    widen = _UP + dim * 2.0**-22
    norm = (2 * half).sqrt() * widen
    # What was denormal before it was scaled may have been flushed to 0: of rows, and of codes.
    lost = 2.0**-124 * math.sqrt(dim) * scale
    return Codes(
        moved=moved,
        half=half,
        per_norm=norm * ((2 * gamma + _operand_rounding(codebook.device)) * _UP) + lost,
        flat=norm.square() * ((gamma + eta) * _UP)
        + (dim + 1) * 2.0**-80
        + 2 * lost * (norm + 3 * lost),
        centre=centre,
        scale=scale,
        eta=eta,
        widen=widen,
    )


def place_rows(z: Tensor, codes: Codes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Move and scale float32 rows.

    Returns:
        The rows ``[N, D]``; their norms, as upper bounds; twice the float64 rounding that belongs
        to each; and which may be judged by float32 at all (the others are set to zero).
    """
    moved = (z.contiguous() - codes.centre) * codes.scale
    square = moved.square().sum(1)
    usable = square < _FAR  # False for NaN as well
    if not usable.all():
        moved, square = moved.where(usable[:, None], 0), square.where(usable, 0)
    norm = square.sqrt() * codes.widen
    return moved, norm, norm.square() * (2 * codes.eta * _UP), usable


def _operand_rounding(device: torch.device) -> float:
    """How much of ``|z||c|`` a matrix product may lose before it starts to multiply.

    Nothing by default; a user may have allowed TF32 or bfloat16 for the sake of speed.
    """
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return 0.0 if backend.matmul.fp32_precision in ("none", "ieee") else 2.0**-6
