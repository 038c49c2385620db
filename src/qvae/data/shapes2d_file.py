"""The original dSprites file: read as a stream into one bit a pixel (377 MB in place of 3 GB)."""

import math
import zipfile
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Int, UInt8

from qvae.data.arrays import read_npy_header
from qvae.errors import DataError

__all__ = ["PackedPictures"]

_SIDE = 64
_ROWS = 4096  # read and packed at a time


class PackedPictures:
    """The pictures of an ``.npz`` with ``imgs [N, 64, 64]`` and ``latents_classes [N, 6]``.

    The classes must be the whole lattice in its order, a constant column (the colour) first; so the
    place of a picture says what it shows. Nothing is unpickled: the metadata stay unread.

    Args:
        path: the file.
        sizes: how many values each factor takes, slowest first.

    Raises:
        DataError: it cannot be read, an array is missing or has another shape, a pixel is neither
            0 nor 1, or the rows are in another order.
    """

    def __init__(self, path: Path, sizes: tuple[int, ...]) -> None:
        num = math.prod(sizes)
        try:
            with zipfile.ZipFile(path) as archive:
                classes = _open(archive, path, "latents_classes", (num, 1 + len(sizes)))
                _check_order(_read_all(classes, archive, path), sizes, path)
                self._bits = _read_bits(archive, path, num)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: not a sound .npz file ({error})") from None

    def take(self, rows: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B 64 64"]:
        """Return the pictures at these rows, of zeros and ones."""
        return np.unpackbits(self._bits[rows], axis=1).reshape(-1, _SIDE, _SIDE)


def _open(
    archive: zipfile.ZipFile, path: Path, name: str, shape: tuple[int, ...]
) -> zipfile.ZipInfo:
    """Find an array and check what its header says."""
    names = [item.removesuffix(".npy") for item in archive.namelist()]
    if name not in names:
        raise DataError(f"{path}: holds {', '.join(names) or 'nothing'}; needs {name}")
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        found, is_fortran, dtype = read_npy_header(
            cast(BufferedIOBase, file), f"{path}[{name}]", info.file_size
        )
    if found != shape or is_fortran or dtype.kind not in "biu":
        raise DataError(f"{path}[{name}]: {dtype} of shape {found}, needs integers of {shape}")
    return info


def _read_all(info: zipfile.ZipInfo, archive: zipfile.ZipFile, path: Path) -> np.ndarray:
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_order(classes: np.ndarray, sizes: tuple[int, ...], path: Path) -> None:
    expected = np.stack(np.unravel_index(np.arange(len(classes)), sizes), axis=1)
    wrong = (classes[:, 1:] != expected).any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{path}[latents_classes]: row {row} is {classes[row].tolist()}, needs "
            f"{[0, *expected[row].tolist()]}: the last factor must change fastest"
        )


def _read_bits(archive: zipfile.ZipFile, path: Path, num: int) -> UInt8[np.ndarray, "N 512"]:
    """Read the pictures some rows at a time, eight pixels to a byte."""
    info = _open(archive, path, "imgs", (num, _SIDE, _SIDE))
    bits = np.empty((num, _SIDE * _SIDE // 8), dtype=np.uint8)
    with archive.open(info) as file:
        _, _, dtype = read_npy_header(cast(BufferedIOBase, file), str(path), info.file_size)
        for start in range(0, num, _ROWS):
            rows = min(_ROWS, num - start)
            data = file.read(rows * _SIDE * _SIDE * dtype.itemsize)
            pixels = np.frombuffer(data, dtype=dtype).reshape(rows, -1)
            if pixels.max() > 1 or pixels.min() < 0:
                wrong = pixels[(pixels > 1) | (pixels < 0)][0]
                raise DataError(f"{path}[imgs]: has the value {wrong}, needs 0 and 1 only")
            bits[start : start + rows] = np.packbits(pixels.astype(bool), axis=1)
    return bits
