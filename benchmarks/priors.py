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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from by_class import samples_by_class

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
CLASSES = 10


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


def compressed(run: Run, data: DataModule, num: int) -> dict[str, Any]:
    """Sum the bytes of test images, ours beside the others at each image's own PSNR.

    An image that a codec cannot write that well counts for none of them; all are decoded again.
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
        "files": num,
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
            "samples": samples_by_class(run, first, data, CLASSES)[0],
            "compressed": compressed(run, data, args.images),
        }
        sys.stdout.write(f"{name}: {report['priors'][name]}\n")
    write_json(RESULTS / "priors.json", report)


if __name__ == "__main__":
    main()
