"""The native library: found beside the package, loaded with ctypes, called with plain pointers."""

import ctypes
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["ENGINES", "engines", "load", "nearest"]

ENGINES = ("avx2", "avx512", "avx512bf16", "amx")
"""In the library's own order, which is also from the slowest to the fastest."""

_FILE = "_native.so"
_NO_MEMORY = 2


@cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and the reason why there is none."""
    path = _find()
    if path is None:
        return None, "the native library was not built when qvae was installed (no C++ compiler?)"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"the native library does not load: {error}"
    library.qvae_engines.restype = ctypes.c_uint
    library.qvae_nearest.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int),
    ]
    return library, ""


def _find() -> Path | None:
    """Look beside this file, and where an editable installation puts what was built."""
    places = [Path(__file__).with_name(_FILE)]
    with suppress(PackageNotFoundError):
        places.append(Path(str(distribution("qvae").locate_file(f"qvae/kernels/{_FILE}"))))
    return next((place for place in places if place.is_file()), None)


@cache
def engines() -> tuple[str, ...]:
    """Name the engines of the library that this processor can run."""
    library, _ = load()
    found = library.qvae_engines() if library is not None else 0
    return tuple(name for bit, name in enumerate(ENGINES) if found >> bit & 1)


def nearest(z: Tensor, codebook: Tensor, engine: str) -> Tensor:
    """Search float32 rows on the CPU with one engine, on as many threads as torch may use.

    Raises:
        MemoryError: there was none for the tiles.
    """
    library, reason = load()
    assert library is not None, reason
    z, codebook = z.contiguous(), codebook.contiguous()
    codes = torch.empty(len(z), dtype=torch.int64)
    failed = library.qvae_nearest(
        ENGINES.index(engine),
        *(z.data_ptr(), codebook.data_ptr()),
        *(len(z), len(codebook), z.shape[1], codes.data_ptr(), torch.get_num_threads()),
    )
    if failed == _NO_MEMORY:
        raise MemoryError(f"no memory to search {len(codebook)} codes of {z.shape[1]} numbers")
    assert not failed, f"{engine} cannot run here"
    return codes
