"""Count wrong codes: every path of our search and every peer, on data made to be hard.

    pip install --group bench && pip install --no-deps pythae==0.1.2
    python benchmarks/mismatches.py        # a few minutes on one core

A code is wrong if it is not the lowest index of the least distance, where a distance is the float64
sum of squared differences in the order of the coordinates. So among codes that are equally near the
first is right; how many wrong codes are as near as that one is counted, too. The judge is a loop in
NumPy that shares no code with our paths. Peers are their own classes in evaluation, with the table
set; "cdist" is torch's ``cdist`` and ``argmin``, "expanded" is ``|z|^2 - 2 z.c + |c|^2`` in float32
as textbooks have it. Triton's programs are interpreted, on a few of the rows: not timed, not a GPU.
Writes ``benchmarks/results/mismatches.json``.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # triton reads it when it is imported

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qvae.kernels import nearest
from qvae.kernels.dispatch import PATHS, available
from qvae.reports.contestants import PEERS, on_path, peer_codes, why_absent
from qvae.reports.hard_data import HARD
from qvae.reports.machine import describe_machine
from qvae.store import write_json

RESULTS = Path(__file__).parent / "results"
ROWS, CODES, WIDTHS = 4096, 1024, (64, 8)
FEW = 64
"""Rows for Triton's interpreter."""


def exact(z: Tensor, codebook: Tensor) -> np.ndarray:
    """Float64 distances of some rows to all codes, summed in the order of the coordinates."""
    a, b = z.numpy().astype(np.float64), codebook.numpy().astype(np.float64)
    total = np.zeros((len(a), len(b)))
    for d in range(a.shape[1]):
        total += (a[:, d, None] - b[None, :, d]) ** 2
    return total


def expanded(z: Tensor, codebook: Tensor) -> Tensor:
    """The textbook's codes."""
    square = z.square().sum(1, keepdim=True) + codebook.square().sum(1)
    return (square - 2 * z @ codebook.T).argmin(1)


def ours(path: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Our search on one path."""

    def find(z: Tensor, codebook: Tensor) -> Tensor:
        with on_path(path):
            return nearest(z, codebook)

    return find


def contestants() -> tuple[dict[str, Callable[[Tensor, Tensor], Tensor]], dict[str, str]]:
    """Who takes part, and who does not and why."""
    absent = {name: why for name in PATHS if (why := available(name))}
    absent |= {name: why for name in PEERS if (why := why_absent(name))}
    found = {name: ours(name) for name in PATHS}
    found |= {"cdist": lambda z, codebook: torch.cdist(z, codebook).argmin(1)}
    found |= {"expanded": expanded}
    for name in PEERS:
        found[name] = lambda z, codebook, name=name: peer_codes(name, z, codebook)
    return {name: find for name, find in found.items() if name not in absent}, absent


def count(codes: Tensor, distances: np.ndarray) -> dict[str, int]:
    """Rows, wrong codes, and how many of the wrong ones are as near as the right one."""
    codes, every = codes.numpy(), np.arange(len(codes))
    is_wrong = codes != distances.argmin(1)  # NumPy's is the first of equals
    is_near = distances[every, codes] == distances.min(1)
    return {
        "rows": len(codes),
        "wrong": int(is_wrong.sum()),
        "as near": int((is_wrong & is_near).sum()),
    }


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    finders, absent = contestants()
    tables = []
    for dim in WIDTHS:
        kinds = {}
        for kind, make in HARD.items():
            z, codebook = make(ROWS, CODES, dim)
            distances = np.concatenate([exact(part, codebook) for part in z.split(512)])
            few = slice(None, None, len(z) // FEW)
            kinds[kind] = {
                name: count(find(z[few], codebook), distances[few])
                if name == "triton"
                else count(find(z, codebook), distances)
                for name, find in finders.items()
            }
            wrong = {name: found["wrong"] for name, found in kinds[kind].items() if found["wrong"]}
            print(f"D={dim} {kind}: {wrong or 'none wrong'}", flush=True)
        tables.append({"codes": CODES, "dim": dim, "kinds": kinds})
    report = {
        "machine": describe_machine(),
        "peers": {name: release for name, (_, release) in PEERS.items()},
        "absent": absent,
        "tables": tables,
    }
    write_json(RESULTS / "mismatches.json", report)


if __name__ == "__main__":
    main()
