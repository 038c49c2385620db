"""Which sampler draws clocks best at times that its prior never saw and no score is of.

    python benchmarks/clocks.py --runs RUNS train grid --seed 0
    python benchmarks/clock_sampler.py RUNS/grid-0 train     # a prior of its own, no dev times
    python benchmarks/clock_sampler.py RUNS/grid-0 score

The dev times are chosen as the test's are: a block, the thirty training times from 9:10 to 9:49,
and sixty others at random. A second prior learns the same tokens without theirs. Every
sampler of a grid draws them, and the one with the best mean of both shares within a minute (then
the fewest gross errors) is scored on the test times, with the prior that saw all of the training
set; beside it the recipe's. The protocol has 160 drawings in the test's block, a standard error of
3 points, so the block is drawn once more, forty times a time. The tokenizer is told no time.
Writes ``benchmarks/results/clock_grid_sampler.json``; both commands go on where they stopped.
"""

import argparse
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qvae.config import load_recipe
from qvae.data.clock_times import BLOCK_TIMES, TRAIN_TIMES, split_of
from qvae.data.tokens import TokenData, TokenWriter
from qvae.metrics.clock_reader import read_clocks
from qvae.metrics.clock_score import score_reading
from qvae.reports.clocks import draw_times, evaluate, table
from qvae.runs.loading import Run, open_run
from qvae.runs.tokens import batches_of
from qvae.runs.training import copy_folder, train_recipe
from qvae.store import read_json, write_json
from qvae.train.log import trained_machine, trained_seconds

RESULTS = Path(__file__).parent / "results"
BLOCK = np.intersect1d(TRAIN_TIMES, np.arange(9 * 60 + 10, 9 * 60 + 50))
RANDOM = np.sort(
    np.random.RandomState(909).choice(np.setdiff1d(TRAIN_TIMES, BLOCK), 60, replace=False)
)
DEV = {"block": BLOCK, "random": RANDOM}
TEMPERATURES, GUIDANCES = (0.5, 0.7, 0.85, 1.0), (1.0, 1.5, 2.0, 2.5, 3.0)
STYLES, BLOCK_STYLES = 8, 40
"""Drawings of a dev time, and of a time of the test's block."""


def train(folder: Path, seed: int) -> None:
    """Write the tokens again without those at dev times, and train a prior on them."""
    told, without = TokenData(folder / "tokens"), folder / "tokens_dev"
    if not without.exists():
        leave_out(told, without)
    recipe = load_recipe("clock_grid_prior", [("seed", seed), ("data.path", str(without))])
    train_recipe(recipe, run=folder / "prior_dev", resume=True, progress="force")


def leave_out(told: TokenData, path: Path) -> None:
    """Copy the train and valid tokens whose time is no dev time."""
    dev = np.concatenate(list(DEV.values()))
    writer = TokenWriter(
        path,
        grid=told.grid,
        codebook_sizes=told.codebook_sizes,
        tokenizer_hash=told.tokenizer_hash,
        conditions=told.spec.conditions,
    )
    with writer:
        for name, split in (("train", told.train()), ("valid", told.valid())):
            for batch in batches_of(split, label=name):
                assert batch.cond is not None, "clocks have a time"
                minutes = (batch.cond[:, 0].double() * 60).round(decimals=3).floor().numpy()
                keep = ~np.isin(minutes, dev)
                writer.write(name, batch.x[keep], batch.cond[keep])
        copy_folder(told.path / "tokenizer", writer.folder / "tokenizer")


def try_samplers(run: Run) -> list[dict[str, Any]]:
    """Score every sampler on the dev times, the best one first."""
    minutes = np.concatenate([np.tile(times, STYLES) for times in DEV.values()])
    parts = np.concatenate([np.full(len(times) * STYLES, name) for name, times in DEV.items()])
    kept = run.path / "samplers.json"
    tried: list[dict[str, Any]] = read_json(kept) if kept.is_file() else []
    for temperature, guidance in list(product(TEMPERATURES, GUIDANCES))[len(tried) :]:
        settings: dict[str, Any] = {"temperature": temperature, "guidance": guidance}
        reading = read_clocks(draw_times(run, minutes, seed=99, **settings))
        rows = score_reading(reading, minutes, parts)
        found = {name: {key: rows[name][key] for key in ("within_1", "gross", "n")} for name in DEV}
        tried.append({**settings, **found})
        write_json(kept, tried)
        sys.stdout.write(f"{tried[-1]}\n")
        sys.stdout.flush()
    return sorted(tried, key=rank, reverse=True)


def rank(row: dict[str, Any]) -> tuple[float, float]:
    """How good a sampler is on the dev times."""
    within, gross = (sum(row[name][key] for name in DEV) for key in ("within_1", "gross"))
    return within, -gross


def draw_block(run: Run, **settings: Any) -> dict[str, Any]:
    """Score many drawings of the test's block."""
    minutes = np.tile(BLOCK_TIMES, BLOCK_STYLES)
    reading = read_clocks(draw_times(run, minutes, seed=5, **settings))
    return {**settings, **score_reading(reading, minutes, split_of(minutes))["block"]}


def score(folder: Path, seed: int) -> None:
    """Choose a sampler on dev times, score it on the test's, and write the result."""
    tried = try_samplers(open_run(folder / "prior_dev"))
    chosen = {name: tried[0][name] for name in ("temperature", "guidance")}
    scores = evaluate(folder / "prior", seed=seed, **chosen)
    run = open_run(folder / "prior")
    assert run.recipe is not None, "a run of clocks.py has one"
    blocks = [draw_block(run, **settings) for settings in (chosen, run.recipe.sample)]
    recipes = evaluate(folder / "prior", seed=seed)
    sys.stdout.write(f"{chosen}\n{table(scores)}\n{blocks}\n")
    steps = load_recipe(folder / "tokenizer").train["steps"]
    report = {
        "seed": seed,
        "tokenizer_steps": steps,
        "dev": {name: {"times": len(times), "styles": STYLES} for name, times in DEV.items()},
        "tried": tried,
        "chosen": chosen,
        "block": blocks,
        "recipe": {name: recipes[name] for name in ("samples", "style_variance_ratio")},
        "training_seconds": trained_seconds(folder / "prior_dev"),
        "machine": trained_machine(folder / "prior_dev"),
    }
    write_json(RESULTS / "clock_grid_sampler.json", {**report, **scores})


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the grid route: holds tokens and prior")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("command", choices=["train", "score"])
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    (train if args.command == "train" else score)(args.folder, args.seed)


if __name__ == "__main__":
    main()
