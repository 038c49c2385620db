"""Images in .npy and .npz files: nothing is unpickled, and a header is not believed unchecked.

Layouts: ``[N, H, W]``, ``[N, H, W, C]``, ``[N, C, H, W]`` with C 1 or 3. An axis of size 1 or 3
says where the channels are; when both the last axis and axis 1 could be, the last one is taken.

Values, by type:

    uint8       0..255                      bool       0 and 1
    integers    0..255, kept as uint8       floating   0..1
"""

import math
import zipfile
import zlib
from collections.abc import Iterable
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import numpy as np

from qvae.data.samples import Samples
from qvae.data.splits import column_parts
from qvae.errors import DataError

__all__ = [
    "checked_range",
    "images_from_array",
    "load_npy",
    "load_npz",
    "open_npy",
    "read_npy_header",
]

_IMAGE_KEYS, _LABEL_KEYS = ("x", "images"), ("y", "labels", "label")
_MAX_RATIO = 1100  # deflate cannot shrink more than about 1,032 times
_DAMAGE = (OSError, EOFError, ValueError, SyntaxError, MemoryError, RecursionError)


def read_npy_header(
    file: BufferedIOBase, where: str, size: int
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read an .npy header and check it against the size of the whole, without loading.

    Raises:
        DataError: not .npy, Python objects or records, or a size that the header denies.
    """
    readers = {(1, 0): np.lib.format.read_array_header_1_0}
    readers[2, 0] = np.lib.format.read_array_header_2_0
    try:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise DataError(f"{where}: .npy version {version} is not for arrays of numbers")
        shape, is_fortran, dtype = readers[version](file)
    except DataError:
        raise
    # The header is Python literal text from a stranger: parsing it fails in many ways.
    except Exception as error:
        raise DataError(
            f"{where}: not a sound .npy file ({str(error).split(chr(10))[0]})"
        ) from None
    if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
        raise DataError(f"{where}: dtype {dtype} holds Python objects or records, needs numbers")
    if any(type(axis) is not int or axis < 0 for axis in shape):
        raise DataError(f"{where}: the header's shape {shape} is not a shape")
    promised = file.tell() + math.prod(shape) * dtype.itemsize
    if promised != size:
        raise DataError(
            f"{where}: the header promises {promised} bytes (shape {shape}, {dtype}), "
            f"there are {size}"
        )
    return shape, is_fortran, dtype


def open_npy(path: Path) -> np.ndarray:
    """Map an .npy file read-only after checking its header against its size.

    Raises:
        DataError: the file is damaged, or holds Python objects.
    """
    try:
        with open(path, "rb") as file:
            shape, is_fortran, dtype = read_npy_header(file, str(path), path.stat().st_size)
            offset = file.tell()
        if math.prod(shape) == 0:
            return np.empty(shape, dtype)
        order: Any = "F" if is_fortran else "C"
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order=order)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                where = f"{path}[{name}]"
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise DataError(f"{where}: unknown compression {info.compress_type}")
                if info.file_size > _MAX_RATIO * min(info.compress_size, path.stat().st_size):
                    raise DataError(f"{where}: promises {info.file_size} bytes, which cannot be")
                with archive.open(info) as file:
                    read_npy_header(cast(BufferedIOBase, file), where, info.file_size)
                with archive.open(info) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
                    file.read(1)  # to the end, where the checksum is compared
    except DataError:
        raise
    except (*_DAMAGE, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise DataError(f"{path}: not a sound .npz file ({reason})") from None
    return arrays


def images_from_array(array: np.ndarray, name: str) -> np.ndarray:
    """Check an array of images and return it as ``[N, C, H, W]``, a view where that is possible.

    Raises:
        DataError: another layout, NaN or Inf, a constant, values that break the rule of their
            type; the message names the array, what was found and the rule.
    """
    shape = array.shape
    layouts = "[N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3"
    if array.ndim not in (3, 4) or 0 in shape:
        raise DataError(f"{name}: shape {shape}, needs {layouts}, no axis empty")
    if array.ndim == 3 and shape[-1] in (1, 3):
        raise DataError(f"{name}: shape {shape} looks like one image, needs {layouts}")
    if array.ndim == 3:
        array = array[:, None]
    elif shape[-1] in (1, 3):
        array = np.moveaxis(array, -1, 1)
    elif shape[1] not in (1, 3):
        raise DataError(f"{name}: shape {shape} has no axis for the channels, needs {layouts}")
    return _checked_values(array, name)


def checked_range(
    pieces: Iterable[np.ndarray], name: str, *, can_be_constant: bool = False
) -> tuple[float, float]:
    """Return the least and the greatest of all values, read in one pass.

    Raises:
        DataError: NaN or Inf, or one and the same value everywhere; names what ``name`` is.
    """
    low, high = math.inf, -math.inf
    for piece in pieces:
        # min and max carry a NaN along, and Inf is one of them if it is there.
        low, high = float(np.minimum(low, piece.min())), float(np.maximum(high, piece.max()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{name}: holds NaN or Inf, needs finite values")
    if low == high and not can_be_constant:
        raise DataError(f"{name}: every value is {low:g}, a constant has nothing to learn")
    return low, high


def _checked_values(array: np.ndarray, name: str) -> np.ndarray:
    kind = array.dtype.kind
    if kind not in "buif" or array.dtype.itemsize > 8:
        raise DataError(f"{name}: dtype {array.dtype}, needs uint8, bool, integers or floats")
    low, high = checked_range((array[i : i + 256] for i in range(0, len(array), 256)), name)
    if kind == "f" and not (low >= 0 and high <= 1):
        raise DataError(
            f"{name}: {array.dtype} values from {low:g} to {high:g}, floats need [0, 1] "
            "(or save 0..255 as uint8)"
        )
    if kind in "iu" and not (low >= 0 and high <= 255):
        raise DataError(
            f"{name}: {array.dtype} values from {low:g} to {high:g}, integers need 0..255"
        )
    if kind in "iu" and high <= 1:
        raise DataError(
            f"{name}: {array.dtype} values are 0 and 1 only, integers mean 0..255; "
            "save binary images as bool"
        )
    return array.astype(np.uint8) if kind in "iu" and array.dtype != np.uint8 else array


def _index_keys(num: int) -> list[bytes]:
    return [str(row).encode() for row in range(num)]


def load_npy(path: Path) -> Samples:
    """Read images from an .npy file; it stays memory-mapped where its type allows."""
    x = images_from_array(open_npy(path), path.name)
    return Samples(x=x, keys=_index_keys(len(x)))


def load_npz(path: Path) -> Samples:
    """Read images from an .npz file.

    The images are the array "x" or "images", or the only array there is. Every other array of
    shape ``[N]`` is a column by its name ("y" and "labels" are called "label"), one of numbers
    ``[N, D]`` a column of vectors; a column "split" tells the parts.

    Raises:
        DataError: no such array, or one that :func:`images_from_array` refuses.
    """
    arrays = _read_npz(path)
    keys = [key for key in _IMAGE_KEYS if key in arrays] or list(arrays)
    if len(keys) != 1:
        known = ", ".join(arrays) or "nothing"
        raise DataError(f"{path}: holds {known}; needs the images as 'x' or the only array")
    x = images_from_array(arrays.pop(keys[0]), f"{path.name}[{keys[0]}]")
    columns, vectors = {}, {}
    for key, values in arrays.items():
        if values.shape in ((len(x),), (len(x), 1)) and values.dtype.kind in "buifU":
            name = "label" if key in _LABEL_KEYS else key
            columns[name] = [str(value) for value in values.ravel().tolist()]
        elif key in _LABEL_KEYS:
            raise DataError(f"{path}[{key}]: shape {values.shape} for {len(x)} images")
        elif values.ndim == 2 and len(values) == len(x) and values.dtype.kind in "buif":
            vectors[key] = values
    told = column_parts(columns, str(path))
    return Samples(x=x, keys=_index_keys(len(x)), columns=columns, vectors=vectors, told=told)
