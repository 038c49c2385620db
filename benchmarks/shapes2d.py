"""How many 2-D shapes a second one core draws: as pixels, and as the batches of training.

    python benchmarks/shapes2d.py

Writes ``benchmarks/results/shapes2d.json``: the median of 200 batches, and the quickest tenth, in
which other work on the machine hardly counts.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from qvae.data.shapes2d import Shapes2D
from qvae.data.shapes2d_renderer import ShapePictures
from qvae.store import write_json
from qvae.train.engine import running_engine
from qvae.train.log import describe_machine

RESULTS = Path(__file__).parent / "results"
BATCH, ROUNDS = 256, 200


def rate(take: Callable[[np.ndarray], object], num: int) -> dict[str, int]:
    """Return samples a second, at random places."""
    rows = np.random.default_rng(0).integers(0, num, (ROUNDS, BATCH))
    take(rows[0])
    seconds = []
    for some in rows:
        start = time.perf_counter()
        take(some)
        seconds.append(time.perf_counter() - start)
    shares = {"median": 0.5, "quickest_tenth": 0.1}
    return {name: round(BATCH / np.quantile(seconds, share)) for name, share in shares.items()}


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    data = Shapes2D()
    train = data.train()
    found = {
        "pixels": rate(ShapePictures().take, len(data)),
        "batches": rate(train.batch, len(train)),
    }
    with running_engine(device="cpu", precision="float32") as engine:
        machine = describe_machine(engine, seed=0)
    write_json(
        RESULTS / "shapes2d.json",
        {"images_per_second": found, "batch_size": BATCH, "machine": machine},
    )
    sys.stdout.write(f"images a second on one core: {found}\n")


if __name__ == "__main__":
    main()
