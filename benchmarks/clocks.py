"""The committed results of the routes to the clock, and the weights that ship.

    python benchmarks/clocks.py train style --seed 0    # hours: tokenizer, tokens, prior, scores
    python benchmarks/clocks.py train grid --seed 0
    python benchmarks/clocks.py train cvae              # no tokens: a Gaussian z, its prior learned
    python benchmarks/clocks.py train cvae_textbook     # the same with z ~ N(0, I)
    python benchmarks/clocks.py ship                    # the median style seed into the package

Each training writes ``benchmarks/results/clock_<route>_seed<n>.json`` and can be interrupted and
started again. Three seeds of a route may be trained on different days.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from qvae.clock import CLOCK_RUN
from qvae.config import dump_recipe, load_recipe
from qvae.pretrained import load_model, round_weights, save_model
from qvae.reports.clocks import evaluate, table
from qvae.runs.build import build_data
from qvae.runs.loading import open_run
from qvae.runs.tokens import encode_data
from qvae.runs.training import train_recipe
from qvae.store import write_json
from qvae.tokenizer import Tokenizer
from qvae.train.log import trained_machine, trained_seconds

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
TOKENS = ("style", "grid")
SHARPENED = ("grid",)
VAES: dict[str, list[tuple[str, Any]]] = {
    "cvae": [],
    "cvae_textbook": [("model.bottleneck.prior", "normal")],
}


def train(route: str, seed: int, runs: Path) -> None:
    """Train a route with one seed, score it, and write the result."""
    start = time.monotonic()
    run, seconds = (train_tokens if route in TOKENS else train_vae)(
        route, seed, runs / f"{route}-{seed}"
    )
    scores = evaluate(run, seed=seed)
    machine = trained_machine(run)
    report = {"route": route, "seed": seed, "training_seconds": seconds, "machine": machine}
    write_json(RESULTS / f"clock_{route}_seed{seed}.json", {**report, **scores})
    sys.stdout.write(table(scores) + f"\n{time.monotonic() - start:.0f} s this time\n")


def train_vae(route: str, seed: int, folder: Path) -> tuple[Path, dict[str, float]]:
    """Train a conditional VAE; return its run and the seconds."""
    recipe = load_recipe("clock_cvae", [("seed", seed), ("data.seed", seed), *VAES[route]])
    train_recipe(recipe, run=folder, resume=True, progress="force")
    return folder, {"vae": trained_seconds(folder)}


def train_tokens(route: str, seed: int, folder: Path) -> tuple[Path, dict[str, float]]:
    """Train both stages and round them to what ships; return the prior's run and the seconds."""
    seconds = {}
    recipe = load_recipe(f"clock_{route}", [("seed", seed), ("data.seed", seed)])
    train_recipe(recipe, run=folder / "tokenizer", resume=True, progress="force")
    seconds["tokenizer"] = trained_seconds(folder / "tokenizer")
    tokenizer, learned = folder / "rounded", folder / "tokenizer"
    if route in SHARPENED:
        recipe = load_recipe(f"clock_{route}_sharp", [("seed", seed), ("data.seed", seed)])
        learned = folder / "sharp"
        train_recipe(recipe, run=learned, resume=True, init=folder / "tokenizer", progress="force")
        seconds["sharp"] = trained_seconds(learned)
    if not tokenizer.exists():
        model = load_model(learned / "model")
        round_weights(model)
        Tokenizer(model).save_pretrained(tokenizer)
    if not (folder / "tokens").exists():
        data = build_data(recipe)
        encode_data(Tokenizer.from_pretrained(tokenizer), data, folder / "tokens")
    recipe = load_recipe(
        f"clock_{route}_prior", [("seed", seed), ("data.path", str(folder / "tokens"))]
    )
    train_recipe(recipe, run=folder / "prior", resume=True, progress="force")
    seconds["prior"] = trained_seconds(folder / "prior")
    model = load_model(folder / "prior" / "model")
    round_weights(model)
    save_model(model, folder / "prior" / "model")
    return folder / "prior", seconds


def ship(runs: Path) -> None:
    """Copy the median seed's prior and tokenizer into the package."""
    scores = {seed: _within(seed) for seed in SEEDS}
    found = {seed: value for seed, value in scores.items() if value is not None}
    if not found:
        sys.exit("no results yet: python benchmarks/clocks.py train style --seed 0")
    median = statistics.median_low(found.values())
    seed = next(seed for seed, value in found.items() if value == median)
    source = runs / f"style-{seed}" / "prior"
    shutil.rmtree(CLOCK_RUN, ignore_errors=True)
    CLOCK_RUN.mkdir(parents=True)
    for name in ("model", "tokenizer"):
        shutil.copytree(source / name, CLOCK_RUN / name)
    recipe = load_recipe(source / "recipe.yaml", [("data.path", "tokens")])  # no path of ours
    (CLOCK_RUN / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    open_run(CLOCK_RUN)
    size = sum(file.stat().st_size for file in CLOCK_RUN.rglob("*") if file.is_file())
    sys.stdout.write(f"seed {seed} of {sorted(found)}, {size / 1e6:.1f} MB\n")


def _within(seed: int) -> float | None:
    path = RESULTS / f"clock_style_seed{seed}.json"
    if not path.is_file():
        return None
    report: dict[str, Any] = json.loads(path.read_text())
    return float(report["samples"]["off_block"]["within_1"])


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/clocks"))
    parser.add_argument("--threads", type=int, help="default: all cores")
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train")
    trainer.add_argument("route", choices=[*TOKENS, *VAES])
    trainer.add_argument("--seed", type=int, default=0)
    commands.add_parser("ship")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.command == "train":
        train(args.route, args.seed, args.runs)
    else:
        ship(args.runs)


if __name__ == "__main__":
    main()
