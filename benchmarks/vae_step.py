"""A step of training a small VAE: our loop against pythae's trainer, at one architecture.

    pip install --group bench          # pythae 0.1.2
    python benchmarks/vae_step.py

784-500-500-20-500-500-784, ReLU, Bernoulli pixels, batch 100, 28x28 pictures in memory: where the
loop around the arithmetic counts. Both trainers do all they do in a step: read, collate, forward,
backward, Adam, their checks and their log. The variants take turns; the result is the median of the
rounds. Milliseconds are of the process's processor time, which other programs on the machine do not
stretch; wall time stands beside it. Writes ``benchmarks/results/vae_step.json``.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvae.autoencoder import build_autoencoder
from qvae.reports.machine import describe_machine
from qvae.store import write_json
from qvae.train import fit
from qvae.types import DataSpec

RESULTS = Path(__file__).parent / "results"
BATCH, DIM, WIDTH = 100, 20, 500
Run = Callable[[int], None]


def ours(x: Tensor, precision: str) -> Run:
    """Return a function that trains for some steps with our loop, from a new model."""
    network = {"name": "mlp", "hidden": [WIDTH, WIDTH], "activation": "relu"}
    config = {
        "encoder": {**network, "latent_dim": 2 * DIM},
        "bottleneck": {"name": "gaussian", "dim": DIM},
        "decoder": {**network, "latent_dim": DIM},
        "likelihood": {"name": "bernoulli"},
    }

    def run(steps: int) -> None:
        model = build_autoencoder(config, DataSpec(shape=(1, 28, 28)))
        with tempfile.TemporaryDirectory() as folder:
            fit(
                model,
                (x, None),
                run=folder,
                steps=steps,
                batch_size=BATCH,
                lr=1e-3,
                weight_decay=0.0,
                precision=precision,
                save_every=10**6,
                device="cpu",
                progress=False,
            )

    return run


def pythae(x: Tensor, precision: str) -> Run:
    """Return a function that trains for some steps with pythae's trainer.

    Its own mixed precision is for CUDA alone, so bf16 is put where that would be.
    """
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()
            )
            self.mean, self.log_var = nn.Linear(WIDTH, DIM), nn.Linear(WIDTH, DIM)

        def forward(self, x: Tensor) -> ModelOutput:
            h = self.layers(x.flatten(1))
            return ModelOutput(embedding=self.mean(h), log_covariance=self.log_var(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(DIM, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()
            )
            self.out = nn.Linear(WIDTH, 784)

        def forward(self, z: Tensor) -> ModelOutput:
            pixels = self.out(self.layers(z)).sigmoid()
            return ModelOutput(reconstruction=pixels.view(-1, 1, 28, 28))

    logging.getLogger("pythae").setLevel(logging.ERROR)
    folder = tempfile.mkdtemp()

    def run(steps: int) -> None:
        rows = x[: steps * BATCH]
        config = VAEConfig(input_dim=(1, 28, 28), latent_dim=DIM, reconstruction_loss="bce")
        trainer = BaseTrainer(
            model=VAE(config, encoder=Encoder(), decoder=Decoder()),
            train_dataset=BaseDataset(rows.float() / 255, torch.zeros(len(rows))),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                learning_rate=1e-3,
                no_cuda=True,
            ),
        )
        if precision == "bf16":
            trainer.amp_context = torch.autocast("cpu", dtype=torch.bfloat16)
        trainer.prepare_training()
        trainer.train_step(1)

    return run


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.randint(0, 256, (2 * args.steps * BATCH, 1, 28, 28), dtype=torch.uint8)
    runs = {
        "pythae, float32": pythae(x, "float32"),
        "pythae, bf16": pythae(x, "bf16"),
        "ours, float32": ours(x, "float32"),
        "ours, bf16": ours(x, "bf16"),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        run(5)
    for _ in range(args.rounds):
        for name, run in runs.items():
            found[name].append(_step(run, args.steps))
    cpu, wall = (
        {
            name: round(statistics.median(pair[i] for pair in pairs), 2)
            for name, pairs in found.items()
        }
        for i in (0, 1)
    )
    report: dict[str, Any] = {
        "what": "milliseconds a training step, whole loop, median of interleaved rounds",
        "batch": BATCH,
        "rounds": args.rounds,
        "machine": describe_machine(),
        "processor_milliseconds": cpu,
        "wall_milliseconds": wall,
        "at equal bf16": round(cpu["pythae, bf16"] / cpu["ours, bf16"], 2),
        "at equal float32": round(cpu["pythae, float32"] / cpu["ours, float32"], 2),
        "ours as it trains here (bf16)": round(cpu["pythae, float32"] / cpu["ours, bf16"], 2),
    }
    sys.stdout.write(f"{report}\n")
    write_json(RESULTS / "vae_step.json", report)


def _step(run: Run, steps: int) -> tuple[float, float]:
    """Milliseconds of a step: twice the steps less once, so that starting and saving cancel."""
    ends = []
    for count in (steps, 2 * steps):
        start = (time.process_time(), time.perf_counter())
        run(count)
        ends.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    (cpu, wall), (cpu2, wall2) = ends
    return 1e3 * (cpu2 - cpu) / steps, 1e3 * (wall2 - wall) / steps


if __name__ == "__main__":
    main()
