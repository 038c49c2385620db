"""How well one rung parts the factors of the 2-D shapes: the median of three seeds.

    python benchmarks/shapes2d_rung.py [--device cuda]

The three seeds are fixed here. How the recipe was chosen is in docs/disentanglement.md.
Scores are those of ``qvae eval --disentanglement`` with 10,000 points a metric. Each row says on
what it was trained, and in how long; ``benchmarks/training_minutes.py`` says how long the same
recipe takes on a processor. Started again after an interruption it goes on. Writes
``benchmarks/results/shapes2d_factor.json``.
"""

import argparse
import statistics
import sys
from pathlib import Path

from qvae.config import load_recipe
from qvae.reports.disentanglement import disentanglement_table, evaluate_disentanglement
from qvae.reports.machine import describe_machine
from qvae.runs.loading import open_run, open_run_data
from qvae.runs.training import train_recipe
from qvae.store import read_json, write_json
from qvae.train.engine import resolve_device
from qvae.train.log import trained_seconds

RESULTS = Path(__file__).parent / "results"
RECIPE = "shapes2d_factor"
SEEDS = (0, 1, 2)


def trained_on(run: Path) -> str:
    """Name what trained a run: the graphics processor, or the processor and its threads."""
    env = read_json(run / "env.json")
    if env["device"] == "cpu":
        return f"{env['processor']}, {env['num_threads']} thread(s)"
    return str(env["device"])


def main() -> None:
    """Train and score each seed, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs") / RECIPE)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        run, file = args.runs / f"seed{seed}", args.runs / f"seed{seed}" / "disentanglement.json"
        recipe = load_recipe(RECIPE, [("seed", seed)])
        train_recipe(recipe, run=run, resume=True, device=args.device)
        if not file.exists():
            opened = open_run(run, device=resolve_device(args.device))
            scores = evaluate_disentanglement(opened, open_run_data(opened))
            spent = {"seconds": trained_seconds(run), "trained_on": trained_on(run)}
            write_json(file, {"seed": seed, **spent, "scores": scores})
        rows.append(read_json(file))
        sys.stdout.write(f"seed {seed}\n{disentanglement_table(rows[-1]['scores'])}")
    names = rows[0]["scores"]
    medians = {n: statistics.median(row["scores"][n]["value"] for row in rows) for n in names}
    sys.stdout.write(f"medians: {medians}\n")
    if tuple(args.seeds) == SEEDS:
        report = {"recipe": RECIPE, "machine": describe_machine(), "medians": medians}
        write_json(RESULTS / f"{RECIPE}.json", {**report, "rows": rows})


if __name__ == "__main__":
    main()
