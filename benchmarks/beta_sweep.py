"""What beta does: rate and distortion of one VAE on Fashion-MNIST, beta from .1 to 16, 3 seeds.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist*.deb fashion
    python benchmarks/beta_sweep.py fashion/usr/share/datasets/fashion-mnist

Writes ``benchmarks/results/beta_sweep.json``. Started again after an interruption it goes on.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qvae.autoencoder import Autoencoder
from qvae.config import load_recipe
from qvae.data.base import Split
from qvae.metrics.rate_split import active_units, split_rate
from qvae.runs.loading import open_run, open_run_data
from qvae.runs.training import train_recipe
from qvae.store import read_json, write_json
from qvae.train.engine import own_random_numbers, resolve_device
from qvae.train.log import trained_machine, trained_seconds

RESULTS = Path(__file__).parent / "results"
RECIPE = Path(__file__).parent / "beta_sweep.yaml"
BETAS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


@torch.no_grad()
def score(model: Autoencoder, split: Split, *, num: int) -> dict[str, float]:
    """Return rate, distortion, the rate's two parts and the active units, on test samples."""
    means, log_vars, nll = [], [], 0.0
    num, device = min(num, len(split)), next(model.parameters()).device
    with own_random_numbers(device):
        torch.manual_seed(0)
        for start in range(0, num, 500):
            batch = split.batch(np.arange(start, min(start + 500, num))).to(device)
            mean, log_var = model.bottleneck.posterior(model.embed(batch.x))
            nll += model(batch).nll.double().sum().item()
            means.append(mean)
            log_vars.append(log_var)
    mean = torch.cat(means)
    found = split_rate(mean, torch.cat(log_vars))
    return {
        "distortion": nll / num,
        "rate": found.rate,
        "mutual_information": found.mutual_information,
        "marginal_kl": found.marginal_kl,
        "standard_error": found.standard_error,
        "active_units": active_units(mean),
        "n": num,
    }


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder with the idx files")
    parser.add_argument("--runs", type=Path, default=Path("runs/beta_sweep"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--betas", nargs="+", type=float, default=BETAS, help="some, to share work")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = []
    for beta in args.betas:
        for seed in range(args.seeds):
            rows.append(train(beta, seed, args))
            sys.stdout.write(f"{rows[-1]}\n")
    if tuple(args.betas) != BETAS:
        sys.stdout.write("not all betas: no result is written\n")
        return
    seconds = {f"beta{row['beta']:g}_seed{row['seed']}": row.pop("seconds") for row in rows}
    machines: list[dict[str, Any]] = []
    for row in rows:
        machine = {key: value for key, value in row.pop("machine").items() if key != "seed"}
        machines += [] if machine in machines else [machine]
    head = {"data": "Fashion-MNIST, test split", "unit": "nats/sample", "steps": args.steps}
    write_json(
        args.results / "beta_sweep.json",
        {**head, "rows": rows, "seconds": seconds, "machines": machines},
    )
    summary(rows)


def train(beta: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and score one VAE, or read what an earlier call found."""
    run = args.runs / f"beta{beta:g}_seed{seed}"
    if (run / "scores.json").exists():
        found: dict[str, Any] = read_json(run / "scores.json")
        return found
    changes = [
        ("data.path", str(args.data)),
        ("model.beta", beta),
        ("train.steps", args.steps),
        ("seed", seed),
    ]
    recipe = load_recipe(str(RECIPE), changes)
    train_recipe(recipe, run=run, resume=True, device=args.device)
    opened = open_run(run, device=resolve_device(args.device))
    found = score(opened.model, open_run_data(opened).test(), num=10_000)
    machine = trained_machine(run)
    row = {"beta": beta, "seed": seed, **found}
    row |= {"seconds": trained_seconds(run), "machine": machine}
    write_json(run / "scores.json", row)
    return row


def summary(rows: list[dict[str, Any]]) -> None:
    """Print the means over seeds, and whether they go one way."""
    names = ("rate", "distortion", "mutual_information", "marginal_kl", "active_units")
    means = {
        beta: {n: float(np.mean([row[n] for row in rows if row["beta"] == beta])) for n in names}
        for beta in BETAS
    }
    for beta, row in means.items():
        values = "  ".join(f"{name} {value:8.2f}" for name, value in row.items())
        sys.stdout.write(f"beta {beta:5.2f}  {values}\n")
    rates = np.array([row["rate"] for row in means.values()])
    errors = np.array([row["distortion"] for row in means.values()])
    sys.stdout.write(
        f"rate falls: {bool((np.diff(rates) < 0).all())}; "
        f"distortion rises: {bool((np.diff(errors) > 0).all())}\n"
    )


if __name__ == "__main__":
    main()
