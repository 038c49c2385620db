"""What an argument must be: one of another type is refused by its name.

Nothing converts them later: a seed of 1.5 would be cut to 1, and a bool counts as a number.
"""

import math
from numbers import Integral, Real
from typing import Any

from torch import Tensor

__all__ = ["as_number", "check_tensors", "check_whole", "is_number", "is_whole"]


def is_whole(value: Any) -> bool:
    """Tell whether a value is an integer, of Python or of NumPy.

    Example:
        >>> is_whole(2), is_whole(2.0), is_whole(True)
        (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Tell whether a value is a real number, of Python or of NumPy, and no bool.

    Example:
        >>> is_number(2), is_number(2.5), is_number("2"), is_number(True)
        (True, True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def check_whole(name: str, value: Any, *, least: int | None = None) -> None:
    """Refuse what is no whole number, of Python or numpy, or one below ``least`` if there is one.

    Raises:
        ValueError: naming the argument, its value and the rule.

    Example:
        >>> check_whole("num", 2.5, least=0)
        Traceback (most recent call last):
        ValueError: num=2.5: must be a whole number >= 0
    """
    if not is_whole(value) or (least is not None and value < least):
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
    if not is_number(value):
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
