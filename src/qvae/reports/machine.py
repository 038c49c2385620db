"""What a timing must be read with: the processor, and the memory that is free."""

import platform
from pathlib import Path
from typing import Any

import torch

from qvae import kernels

__all__ = ["describe_machine", "free_memory"]

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe_machine() -> dict[str, Any]:
    """Name the processor, its instruction sets, the threads, torch and the kernel path."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = {word for line in lines if line.startswith("flags") for word in line.split()}
    name = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")
    return {
        "cpu": name or platform.processor(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
        "kernels": kernels.describe(),
    }


def free_memory() -> int | None:
    """Return the bytes that this machine can still give, or None where it does not say."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    for line in info.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
