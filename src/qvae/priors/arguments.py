"""What the arguments of a draw or a score must be: one of another type is refused by its name.

Nothing converts them later: a seed of 1.5 would be cut to 1, and a bool counts as a number.
"""

import math
from numbers import Integral, Real
from typing import Any

from torch import Tensor

__all__ = ["as_number", "check_tensors", "check_whole"]


def check_whole(name: str, value: Any, *, least: int | None = None) -> None:
    """Refuse what is no whole number, of Python or numpy, or one below ``least`` if there is one.

    Raises:
        ValueError: naming the argument, its value and the rule.

    Example:
        >>> check_whole("num", 2.5, least=0)
        Traceback (most recent call last):
        ValueError: num=2.5: must be a whole number >= 0
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or (least is not None and value < least):
        bound = "" if least is None else f" >= {least}"
        raise ValueError(f"{name}={value!r}: must be a whole number{bound}")


def as_number(name: str, value: Any) -> float:
    """Return a real number of any type as a float; an integer too large for one is infinite.

    Raises:
        ValueError: naming the argument and its value.

    Example:
        >>> as_number("temperature", "0.5")
        Traceback (most recent call last):
        ValueError: temperature='0.5': must be a number
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: must be a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_tensors(**values: Any) -> None:
    """Refuse what is no tensor.

    Raises:
        ValueError: naming the argument and the type of its value.

    Example:
        >>> check_tensors(known=[1, 2])
        Traceback (most recent call last):
        ValueError: known: must be a tensor, came list
    """
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: must be a tensor, came {type(value).__name__}")
