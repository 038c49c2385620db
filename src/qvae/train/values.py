"""Numbers that nothing can be learned from, found before a run folder is made."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qvae.data.arrays import checked_range
from qvae.errors import DataError

__all__ = ["check_values", "who_needs_unit"]

_ROWS = 256


def who_needs_unit(model: nn.Module) -> str | None:
    """Return what declares that a model's data lies in [0, 1]; None where any number may come.

    Levels in its :class:`~qvae.types.DataSpec` do, whatever the likelihood, and so do likelihoods
    that have no value elsewhere. A density of real numbers under no declared levels does not:
    standardised series and audio in [-1, 1] are as good as pictures.
    """
    levels = getattr(getattr(model, "spec", None), "levels", None)
    if levels is not None:
        return f"DataSpec(levels={levels})"
    likelihood = getattr(model, "likelihood", None)
    return type(likelihood).__name__ if getattr(likelihood, "takes_unit", False) else None


def check_values(data: Any, *, unit_for: str | None) -> None:
    """Look once through floats and uint8 in an array, a tensor, a list of them, or a pair of these.

    Other sources (splits, streams, lazy sequences) answer for their own values, and tokens are
    integers. A valid split may be as small as one blank picture, so it may be constant.

    Args:
        data: what :func:`qvae.train.fit` was given.
        unit_for: who declares that floats lie in [0, 1], or None.

    Raises:
        DataError: NaN or Inf, a constant, or floats outside [0, 1] where that is declared.
    """
    parts = {"data": data}
    if isinstance(data, tuple) and len(data) == 2:
        parts = {"data[0], the train split": data[0], "data[1], the valid split": data[1]}
    for place, (name, rows) in enumerate(parts.items()):
        pieces = _numbers(rows)
        first = next(pieces, None)
        if first is None:
            continue
        low, high = checked_range(chain([first], pieces), name, can_be_constant=place == 1)
        if unit_for is not None and first.dtype.kind == "f" and not (low >= 0 and high <= 1):
            raise DataError(
                f"{name}: values from {low:.8g} to {high:.8g}, {unit_for} needs [0, 1] "
                "(or give 0..255 as uint8)"
            )


def _numbers(rows: Any) -> Iterator[np.ndarray]:
    """Yield floats and uint8 a few rows at a time; nothing of what is neither."""
    if isinstance(rows, list):
        for row in rows:
            yield from _numbers(row[None] if isinstance(row, Tensor | np.ndarray) else row)
        return
    if not isinstance(rows, Tensor | np.ndarray) or 0 in rows.shape:
        return
    for start in range(0, len(rows), _ROWS):
        piece = rows[start : start + _ROWS]
        if isinstance(piece, Tensor):
            piece = piece.detach().cpu()  # numpy has no bfloat16
            piece = (piece.float() if piece.dtype == torch.bfloat16 else piece).numpy()
        if piece.dtype.kind != "f" and piece.dtype != np.uint8:
            return
        yield piece
