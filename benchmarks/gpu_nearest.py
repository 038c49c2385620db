"""The nearest-code search on a GPU, beside cdist + argmin, flash-kmeans, and bare products.

    pip install flash-kmeans==0.3.1
    python benchmarks/gpu_nearest.py [--sweep]

The contestants take turns in one process; a time is the median of CUDA events around one call. Each
answer is compared with float64 on a random sample of rows. ``--sweep`` first times the launches
that our kernel knows, and prints them. Writes ``benchmarks/results/gpu_nearest.json``.

flash-kmeans' assignment gets its squared norms ready made, and its own choice of launch. Of float32
it multiplies TF32, of float16 float16: its answers are those of rounded scores, and it says so.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvae.kernels import nearest, reference, triton_search
from qvae.kernels.band import place_codes
from qvae.store import write_json

RESULTS = Path(__file__).parent / "results"
SHAPES = ((1 << 20, 8192, 64, 9), (1 << 20, 65536, 64, 5), (1 << 20, 65536, 8, 5))
"""N, K, D, and rounds."""
TINY = ((300, 200, 64, 1), (300, 200, 8, 1))
SAMPLE = 20_000
CELLS = 1 << 28
"""Scores that are there at a time."""
Call = Callable[[], Tensor | None]


def contestants(z: Tensor, codebook: Tensor) -> dict[str, Call | str]:
    """Return what can run, and why the others cannot."""
    half_norm = codebook.square().sum(1) / 2
    z16, codebook16 = z.half(), codebook.half()
    return {
        "ours": lambda: nearest(z, codebook),
        "cdist + argmin": cdist(z, codebook),
        "flash-kmeans, float32 (TF32)": flash(z, codebook),
        "flash-kmeans, float16": flash(z16, codebook16),
        "mm + argmin in chunks, float32": lambda: chunked(z, codebook, half_norm),
        "product alone, float32": lambda: product(z, codebook),
        "product alone, float16": lambda: product(z16, codebook16),
    }


def cdist(z: Tensor, codebook: Tensor) -> Call | str:
    """The two lines that everybody writes, where memory allows."""
    need = 4 * len(z) * len(codebook) * 1.1
    if z.is_cuda and need > torch.cuda.mem_get_info()[0]:
        return f"would need about {need / 1e9:.0f} GB"
    return lambda: torch.cdist(z, codebook).argmin(1)


def flash(z: Tensor, codebook: Tensor) -> Call | str:
    """flash-kmeans' assignment, its inputs prepared outside the clock."""
    try:
        from flash_kmeans.assign_euclid_triton import euclid_assign_triton
    except ImportError as error:
        return f"not installed: {error}"
    if not z.is_cuda:
        return "it runs on cuda only"
    x, centroids = z[None], codebook[None]
    x_sq, c_sq = (rows.float().square().sum(-1) for rows in (x, centroids))
    out = torch.empty(x_sq.shape, dtype=torch.int32, device=z.device)
    return lambda: euclid_assign_triton(x, centroids, x_sq, out, c_sq)[0]


def chunked(z: Tensor, codebook: Tensor, half_norm: Tensor) -> Tensor:
    """Scores of some rows at a time, by torch's product."""
    rows = z.split(max(1, CELLS // len(codebook)))
    return torch.cat(
        [torch.addmm(half_norm, some, codebook.T, alpha=-1).argmin(1) for some in rows]
    )


def product(z: Tensor, codebook: Tensor) -> None:
    """The matrix product and nothing else, into memory that is there already."""
    rows = max(1, CELLS // len(codebook))
    out = z.new_empty(min(rows, len(z)), len(codebook))
    for some in z.split(rows):
        torch.mm(some, codebook.T, out=out[: len(some)])


def milliseconds(call: Call) -> float:
    """Time one call, on the GPU's own clock if there is one."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def judge(call: Call, rows: Tensor, expected: Tensor) -> tuple[int | None, float | None]:
    """Mismatches on the sample, and peak memory in MB. The first call also compiles."""
    is_cuda = torch.cuda.is_available()
    call()
    if is_cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    found = call()
    peak = (torch.cuda.max_memory_allocated() - before) / 1e6 if is_cuda else None
    wrong = None if found is None else int((found[rows].long() != expected).sum())
    return wrong, peak if peak is None else round(peak, 1)


def measure(num: int, size: int, dim: int, rounds: int, device: str) -> dict[str, Any]:
    """Let the contestants take turns on one shape."""
    z, codebook = gaussian(num, size, dim, device)
    rows = torch.randperm(num, generator=torch.Generator().manual_seed(2))[:SAMPLE].to(device)
    expected = reference.nearest(z[rows], codebook)
    calls: dict[str, Call] = {}
    lines: dict[str, dict[str, Any]] = {}
    for name, call in contestants(z, codebook).items():
        if isinstance(call, str):
            lines[name] = {"skipped": call}
            continue
        try:
            wrong, peak = judge(call, rows, expected)
        except (RuntimeError, AssertionError) as error:  # out of memory, or no kernel for it
            lines[name] = {"skipped": str(error).splitlines()[0][:200]}
            continue
        calls[name], lines[name] = call, {"mismatches": wrong, "peak MB": peak}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(milliseconds(call))
    ours = statistics.median(times["ours"])
    for name, values in times.items():
        median = statistics.median(values)
        lines[name] |= {
            "median ms": round(median, 3),
            "best ms": round(min(values), 3),
            "times ours": round(median / ours, 2),
        }
    shape = {"N": num, "K": size, "D": dim, "rounds": rounds, "sample": len(rows)}
    return shape | {"rows in doubt": doubts(z, codebook), "contestants": lines}


def doubts(z: Tensor, codebook: Tensor) -> dict[str, float]:
    """The shares of rows that the tensor cores leave to float64: four codes, or all."""
    codes = place_codes(codebook)
    if codes is None:
        raise ValueError("codebook: must be finite")
    launch = triton_search.choose(z.shape[1])
    doubt = triton_search.prefilter(z, codes, launch)[2]
    return {name: float((doubt == level).float().mean()) for name, level in (("4", 1), ("all", 2))}


def gaussian(num: int, size: int, dim: int, device: str) -> tuple[Tensor, Tensor]:
    """Rows and codes from one normal distribution."""
    generator = torch.Generator(device).manual_seed(0)
    z = torch.randn(num, dim, generator=generator, device=device)
    return z, torch.randn(size, dim, generator=generator, device=device)


def sweep(num: int, size: int, dim: int, device: str) -> None:
    """Print the time of each launch: the whole search, and the tensor cores' part of it."""
    z, codebook = gaussian(num, size, dim, device)
    codes = place_codes(codebook)
    for launch in triton_search.CONFIGS:
        calls: dict[str, Call] = {
            "search": lambda launch=launch: triton_search.nearest(z, codebook, launch),
            "prefilter": lambda launch=launch: triton_search.prefilter(z, codes, launch)[0],
        }
        try:
            for call in calls.values():
                call()
            found = {
                name: statistics.median(milliseconds(call) for _ in range(5))
                for name, call in calls.items()
            }
        except Exception as error:  # a launch that this device cannot hold says so in many ways
            found = {f"cannot run: {str(error).splitlines()[0][:120]}": 0.0}
        say(f"K={size} D={dim} {launch}: {found}")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "triton", "flash-kmeans"):
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true", help="time our launches first")
    parser.add_argument("--interpreted", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = "cpu" if args.interpreted else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("it needs a CUDA device")
    shapes = TINY if args.interpreted else SHAPES
    if args.sweep:
        for num, size, dim, _ in shapes:
            sweep(num, size, dim, device)
    report: dict[str, Any] = {
        "what": "nearest code of float32 rows; medians of interleaved rounds, CUDA events",
        "device": "interpreter" if args.interpreted else torch.cuda.get_device_name(),
        "versions": versions(),
        "launch": {str(dim): asdict(triton_search.choose(dim)) for _, _, dim, _ in shapes},
        "shapes": [],
    }
    for shape in shapes:
        report["shapes"].append(measure(*shape, device))
        say(str(report["shapes"][-1]))
    if not args.interpreted:
        write_json(RESULTS / "gpu_nearest.json", report)


if __name__ == "__main__":
    main()
