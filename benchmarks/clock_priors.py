"""Three priors over the same tokens of clocks: who obeys the time best, and how fast?

    python benchmarks/clocks.py --runs RUNS train grid --seed 0    # the tokenizer and its tokens
    python benchmarks/clock_priors.py RUNS/grid-0 train            # PixelCNN and masked beside it
    python benchmarks/clock_priors.py RUNS/grid-0 score

The autoregressive transformer is the one of the grid route. The masked one has its size and its
steps; PixelCNN has its own recipe, about as many minutes. Each prior's sampler is the best of the
same few on 300 times of the training set; then the protocol of ``qvae eval --clocks``. Writes
``benchmarks/results/clock_priors.json``; both commands go on where they stopped.
"""

import argparse
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qvae.config import load_recipe
from qvae.data.clock_times import TRAIN_TIMES, split_of
from qvae.data.clocks import clock_hours
from qvae.metrics.clock_reader import read_clocks
from qvae.metrics.clock_score import score_reading
from qvae.priors.base import Prior
from qvae.reports.clocks import draw_times, evaluate, table
from qvae.runs.loading import Run, open_run, open_run_data
from qvae.runs.scores import evaluate_run
from qvae.runs.training import train_recipe
from qvae.store import write_json
from qvae.train.log import trained_machine, trained_seconds

RESULTS = Path(__file__).parent / "results"
LIKE_OURS = [
    ("prior.num_layers", 5),
    ("prior.dim", 192),
    ("prior.null_prob", 0.2),
    ("train.steps", 5000),
]
PRIORS: dict[str, tuple[str, str, list[tuple[str, Any]]]] = {
    "autoregressive": ("prior", "clock_grid_prior", []),
    "masked, 8 rounds": ("masked", "masked_prior", LIKE_OURS),
    "PixelCNN": ("pixelcnn", "pixelcnn_prior", [("prior.null_prob", 0.2)]),
}
"""Title -> folder beside the tokens, recipe, changes."""
TEMPERATURES, GUIDANCES = (0.7, 0.85, 1.0), (1.0, 1.5, 2.0)
TUNED, TIMED, ALONE = 300, 240, 20


def train(folder: Path, names: list[str]) -> None:
    """Train what is missing."""
    for title, (name, recipe, changes) in PRIORS.items():
        if not names or name in names:
            sys.stdout.write(f"{title}\n")
            told = [("data.path", str(folder / "tokens")), *changes]
            train_recipe(
                load_recipe(recipe, told), run=folder / name, resume=True, progress="force"
            )


def best_sampler(run: Run) -> dict[str, Any]:
    """Return the sampler that draws most trained times within a minute, and all that were tried."""
    minutes = np.random.default_rng(1).choice(TRAIN_TIMES, TUNED)
    tried = []
    for temperature, guidance in product(TEMPERATURES, GUIDANCES):
        settings = {"temperature": temperature, "guidance": guidance}
        reading = read_clocks(draw_times(run, minutes, seed=99, **settings))
        row = score_reading(reading, minutes, split_of(minutes))["all"]
        tried.append({**settings, "within_1": row["within_1"], "gross": row["gross"]})
        sys.stdout.write(f"{tried[-1]}\n")
        sys.stdout.flush()
    best = max(tried, key=lambda found: (found["within_1"], -found["gross"]))
    return {"settings": {name: best[name] for name in ("temperature", "guidance")}, "tried": tried}


def milliseconds(prior: Prior, settings: dict[str, float], *, num: int, batch: int) -> float:
    """Return the processor's milliseconds a sample, without the decoder."""
    start = time.process_time()
    for cond in clock_hours(TRAIN_TIMES[:num]).split(batch):
        prior.sample(len(cond), cond, seed=1, **settings)
    return 1000 * (time.process_time() - start) / num


def score(folder: Path) -> None:
    """Score all three and write the result."""
    rows = {}
    for title, (name, _, _) in PRIORS.items():
        run = open_run(folder / name)
        assert isinstance(run.model, Prior)
        sampler = best_sampler(run)
        settings = sampler["settings"]
        scores = evaluate(folder / name, **settings)
        sys.stdout.write(f"{title}\n{table(scores)}\n")
        rows[title] = {
            "sampler": sampler,
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "training_seconds": trained_seconds(folder / name),
            "bits_per_token": evaluate_run(run, open_run_data(run))["bits_per_token"],
            "cpu_ms_a_sample": milliseconds(run.model, settings, num=TIMED, batch=TIMED),
            "cpu_ms_alone": milliseconds(run.model, settings, num=ALONE, batch=1),
            "samples": scores["samples"],
            "style_variance_ratio": scores["style_variance_ratio"],
        }
    machine = trained_machine(folder / "masked")
    report = {
        "protocol": scores["protocol"] | {"sampler": "each prior's own"},
        "tuned_on": f"{TUNED} requests at times of the training set",
        "threads": torch.get_num_threads(),
        "machine": machine,
        "priors": rows,
    }
    write_json(RESULTS / "clock_priors.json", report)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the grid route: holds tokens and prior")
    parser.add_argument("--threads", type=int, help="default: all cores")
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train")
    trainer.add_argument("names", nargs="*", help="masked, pixelcnn; default: all")
    commands.add_parser("score")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.command == "train":
        train(args.folder, args.names)
    else:
        score(args.folder)


if __name__ == "__main__":
    main()
