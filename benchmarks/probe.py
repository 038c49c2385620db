"""Linear probe on Fashion-MNIST: 32 numbers of an AE or a VAE, beside PCA, pixels and k-NN.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist*.deb fashion
    python benchmarks/probe.py fashion/usr/share/datasets/fashion-mnist

Writes ``benchmarks/results/probe.json``. Started again after an interruption it goes on.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from qvae.config import load_recipe
from qvae.reports.probe import probe_run, probe_table
from qvae.reports.timer import Timer
from qvae.runs.loading import open_run, open_run_data
from qvae.runs.training import train_recipe
from qvae.store import read_json, write_json
from qvae.train.log import trained_seconds

RESULTS = Path(__file__).parent / "results"
RECIPE = Path(__file__).parent / "probe.yaml"
MODELS = {"AE": "identity", "VAE": "gaussian"}


def main() -> None:
    """Train, probe, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder with the idx files")
    parser.add_argument("--runs", type=Path, default=Path("runs/probe"))
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    seconds: dict[str, float] = {}
    report: dict[str, Any] = {"data": "Fashion-MNIST", "steps": args.steps, "models": {}}
    for title, bottleneck in MODELS.items():
        changes = [
            ("data.path", str(args.data)),
            ("model.bottleneck", bottleneck),
            ("model.bottleneck.dim", 32),
            ("train.steps", args.steps),
        ]
        run = args.runs / title.lower()
        train_recipe(load_recipe(str(RECIPE), changes), run=run, resume=True)
        seconds[f"train {title}"] = trained_seconds(run)
        opened = open_run(run)
        with Timer(seconds, f"probe {title}"):
            found = probe_run(opened, open_run_data(opened), column="label")
        report["models"][title] = found
        sys.stdout.write(f"{title}\n{probe_table(found)}\n")
    machine = read_json(args.runs / "ae" / "env.json")
    write_json(args.results / "probe.json", {**report, "seconds": seconds, "machine": machine})


if __name__ == "__main__":
    main()
