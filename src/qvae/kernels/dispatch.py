"""Which path the nearest-code search takes on this machine, and why."""

import logging
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from qvae.errors import UsageError
from qvae.kernels import native, reference, tiled

__all__ = ["PATHS", "available", "describe", "search"]

PATHS = ("reference", "torch", *native.ENGINES, "triton")
"""What ``QVAE_KERNEL`` may name."""

_SHALLOW = 16
"""Below this width bfloat16's band holds too many candidates to pay."""


def search(z: Tensor, codebook: Tensor) -> Tensor:
    """Search float32 (or float64) rows on the path that fits them, or the one that is forced.

    Raises:
        UsageError: ``QVAE_KERNEL`` names a path that is unknown, or that cannot run here.
    """
    path = _path(z)
    with torch.autocast(z.device.type, enabled=False):
        return _functions()[path](z, codebook)


def available(path: str, device: str = "cpu") -> str:
    """Return why a path cannot run on this kind of device, or nothing if it can."""
    if path in ("reference", "torch"):
        return ""
    if path == "triton":
        return _why_no_triton(device)
    if device != "cpu":
        return f"it searches on the CPU, not on {device}"
    library, reason = native.load()
    if library is None:
        return reason
    return "" if path in native.engines() else "this processor lacks it"


def describe() -> str:
    """Name the path that the search takes on this machine's CPU, and why.

    Example:
        >>> describe().split()[0] in PATHS
        True
    """
    forced = os.environ.get("QVAE_KERNEL")
    if forced:
        return f"{_forced(forced, 'cpu')} (set by QVAE_KERNEL)"
    best = _best_engine()
    if best is None:
        library, reason = native.load()
        engines = ", ".join(native.ENGINES)
        return f"torch ({reason if library is None else f'this processor has none of {engines}'})"
    return f"{best} (native library; this processor runs {', '.join(native.engines())})"


def _why_no_triton(device: str) -> str:
    if find_spec("triton") is None:
        return "triton is not installed"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it runs on cuda, not on {device} (where TRITON_INTERPRET=1 would interpret it)"
    return ""


def _triton(z: Tensor, codebook: Tensor) -> Tensor:
    from qvae.kernels import triton_search  # triton is slow to import, and seldom there

    with torch.cuda.device_of(z):  # triton launches on the current device
        return triton_search.nearest(z, codebook)


def _path(z: Tensor) -> str:
    device = z.device.type
    forced = os.environ.get("QVAE_KERNEL")
    path = _forced(forced, device) if forced else None
    if z.dtype == torch.float64:
        return "reference"
    if path:
        return path
    if device == "cpu":
        _say_once()
        best = _best_engine()
        is_shallow = z.shape[1] < _SHALLOW and best in ("avx512bf16", "amx")
        return "avx512" if is_shallow else best or "torch"
    return "triton" if device == "cuda" and not available("triton", device) else "torch"


def _best_engine() -> str | None:
    return native.engines()[-1] if native.engines() else None


def _forced(name: str, device: str) -> str:
    if name not in PATHS:
        raise UsageError(f"QVAE_KERNEL={name}: must be one of {', '.join(PATHS)}")
    reason = available(name, device)
    if reason:
        raise UsageError(f"QVAE_KERNEL={name}: cannot be used, {reason}")
    return name


@cache
def _say_once() -> None:
    """Tell at the first search, and not at import, that it could be faster."""
    if _best_engine() is None:
        logging.getLogger("qvae.kernels").warning("nearest-code search: %s", describe())


@cache
def _functions() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    def with_engine(name: str) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda z, codebook: native.nearest(z, codebook, name)

    return {
        "reference": reference.nearest,
        "torch": tiled.nearest,
        "triton": _triton,
        **{name: with_engine(name) for name in native.ENGINES},
    }
