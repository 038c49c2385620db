"""Three priors over one tokenizer's tokens: bits, samples by class, and bytes on disk.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist*.deb fashion
    python benchmarks/priors.py fashion/usr/share/datasets/fashion-mnist

A VQ-VAE with a 256-way likelihood and a VAE of the same networks; then PixelCNN, transformer and
masked transformer over the tokens. Reported: bits a token beside the unigram's; total bits/dim of
both stages beside the VAE's bound; whether a linear classifier that was trained on reconstructions
knows the class of samples, beside its accuracy on reconstructions of test images; the variance of
samples of a class beside that of real ones; seconds a sample; and the bytes of ``qvae compress``
beside PNG, WebP and JPEG at equal PSNR. Writes ``benchmarks/results/priors.json``; started again
after an interruption it goes on.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qvae.coding import compress, decompress
from qvae.config import load_recipe
from qvae.data.base import DataModule
from qvae.data.codecs import bytes_at_psnr
from qvae.priors.base import Prior
from qvae.runs.bits import total_bits
from qvae.runs.loading import Run, open_run, open_run_data
from qvae.runs.scores import evaluate_run
from qvae.runs.tokens import encode_data
from qvae.runs.training import train_recipe
from qvae.store import read_json, write_json
from qvae.train.log import trained_seconds

RESULTS = Path(__file__).parent / "results"
PRIORS = ("pixelcnn_prior", "token_prior", "masked_prior")
NETWORKS = [("model.likelihood", "discretized_logistic"), ("likelihood.num_mixtures", 5)]
RUNGS = {"vqvae": [], "vae": [("model.bottleneck", "gaussian"), ("bottleneck.dim", 64)]}
CLASSES, A_CLASS, TRAIN, BATCH = 10, 100, 10_000, 250


def train(runs: Path, data: Path, changes: list[tuple[str, Any]]) -> None:
    """Train what is missing: both rungs, the tokens, the three priors."""
    told = [("data.path", str(data)), ("data.cond", "label"), *NETWORKS]
    for name, rung in RUNGS.items():
        recipe = load_recipe("vqvae", [*told, *rung, *changes])
        train_recipe(recipe, run=runs / name, resume=True)
    if not (runs / "tokens").exists():
        run = open_run(runs / "vqvae")
        encode_data(run.require_tokenizer(), open_run_data(run), runs / "tokens")
    for name in PRIORS:
        recipe = load_recipe(name, [("data.path", str(runs / "tokens")), *changes])
        train_recipe(recipe, run=runs / name, resume=True)


def reconstructions(run: Run, split: Any, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures, what the tokenizer makes of them, and their labels."""
    parts = []
    for start in range(0, min(num, len(split)), BATCH):
        batch = split.batch(np.arange(start, min(start + BATCH, len(split))))
        tokenizer = run.require_tokenizer()
        recon = tokenizer.decode(tokenizer.encode(batch.x, batch.cond), batch.cond)
        parts.append((batch.x, recon, batch.cond[:, 0].long()))
    real, recon, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return real, recon, labels


class LinearClassifier:
    """Ridge regression onto one-hot labels, in closed form."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        features = self._features(x)
        gram = features.t() @ features + 10.0 * torch.eye(features.shape[1], dtype=torch.float64)
        hot = torch.nn.functional.one_hot(labels, CLASSES).double()
        self.weight = torch.linalg.solve(gram, features.t() @ hot)

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Return the share of labels that it finds."""
        return float(((self._features(x) @ self.weight).argmax(1) == labels).double().mean())

    def _features(self, x: Tensor) -> Tensor:
        flat = x.flatten(1).double()
        return torch.cat([flat, torch.ones(len(flat), 1, dtype=torch.float64)], 1)


def variance(x: Tensor, labels: Tensor) -> float:
    """Return the pixels' variance within a class, averaged over pixels and classes."""
    return float(torch.stack([x[labels == c].var(0).mean() for c in range(CLASSES)]).mean())


def samples(run: Run, first: Run, data: DataModule) -> dict[str, float]:
    """Draw samples of each class with the recipe's own sampler and compare with real ones."""
    assert isinstance(run.model, Prior) and run.recipe is not None
    _, recon, labels = reconstructions(first, data.train(), TRAIN)
    classifier = LinearClassifier(recon, labels)
    real, recon, labels = reconstructions(first, data.test(), len(data.test()))
    asked = torch.arange(CLASSES).repeat_interleave(A_CLASS)
    start = time.process_time()
    tokens = run.model.sample(len(asked), asked[:, None].float(), seed=0, **run.recipe.sample)
    seconds = time.process_time() - start
    drawn = first.require_tokenizer().decode(tokens, asked[:, None].float())
    found = {"samples": classifier.accuracy(drawn, asked)}
    found["reconstructions"] = classifier.accuracy(recon, labels)
    return {
        "accuracy_on_samples": found["samples"],
        "accuracy_on_reconstructions": found["reconstructions"],
        "accuracy_ratio": found["samples"] / found["reconstructions"],
        "variance_ratio": variance(drawn, asked) / variance(real, labels),
        "cpu_ms_a_sample": 1000 * seconds / len(asked),
    }


def compressed(run: Run, data: DataModule, num: int) -> dict[str, Any]:
    """Sum the bytes of test images, ours beside the others at each image's own PSNR.

    An image that a codec cannot write that well counts for none of them.
    """
    tokenizer, totals = run.require_tokenizer(), dict.fromkeys(("ours", "png", "webp", "jpeg"), 0)
    payload = same = left_out = 0
    for x in data.test().batch(np.arange(num)).x:
        assert isinstance(run.model, Prior)
        found = compress(x, tokenizer=tokenizer, prior=run.model)
        again = decompress(found.data, tokenizer=tokenizer, prior=run.model)
        same += torch.equal(again.tokens, tokenizer.encode(x[None])[0])
        sizes = bytes_at_psnr((x * 255).round().byte().numpy(), found.psnr)
        if not all(row["bytes"] for row in sizes.values()):
            left_out += 1
            continue
        totals["ours"] += len(found.data)
        payload += found.payload
        for codec, row in sizes.items():
            totals[codec] += int(row["bytes"])
    return {
        "images": num - left_out,
        "bytes": totals,
        "payload": payload,
        "identical_tokens": same / num,
    }


def main() -> None:
    """Train what is missing, score, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder with the idx files")
    parser.add_argument("--runs", type=Path, default=Path("runs/priors"))
    parser.add_argument("--steps", type=int, help="of every training; default: the recipes'")
    parser.add_argument("--images", type=int, default=100, help="to compress")
    args = parser.parse_args()
    train(args.runs, args.data, [("train.steps", args.steps)] if args.steps else [])
    first, vae = open_run(args.runs / "vqvae"), open_run(args.runs / "vae")
    data = open_run_data(first)
    report: dict[str, Any] = {
        "data": "Fashion-MNIST, test split",
        "vae": evaluate_run(vae, open_run_data(vae))["bits_per_dim"],
        "priors": {},
        "seconds": {name: trained_seconds(args.runs / name) for name in (*RUNGS, *PRIORS)},
        "machine": read_json(args.runs / "vqvae" / "env.json"),
    }
    for name in PRIORS:
        run = open_run(args.runs / name)
        report["priors"][name] = {
            "tokens": evaluate_run(run, open_run_data(run)),
            "total": total_bits(run, first, data),
            "samples": samples(run, first, data),
            "compressed": compressed(run, data, args.images),
        }
        sys.stdout.write(f"{name}: {report['priors'][name]}\n")
    write_json(RESULTS / "priors.json", report)


if __name__ == "__main__":
    main()
