"""How long a recipe trains on this machine, with one thread and with more, from a few steps of it.

    python benchmarks/training_minutes.py NAME=RUN [NAME=RUN ...] [--encode NAME=RUN ...]

NAME is what to call the run's recipe. Long trainings are often measured on one core, beside other
work. This trains each run's recipe anew for a few steps in a scratch folder, once for each number
of threads, alone on the machine: ``steps * seconds of a step + evaluations * seconds of one``. The
slow first steps are left out. A run of ``--encode`` has some of its samples drawn (or read) and
made tokens, for the time of all. Writes ``benchmarks/results/training_minutes.json``.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from qvae.config import load_recipe
from qvae.reports.machine import describe_machine
from qvae.runs.loading import open_run, open_run_data
from qvae.runs.tokens import batches_of
from qvae.runs.training import train_recipe
from qvae.store import write_json

RESULTS = Path(__file__).parent / "results"
WARM, STEPS = 20, 60
SAMPLES = 4096


def seconds_of(recipe_file: Path, threads: int) -> dict[str, float]:
    """Return the seconds of a step and of an evaluation."""
    torch.set_num_threads(threads)
    changes = [("train.steps", STEPS), ("train.log_every", WARM), ("train.eval_every", STEPS)]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        recipe = load_recipe(recipe_file, changes)
        init = recipe_file.parent if recipe.train.get("frozen") else None
        train_recipe(recipe, run=run, init=init, progress=False)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    at = {(row["split"], row["step"]): row["seconds"] for row in rows}
    step = (at["train", STEPS] - at["train", WARM]) / (STEPS - WARM)
    return {"step": step, "evaluation": at["valid", STEPS] - at["train", STEPS]}


def training_row(run: Path, threads: int) -> dict[str, Any]:
    """Measure how long a run's recipe trains."""
    train = load_recipe(run / "recipe.yaml").train
    seconds = seconds_of(run / "recipe.yaml", threads)
    evaluations = train["steps"] // train["eval_every"]
    spent = train["steps"] * seconds["step"] + evaluations * seconds["evaluation"]
    return {"steps": train["steps"], "seconds": seconds, "minutes": spent / 60}


def encoding_row(run: Path, threads: int) -> dict[str, Any]:
    """Measure how long the tokens of all of a run's samples take, to draw or read them too."""
    torch.set_num_threads(threads)
    opened = open_run(run)
    data, tokenizer = open_run_data(opened), opened.require_tokenizer()
    num = sum(len(split) for split in (data.train(), data.valid(), data.test()))
    batches = batches_of(data.train(), label="encode", most=SAMPLES)
    first = next(batches)
    tokenizer.encode(first.x, first.cond)
    start = time.perf_counter()
    encoded = sum(len(tokenizer.encode(batch.x, batch.cond)) for batch in batches)
    seconds = (time.perf_counter() - start) / encoded
    return {"samples": num, "seconds": {"sample": seconds}, "minutes": num * seconds / 60}


def named(word: str) -> tuple[str, Path]:
    """Read ``NAME=RUN``."""
    name, _, run = word.partition("=")
    return name, Path(run)


def main() -> None:
    """Time every run's recipe, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=named, metavar="NAME=RUN")
    parser.add_argument("--encode", nargs="+", type=named, metavar="NAME=RUN", default=())
    parser.add_argument("--threads", nargs="+", type=int, default=(1, os.cpu_count() or 1))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    report: dict[str, Any] = {"machine": describe_machine(), "measured_steps": STEPS}
    report |= {"measured_samples": SAMPLES, "rows": []}
    work = [(name, run, training_row) for name, run in args.runs]
    work += [(name, run, encoding_row) for name, run in args.encode]
    for name, run, measure in work:
        for threads in args.threads:
            row = {"recipe": name, "threads": threads, **measure(run, threads)}
            report["rows"].append(row)
            sys.stdout.write(f"{row}\n")
            sys.stdout.flush()
    write_json(args.results / "training_minutes.json", report)


if __name__ == "__main__":
    main()
