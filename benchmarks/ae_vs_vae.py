"""Autoencoder against VAE, one net, on Fashion-MNIST: what the KL term buys, in four measurements.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist*.deb fashion
    python benchmarks/fashion_classifier.py fashion/usr/share/datasets/fashion-mnist
    python benchmarks/ae_vs_vae.py fashion/usr/share/datasets/fashion-mnist

1. Samples: decode z from N(0, I), and from a Gaussian fitted to the codes; Frechet distance of
   10,000 samples from the test part, on two feature networks.
2. Interpolation: lengths of the steps between decoded pictures on straight lines between codes.
3. Smoothness: how far the reconstruction moves when the input moves a little.
4. Reconstruction: mean squared error, for what the KL costs.

Writes ``benchmarks/results/ae_vs_vae.json`` and a grid of samples for each model. Started again
after an interruption it goes on.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qvae.autoencoder import Autoencoder
from qvae.config import load_recipe
from qvae.metrics.classifier_features import load_fashion_features
from qvae.metrics.frechet import FeatureStatistics, RandomConvFeatures, frechet_distance
from qvae.reports.sheets import save_frames, sheet
from qvae.runs.loading import open_run, open_run_data
from qvae.runs.training import train_recipe
from qvae.store import read_json, write_json
from qvae.train.log import trained_seconds

RESULTS = Path(__file__).parent / "results"
RECIPE = Path(__file__).parent / "ae_vs_vae.yaml"
KINDS = {"AE": "identity", "VAE": "gaussian"}
PAIRS, STEPS, NUDGE = 500, 20, 0.02


def decode(model: Autoencoder, z: Tensor) -> Tensor:
    """Decode codes to pictures, a few hundred at a time."""
    return torch.cat([model.likelihood.mean(model.decode(part)) for part in z.split(500)])


def fitted_normal(z: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Draw from the Gaussian with the codes' mean and covariance."""
    root = torch.linalg.cholesky(z.T.cov() + 1e-6 * torch.eye(z.shape[1]))
    return z.mean(0) + torch.randn(num, z.shape[1], generator=generator) @ root.T


def distances(networks: list[Any], real: Tensor, made: Tensor) -> dict[str, float]:
    """Return the Frechet distance on each feature network."""
    found = {}
    for network in networks:
        two = []
        for x in (real, made):
            statistics = FeatureStatistics(network.dim)
            for part in x.split(500):
                statistics.update(network(part))
            two.append(statistics)
        found[network.name] = frechet_distance(*two)
    return found


def walks(model: Autoencoder, z: Tensor) -> dict[str, float]:
    """Walk on straight lines between codes and measure the steps of what is decoded.

    A jump is a step much longer than its walk's others; a detour is a walk much longer than the
    distance between its ends.
    """
    share = torch.linspace(0, 1, STEPS + 1)[None, :, None]
    ends = z[: min(2 * PAIRS, len(z) // 2 * 2)].view(-1, 2, 1, z.shape[1])
    path = (1 - share) * ends[:, 0] + share * ends[:, 1]
    x = decode(model, path.flatten(0, 1)).view(len(ends), STEPS + 1, -1)
    lengths = x.diff(dim=1).norm(dim=-1)
    direct = (x[:, -1] - x[:, 0]).norm(dim=-1)
    return {
        "largest step / mean step": (lengths.amax(1) / lengths.mean(1)).mean().item(),
        "length / distance of ends": (lengths.sum(1) / direct).mean().item(),
        "mean step": lengths.mean().item(),
        "largest step": lengths.amax().item(),
    }


def nudges(model: Autoencoder, x: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Move each input by a little noise and measure how far code and reconstruction move."""
    moved = (x + NUDGE * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    before, after = (model.bottleneck.mode(model.embed(part)) for part in (x, moved))
    spread = before.std(dim=0)
    change = (decode(model, after) - decode(model, before)).flatten(1).norm(dim=1)
    step = (moved - x).flatten(1).norm(dim=1)
    return {
        "output change / input change": (change / step).mean().item(),
        "code change / code spread": ((after - before) / spread).norm(dim=1).mean().item(),
    }


@torch.no_grad()
def measure(model: Autoencoder, x: Tensor, codes: Tensor, networks: list[Any], grid: Path) -> Any:
    """Take all measurements of a model on test pictures; ``codes`` are those of training."""
    generator = torch.Generator().manual_seed(0)
    z = model.bottleneck.mode(model.embed(x))
    draws = {
        "z from N(0, I)": torch.randn(len(x), z.shape[1], generator=generator),
        "z from the fitted Gaussian": fitted_normal(codes, len(x), generator),
    }
    samples = {how: decode(model, drawn) for how, drawn in draws.items()}
    recon = decode(model, z)
    rows = torch.cat([made[:30] for made in samples.values()]).unflatten(0, (6, 10))
    save_frames([sheet(rows)], grid)
    return {
        "frechet": {
            **{how: distances(networks, x, made) for how, made in samples.items()},
            "reconstructions": distances(networks, x, recon),
        },
        "interpolation": walks(model, z),
        "nudges": nudges(model, x[:2000], generator),
        "mse": (recon - x).square().mean().item(),
        "code mean": codes.mean(0).norm().item(),
        "code spread": codes.std(0).mean().item(),
    }


def main() -> None:
    """Train both, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder with the idx files")
    parser.add_argument("--runs", type=Path, default=Path("runs/ae_vs_vae"))
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    networks: list[Any] = [RandomConvFeatures(1), load_fashion_features()]
    seconds: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for name, bottleneck in KINDS.items():
            changes = [
                ("data.path", str(args.data)),
                ("model.bottleneck", bottleneck),
                ("model.bottleneck.dim", 16),
                ("train.steps", args.steps),
                ("seed", seed),
            ]
            run = args.runs / f"{name.lower()}_seed{seed}"
            train_recipe(load_recipe(str(RECIPE), changes), run=run, resume=True)
            seconds[run.name] = trained_seconds(run)
            opened = open_run(run)
            assert isinstance(opened.model, Autoencoder)
            data = open_run_data(opened)
            x = data.test().batch(np.arange(len(data.test()))).x
            seen = data.train().batch(np.arange(min(20_000, len(data.train())))).x
            with torch.no_grad():
                embedded = [opened.model.embed(part) for part in seen.split(500)]
                codes = torch.cat([opened.model.bottleneck.mode(part) for part in embedded])
            grid = args.results / f"ae_vs_vae_{name.lower()}.png"
            found = measure(opened.model, x, codes, networks, grid)
            rows.append({"model": name, "seed": seed, "n": len(x), **found})
            sys.stdout.write(f"{rows[-1]}\n")
    machine = read_json(args.runs / "ae_seed0" / "env.json")
    report = {"data": "Fashion-MNIST, test split", "steps": args.steps, "rows": rows}
    write_json(args.results / "ae_vs_vae.json", {**report, "seconds": seconds, "machine": machine})


if __name__ == "__main__":
    main()
