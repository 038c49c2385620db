"""``qvae info``: the facts that a report of a problem, or a timing, needs."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from qvae.cli.common import Parser, Result, add_common, parse, prepare

__all__ = ["run_info"]

_PACKAGES = ("torch", "numpy", "pillow", "safetensors", "jsonargparse", "jaxtyping")


def run_info(parser: Parser, words: Sequence[str]) -> Result:
    """Print versions, processor, threads, kernel path, device and precision."""
    add_common(parser, "device", "threads")
    args = parse(parser, words)
    device = prepare(args)
    import torch

    from qvae import __version__, kernels
    from qvae.train.engine import resolve_precision

    data: dict[str, Any] = {
        "qvae": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in _PACKAGES},
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cpu_features": _features(torch),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels": kernels.describe(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "precision": resolve_precision("auto", device),
    }
    return Result(data=data, text="\n".join(f"{key:<16}{_text(v)}" for key, v in data.items()))


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _features(torch: Any) -> list[str]:
    """Name the instruction sets that matter here and that torch finds."""
    checks = {
        "avx2": "_is_avx2_supported",
        "avx512": "_is_avx512_supported",
        "avx512_bf16": "_is_avx512_bf16_supported",
        "amx": "_is_amx_tile_supported",
    }
    return [name for name, check in checks.items() if getattr(torch.cpu, check, bool)()]
