"""Draw sheets of samples, colour maps of codes and scatter plots, with Pillow alone."""

import colorsys
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from qvae.errors import UsageError

__all__ = ["ANIMATED", "code_maps", "colours", "save_frames", "scatter", "sheet"]

ANIMATED = (".gif", ".webp", ".apng")
"""Suffixes of files that move."""
_TILE = 56  # small samples are enlarged to about this many pixels
_MILLISECONDS = 80
_GAP = 2


def sheet(x: Float[Tensor, "R T C H W"]) -> UInt8[np.ndarray, "Y X 3"]:
    """Lay samples out in rows and columns, enlarged by a whole factor, white between them.

    Args:
        x: values in [0, 1]; what lies outside is clipped. C is 1 or 3.

    Raises:
        UsageError: the samples are no pictures.

    Example:
        >>> import torch
        >>> sheet(torch.zeros(2, 3, 1, 56, 56)).shape
        (114, 172, 3)
    """
    if x.ndim != 5 or x.shape[2] not in (1, 3):
        raise UsageError(
            f"samples of shape {tuple(x.shape[2:])} are no pictures of 1 or 3 channels"
        )
    rows, columns, _, height, width = x.shape
    levels = (x.clamp(0, 1) * 255).round().byte().cpu().numpy().transpose(0, 1, 3, 4, 2)
    scale = max(1, round(_TILE / max(height, width)))
    tiles = levels.repeat(scale, axis=2).repeat(scale, axis=3)
    step_y, step_x = height * scale + _GAP, width * scale + _GAP
    page = np.full((rows * step_y - _GAP, columns * step_x - _GAP, 3), 255, dtype=np.uint8)
    for r, c in np.ndindex(rows, columns):
        y, left = r * step_y, c * step_x
        page[y : y + height * scale, left : left + width * scale] = tiles[r, c]
    return page


def code_maps(codes: Int[np.ndarray, "N H W"], *, size: int) -> Float[np.ndarray, "N 3 Y X"]:
    """Colour each code by its number: equal codes are equal colours on the whole sheet.

    Args:
        codes: one integer a cell.
        size: pixels of a map's longer side, at least.
    """
    found, index = np.unique(codes, return_inverse=True)
    table = np.array(colours(len(found)), dtype=np.float32) / 255
    maps = table[index.reshape(codes.shape)].transpose(0, 3, 1, 2)
    scale = max(1, round(size / max(codes.shape[1:])))
    return maps.repeat(scale, axis=2).repeat(scale, axis=3)


def colours(num: int) -> list[tuple[int, int, int]]:
    """Return colours that are easy to tell apart, by steps of the golden ratio round the wheel."""
    found = []
    for i in range(num):
        red, green, blue = colorsys.hsv_to_rgb(i * 0.61803398875 % 1, 0.75, 0.6 + 0.15 * (i % 3))
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return found


def scatter(
    points: Float[np.ndarray, "N 2"], labels: Sequence[str] | None = None, *, side: int = 640
) -> UInt8[np.ndarray, "Y X 3"]:
    """Draw points in a square frame, coloured by label, with a legend.

    Args:
        points: finite.
        labels: one a point; numbers are listed by value, and at most 20 names in the legend.
        side: of the frame, pixels.
    """
    low, high = np.quantile(points, [0.002, 0.998], axis=0)
    reach = max(float((high - low).max()), 1e-9) * 1.08
    middle = (low + high) / 2
    place = ((points - middle) / reach + 0.5) * side
    names = sorted(set(labels), key=_by_number) if labels is not None else [""]
    palette = dict(zip(names, colours(len(names)), strict=True))
    page = Image.new("RGB", (side + (150 if labels is not None else 0), side), "white")
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, side - 1, side - 1), outline=(180, 180, 180))
    radius = 2 if len(points) > 2000 else 3
    for i, (x, y) in enumerate(place.tolist()):
        if 0 <= x < side and 0 <= y < side:
            up = side - y
            box = (x - radius, up - radius, x + radius, up + radius)
            draw.ellipse(box, fill=palette[labels[i] if labels is not None else ""])
    font = ImageFont.load_default()
    for row, name in enumerate(names[:20] if labels is not None else []):
        top = 12 + 20 * row
        draw.rectangle((side + 12, top, side + 24, top + 12), fill=palette[name])
        draw.text((side + 32, top), name[:16], fill="black", font=font)
    return np.asarray(page)


def _by_number(text: str) -> tuple[int, float, str]:
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)


def save_frames(frames: Sequence[UInt8[np.ndarray, "Y X 3"]], path: Path) -> None:
    """Write one frame as PNG, or several as a film that loops; whole or not at all."""
    first, *rest = [Image.fromarray(frame) for frame in frames]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    kind = {".gif": "GIF", ".webp": "WEBP"}.get(path.suffix, "PNG")
    film: dict[str, Any] = {
        "save_all": True,
        "append_images": rest,
        "duration": _MILLISECONDS,
        "loop": 0,
    }
    if kind == "WEBP":
        film["lossless"] = True
    try:
        first.save(temporary, format=kind, **(film if rest else {}))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
