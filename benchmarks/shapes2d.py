"""How many 2-D shapes a second one core draws: as pixels, and as the batches of training.

    python benchmarks/shapes2d.py

Writes ``benchmarks/results/shapes2d.json``. Seconds are the processor's, so other work on the
machine does not count.
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


def rate(take: Callable[[np.ndarray], object], num: int) -> float:
    """Return samples a second of processor time, at random places."""
    rows = np.random.default_rng(0).integers(0, num, (ROUNDS, BATCH))
    take(rows[0])
    start = time.process_time()
    for some in rows:
        take(some)
    return ROUNDS * BATCH / (time.process_time() - start)


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    data = Shapes2D()
    train = data.train()
    found = {
        "pixels": rate(ShapePictures().take, len(data)),
        "batches": rate(train.batch, len(train)),
    }
    per_second = {name: round(value) for name, value in found.items()}
    with running_engine(device="cpu", precision="float32") as engine:
        machine = describe_machine(engine, seed=0)
    write_json(
        RESULTS / "shapes2d.json",
        {"images_per_cpu_second": per_second, "batch_size": BATCH, "machine": machine},
    )
    sys.stdout.write(f"images a second on one core: {per_second}\n")


if __name__ == "__main__":
    main()
