"""What a prior is told: rows of raw numbers and guidance by them, checked before work starts."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from qvae.types import Condition, cond_width

__all__ = ["check_guidance", "told_rows"]


def told_rows(
    cond: Float[Tensor, "..."] | None,
    num: int,
    conditions: Sequence[Condition],
    *,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "num M"]:
    """Return float32 conditions on a device, a row for each sample; None is all NaN.

    Args:
        cond: raw numbers ``[num, M]``, NaN = not told; ``[M]`` or ``[1, M]`` is told to all.
        num: samples; >= 0.
        conditions: what the columns mean.
        device: where the rows are needed.

    Raises:
        ValueError: no numbers, another shape, or a number that stands for nothing: neither finite
            nor NaN, no index of a category or a word.

    Example:
        >>> side = Condition(name="side", kind="category", categories=("left", "right"))
        >>> told_rows(torch.tensor([1.0]), 2, [side]).tolist()
        [[1.0], [1.0]]
        >>> told_rows(torch.tensor([2.0]), 2, [side])
        Traceback (most recent call last):
        ValueError: cond: 2 for 'side' in row 0, must be NaN or a whole number in 0..1
    """
    width = cond_width(conditions)
    if cond is None:
        return torch.full((num, width), math.nan, device=device)
    try:
        given = torch.as_tensor(cond, dtype=torch.float32, device=device)
    except (TypeError, ValueError):
        raise ValueError(f"cond={cond!r}: must be a tensor of raw numbers") from None
    rows = given[None] if given.ndim == 1 else given
    if rows.ndim != 2 or rows.shape[1] != width or rows.shape[0] not in (1, num):
        raise ValueError(
            f"cond of shape {tuple(given.shape)}: needs [{num}, {width}],"
            f" the raw numbers of {[c.name for c in conditions]}"
        )
    if width:
        _check(rows, conditions)
    return rows.expand(num, width)


def check_guidance(guidance: float, *, conditions: Sequence[Condition], null_prob: float) -> None:
    """Refuse guidance where there is nothing to be told, or "told nothing" was never trained.

    Raises:
        ValueError: naming the value and the rule.

    Example:
        >>> check_guidance(2.0, conditions=(), null_prob=0.1)
        Traceback (most recent call last):
        ValueError: guidance=2.0: must be 1, since this prior has no conditions
    """
    if guidance != 1 and not (conditions and null_prob > 0):
        lacks = "was trained with null_prob=0" if conditions else "has no conditions"
        raise ValueError(f"guidance={guidance}: must be 1, since this prior {lacks}")


def _check(rows: Float[Tensor, "B M"], conditions: Sequence[Condition]) -> None:
    """Refuse numbers that mean nothing; one look for all columns, since it is made every step."""
    most = [limit for item in conditions for limit in [_last_index(item)] * item.width]
    limits = rows.new_tensor(most)
    is_index = limits < math.inf
    is_wrong = rows.isinf() | (is_index & ((rows < 0) | (rows > limits) | (rows != rows.floor())))
    is_wrong &= ~rows.isnan()
    if not is_wrong.any():
        return
    row, column = is_wrong.nonzero()[0].tolist()
    names = [item.name for item in conditions for _ in range(item.width)]
    rule = f"a whole number in 0..{most[column]:.0f}" if is_index[column] else "finite"
    raise ValueError(
        f"cond: {float(rows[row, column]):g} for {names[column]!r} in row {row}, must be NaN or"
        f" {rule}"
    )


def _last_index(condition: Condition) -> float:
    """Return the largest number of a kind that counts something; infinity for all others."""
    if condition.kind == "category":
        return len(condition.categories) - 1.0
    # Of a text, 0 is no word and 1 an unknown one.
    return len(condition.categories) + 1.0 if condition.kind == "text" else math.inf
