"""What a timing must be read with: the processor, and the memory that is free."""

import os
import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from qvae import kernels

__all__ = ["describe_machine", "forget_peak", "free_memory", "peak_memory"]

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe_machine() -> dict[str, Any]:
    """Name the processor, what it can, threads, torch, the search, and the card if there is one.

    ``cores`` is how many logical processors the system lets this process use, 1 if it is pinned to
    one; left out where the system does not say.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = {word for line in lines if line.startswith("flags") for word in line.split()}
    name = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")
    has_card = torch.cuda.is_available()
    card = {"gpu": torch.cuda.get_device_name()} if has_card else {}
    has_mask = hasattr(os, "sched_getaffinity")
    cores = {"cores": len(os.sched_getaffinity(0))} if has_mask else {}
    return card | {
        "cpu": name or platform.processor(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "threads": torch.get_num_threads(),
        **cores,
        "torch": torch.__version__.split("+")[0],
        "kernels": kernels.describe(),
    }


def free_memory() -> int | None:
    """Return the bytes that this machine can still give, or None where it does not say."""
    return _bytes("/proc/meminfo", "MemAvailable:")


def forget_peak(device: torch.device | None = None) -> int:
    """Let :func:`peak_memory` count from now on; return the bytes that are held now.

    A process starts with the peak of the one that made it, so a child has to forget it, too.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.init()  # a process that has not used it yet has no device to ask
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    held = _bytes("/proc/self/status", "VmRSS:")
    if held is None:
        return 0
    with suppress(OSError):  # a sandbox may forbid it: the peak then counts from the start
        Path("/proc/self/clear_refs").write_text("5")
    return held


def peak_memory(device: torch.device | None = None) -> int:
    """Return the most bytes held at once: of this process, or by torch on a GPU.

    Where the system has no ``/proc`` it is the most since the process began.

    Example:
        >>> before = forget_peak()
        >>> peak_memory() >= before
        True
    """
    if device is not None and device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = _bytes("/proc/self/status", "VmHWM:")
    if peak is not None:
        return peak
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _bytes(file: str, key: str) -> int | None:
    """Read a number of kilobytes from a file of the kernel's, None where it does not say."""
    if not Path(file).exists():
        return None
    lines = (line for line in Path(file).read_text().splitlines() if line.startswith(key))
    return next((int(line.split()[1]) * 1024 for line in lines), None)
