"""Timings side by side: contestants take turns in one process, and memory is a child's own."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from qvae.kernels.dispatch import PATHS, available
from qvae.reports.contestants import (
    PEER_BYTES,
    PEERS,
    make_search,
    make_step,
    on_path,
    why_absent,
)
from qvae.reports.machine import describe_machine, forget_peak, free_memory, peak_memory

__all__ = ["SHAPES", "bench", "race"]

SHAPES = {
    "nearest": [
        (4096, 512, 64),
        (4096, 8192, 64),
        (4096, 8192, 256),
        (4096, 65536, 64),
        (4096, 8192, 8),
        (4096, 65536, 8),
        (4096, 262144, 8),
    ],
    "quantizer": [(4096, 512, 64), (4096, 8192, 64), (4096, 8192, 8)],
}
"""Bench -> (vectors N, codes K, width D) in the order in which they are measured."""

_SEARCHES = ("product", "product in tiles", *(p for p in PATHS if p != "reference"), "cdist")
_PATIENCE = 4.0
"""Seconds of one contestant at one shape, after which it takes no further turns."""


def bench(
    what: str,
    *,
    rounds: int = 15,
    shapes: list[tuple[int, int, int]] | None = None,
    has_memory: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure every contestant at every shape.

    Args:
        what: ``nearest`` (the search) or ``quantizer`` (its part of a training step).
        rounds: turns of each contestant, >= 1; slow ones take fewer.
        shapes: (N, K, D) in place of :data:`SHAPES`.
        has_memory: whether each contestant also runs in a process of its own, for its peak.
        progress: is told what is measured next.

    Returns:
        The machine, and for each shape the milliseconds (median and best) and the peak memory in
        MB of each contestant, or the reason why it did not run.

    Example:
        >>> found = bench("nearest", rounds=1, shapes=[(8, 4, 2)], has_memory=False)
        >>> found["rows"][0]["contestants"]["torch"]["rounds"]
        1
    """
    names = (*_SEARCHES, *PEERS) if what == "nearest" else ("ours", "torch", *PEERS)
    rows = []
    for n, k, d in SHAPES[what] if shapes is None else shapes:
        progress(f"{what}: N={n} K={k} D={d}")
        z, codebook = _data(n, k, d)
        absent = {name: reason for name in names if (reason := _why_not(name, n, k))}
        runs = {}
        for name in names:
            if name not in absent:
                with on_path(name):
                    runs[name] = _make(what, name, z, codebook)
        measured = race(runs, rounds=rounds)
        for name in runs if has_memory else ():
            if not name.startswith("product"):
                measured[name]["megabytes"] = _peak_memory(what, name, n, k, d)
        contestants: dict[str, Any] = {**measured, **absent}
        rows.append({"shape": [n, k, d], "contestants": contestants})
    return {
        "what": _WHAT[what],
        "clock": "CPU time" if torch.get_num_threads() == 1 else "wall time",
        "rounds": rounds,
        "machine": describe_machine(),
        "peers": {name: release for name, (_, release) in PEERS.items()},
        "rows": rows,
    }


_WHAT = {
    "nearest": "find the nearest of K codes for N vectors of width D; peers: eval forward",
    "quantizer": "a quantizer's part of a training step; ours is vq_ema",
}


def race(
    runs: Mapping[str, Callable[[], Any]], *, rounds: int, patience: float = _PATIENCE
) -> dict[str, dict[str, Any]]:
    """Let contestants take turns; return median and best milliseconds, and how many turns.

    With one thread the clock is the process's CPU time: what others do on the same core does not
    count. With more it is the wall's.

    Example:
        >>> race({"nothing": lambda: None}, rounds=3)["nothing"]["rounds"]
        3
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):  # the first turn warms up
        for name, run in runs.items():
            if sum(times[name]) > patience:
                continue
            with on_path(name):
                start = clock()
                run()
                seconds = clock() - start
            if turn or seconds > patience:
                times[name].append(seconds)
    return {
        name: {
            "median_ms": round(1e3 * statistics.median(found), 3),
            "best_ms": round(1e3 * min(found), 3),
            "rounds": len(found),
        }
        for name, found in times.items()
    }


def _make(what: str, name: str, z: torch.Tensor, codebook: torch.Tensor) -> Callable[[], Any]:
    if what == "nearest":
        return make_search(name, z, codebook)
    return make_step(name, z, len(codebook))


def _data(n: int, k: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)


def _why_not(name: str, n: int, k: int) -> str:
    """Return why a contestant does not run at a size, or nothing."""
    if name in PATHS:
        return available(name)
    reason = why_absent(name)
    needed = PEER_BYTES.get(name, 0) * n * k
    free = free_memory()
    if not reason and free is not None and needed > 0.8 * free:
        return f"would need about {needed / 1e9:.0f} GB"
    return reason


def _peak_memory(what: str, name: str, n: int, k: int, d: int) -> float | None:
    """Megabytes that one call takes on top of its inputs, in a process of its own."""
    words = [sys.executable, "-m", "qvae.reports.bench", what, name, *map(str, (n, k, d))]
    child = subprocess.run(words, capture_output=True, text=True, check=False)
    if child.returncode:
        return None
    return float(json.loads(child.stdout.splitlines()[-1])["megabytes"])


def _probe(what: str, name: str, n: int, k: int, d: int) -> float:
    """Measure in this process: warm up at a small size, then note how far the peak moves."""
    torch.set_num_threads(1)
    with on_path(name):
        _make(what, name, *_data(64, 64, d))()
        run = _make(what, name, *_data(n, k, d))
        start = forget_peak()
        run()
    return (peak_memory() - start) / 1e6


if __name__ == "__main__":
    job, contestant, *sizes = sys.argv[1:]
    peak = _probe(job, contestant, *map(int, sizes))
    sys.stdout.write(json.dumps({"megabytes": round(peak, 1)}) + "\n")
