"""IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped.

Format (Yann LeCun's page "THE MNIST DATABASE"): two zero bytes, the type (8 = unsigned byte), the
number of axes, each size as a big-endian 32-bit integer, then the values in C order.
"""

import gzip
import math
import re
import struct
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from qvae.data.arrays import images_from_array
from qvae.data.samples import Samples
from qvae.errors import DataError

__all__ = ["is_idx_name", "load_idx", "load_idx_folder", "read_idx"]

_NAME = re.compile(r"(.*?)images[-.]idx[34]-ubyte(\.gz)?", re.IGNORECASE)
_TEST = ("t10k", "test")
# Deflate cannot shrink more than about 1,032 times: a header that promises more is false.
_MAX_RATIO = 1100


def is_idx_name(name: str) -> bool:
    """Tell whether a file name is that of IDX images, such as train-images-idx3-ubyte.gz."""
    return _NAME.fullmatch(name) is not None


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes.

    Raises:
        DataError: not IDX, another type than unsigned byte, or a size that its header denies.
    """
    try:
        with open(path, "rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            limit = path.stat().st_size * (_MAX_RATIO if is_gzip else 1)
            if not is_gzip:
                return _read_stream(raw, path, limit)
            with gzip.open(raw) as stream:
                return _read_stream(stream, path, limit)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason})") from None


def _read_stream(stream: BufferedIOBase, path: Path, limit: int) -> np.ndarray:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or not 1 <= magic[3] <= 4:
        raise DataError(f"{path}: not an IDX file (it starts with {magic.hex() or 'nothing'})")
    if magic[2] != 8:
        raise DataError(f"{path}: IDX type 0x{magic[2]:02x}, needs 0x08 (unsigned bytes)")
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise DataError(f"{path}: the IDX header is cut off")
    shape = struct.unpack(f">{magic[3]}I", header)
    size = math.prod(shape)
    if size > limit:
        raise DataError(f"{path}: the header promises {shape} values, the file is too small")
    data = stream.read(size + 1)
    if len(data) != size:
        more = "more" if len(data) > size else f"only {len(data)}"
        raise DataError(f"{path}: the header promises {shape} = {size} values, there are {more}")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _labels_beside(path: Path, num: int) -> dict[str, list[str]]:
    """Find and read the labels of an images file; no column when there is no such file."""
    stem = path.name.removesuffix(".gz")
    start = stem.lower().rindex("images")
    tail = stem[start + 6 :].replace("idx3", "idx1").replace("idx4", "idx1")
    for name in (f"{stem[:start]}labels{tail}", f"{stem[:start]}labels{tail}.gz"):
        labels_path = path.with_name(name)
        if labels_path.is_file():
            labels = read_idx(labels_path)
            if labels.shape != (num,):
                raise DataError(
                    f"{labels_path}: labels of shape {labels.shape} for {num} images in {path.name}"
                )
            return {"label": [str(value) for value in labels.tolist()]}
    return {}


def load_idx(path: Path) -> Samples:
    """Read one IDX file of images, with the labels file beside it as the column "label"."""
    x = images_from_array(read_idx(path), path.name)
    columns = _labels_beside(path, len(x)) if is_idx_name(path.name) else {}
    return Samples(x=x, keys=[str(row).encode() for row in range(len(x))], columns=columns)


def load_idx_folder(paths: list[Path]) -> Samples:
    """Read the IDX images files of a folder: one, or one for training and one for testing.

    The t10k (or test) file is the test part. Labels are kept when both files have them.

    Raises:
        DataError: other files than these, or images of two shapes.
    """
    plain = {path.name.removesuffix(".gz"): path for path in sorted(paths, reverse=True)}
    chosen = sorted(plain.values())
    tests = [path for path in chosen if any(word in path.name.lower() for word in _TEST)]
    trains = [path for path in chosen if path not in tests]
    if len(trains) > 1 or len(tests) > 1 or not trains:
        names = ", ".join(path.name for path in chosen)
        raise DataError(
            f"{chosen[0].parent}: holds {names}; needs one IDX file of training images and at "
            "most one of test images (t10k-... or test-...), else give the file itself"
        )
    train = load_idx(trains[0])
    if not tests:
        return train
    test = load_idx(tests[0])
    if train.x.shape[1:] != test.x.shape[1:]:
        raise DataError(
            f"{tests[0]}: images of shape {test.x.shape[1:]}, "
            f"{trains[0].name} has {train.x.shape[1:]}"
        )
    both = train.columns.keys() & test.columns.keys()
    return Samples(
        x=np.concatenate([train.x, test.x]),
        keys=train.keys + [b"test-" + key for key in test.keys],
        told=["train"] * len(train.x) + ["test"] * len(test.x),
        columns={name: train.columns[name] + test.columns[name] for name in both},
    )
