"""Fashion-MNIST, all the way: three ways to make codes, then a prior and samples by class.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist*.deb fashion
    python benchmarks/fashion.py fashion/usr/share/datasets/fashion-mnist

Writes ``benchmarks/results/fashion.json`` and ``fashion_samples.png`` (a row a class). Started
again after an interruption it goes on.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from qvae.config import load_recipe
from qvae.reports.timer import Timer
from qvae.runs.loading import open_run, open_run_data
from qvae.runs.sampling import sample_run
from qvae.runs.scores import evaluate_run
from qvae.runs.tokens import decode_tokens, encode_data
from qvae.runs.training import train_recipe
from qvae.store import read_json, write_json
from qvae.train.log import trained_seconds

RESULTS = Path(__file__).parent / "results"
TOKENIZERS = {
    "conv f=4, 7x7 codes": "vqvae",
    "patches 4x4, 7x7 codes": "vqvae_patch",
    "one index a sample": "vqvae_one",
}
SAMPLES_A_CLASS = 16


def main() -> None:
    """Train, score, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder with the idx files")
    parser.add_argument("--runs", type=Path, default=Path("runs/fashion"))
    args = parser.parse_args()
    seconds: dict[str, float] = {}
    report: dict[str, Any] = {"data": "Fashion-MNIST, test split 10,000", "tokenizers": {}}
    for title, name in TOKENIZERS.items():
        changes = [("data.path", str(args.data)), ("data.cond", "label")]
        train_recipe(load_recipe(name, changes), run=args.runs / name, resume=True)
        seconds[name] = trained_seconds(args.runs / name)
        run = open_run(args.runs / name)
        scores = evaluate_run(run, open_run_data(run))
        report["tokenizers"][title] = {"recipe": name, "scores": scores}
    report["prior"] = prior(args.runs, seconds)
    machine = read_json(args.runs / "prior" / "env.json")
    write_json(RESULTS / "fashion.json", {**report, "seconds": seconds, "machine": machine})
    for title, row in report["tokenizers"].items():
        values = {key: score["value"] for key, score in row["scores"].items()}
        sys.stdout.write(f"{title}: {values}\n")
    sys.stdout.write(f"prior: {report['prior']['scores']}\n{seconds}\n")


def prior(runs: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Write tokens of the convolutional VQ-VAE, learn them by class, sample and decode."""
    run = open_run(runs / "vqvae")
    tokens = runs / "tokens"
    if not tokens.exists():
        with Timer(seconds, "encode"):
            encode_data(run.require_tokenizer(), open_run_data(run), tokens)
    recipe = load_recipe("token_prior", [("data.path", str(tokens))])
    train_recipe(recipe, run=runs / "prior", resume=True)
    seconds["prior"] = trained_seconds(runs / "prior")
    run = open_run(runs / "prior")
    data = open_run_data(run)
    with Timer(seconds, "decode 100 test samples"):
        decode_tokens(run.require_tokenizer(), data, runs / "decoded", splits=("test",), most=100)
    rows = []
    with Timer(seconds, "sample by class"):
        for label in run.conditions[0].categories:
            rows.append(sample_run(run, num=SAMPLES_A_CLASS, cond={"label": label}))
    pixels = (torch.stack(rows)[:, :, 0].clamp(0, 1) * 255).round().byte().numpy()
    sheet = pixels.transpose(0, 2, 1, 3).reshape(28 * len(rows), 28 * SAMPLES_A_CLASS)
    Image.fromarray(np.repeat(np.repeat(sheet, 2, 0), 2, 1)).save(RESULTS / "fashion_samples.png")
    return {"recipe": "token_prior", "scores": evaluate_run(run, data)}


if __name__ == "__main__":
    main()
