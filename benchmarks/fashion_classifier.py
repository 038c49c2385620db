"""Train the small classifier whose features measure Frechet distances on Fashion-MNIST.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist*.deb fashion
    python benchmarks/fashion_classifier.py fashion/usr/share/datasets/fashion-mnist

Writes ``src/qvae/weights/fashion_features`` (16-bit weights, under 200 kB) and prints the accuracy
on the test part, which the folder's config keeps.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import qvae
from qvae.data.base import Split
from qvae.data.images import Images
from qvae.metrics.classifier_features import FASHION_FEATURES, ClassifierFeatures
from qvae.store import save_folder
from qvae.types import Batch, Loss


class Objective(nn.Module):
    """The classifier's loss, in the form that the training loop takes."""

    def __init__(self, network: ClassifierFeatures) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> Loss:
        assert batch.cond is not None
        nll = self.network.loss(batch.x, batch.cond[:, 0])
        none = torch.zeros_like(nll)
        return Loss(total=nll.mean(), nll=nll, rate=none, penalty=none)


@torch.no_grad()
def accuracy(network: ClassifierFeatures, split: Split) -> float:
    """Return the share of a split that is classified rightly."""
    right = 0
    for start in range(0, len(split), 500):
        batch = split.batch(np.arange(start, min(start + 500, len(split))))
        assert batch.cond is not None
        right += int((network.logits(batch.x).argmax(1) == batch.cond[:, 0]).sum())
    return right / len(split)


def main() -> None:
    """Train, round to 16 bits, score, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder with the idx files")
    parser.add_argument("--run", type=Path, default=Path("runs/fashion_classifier"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--output", type=Path, default=FASHION_FEATURES)
    args = parser.parse_args()
    data = Images(args.data, cond="label:category")
    torch.manual_seed(0)
    network = ClassifierFeatures(classes=len(data.spec.conditions[0].categories))
    settings = {"batch_size": 128, "lr": 2e-3, "weight_ema": 0.99, "precision": "float32"}
    qvae.fit(Objective(network), data, run=args.run, resume=True, steps=args.steps, **settings)
    rounded = {name: tensor.half() for name, tensor in network.state_dict().items()}
    network.load_state_dict({name: tensor.float() for name, tensor in rounded.items()})
    found = {
        "kind": "features",
        "name": ClassifierFeatures.name,
        "classes": network.last.out_features,
        "data": "Fashion-MNIST",
        "test_accuracy": accuracy(network.eval(), data.test()),
        "command": "python benchmarks/fashion_classifier.py DATA",
    }
    save_folder(args.output, rounded, found)
    sys.stdout.write(f"{args.output}: {found}\n")


if __name__ == "__main__":
    main()
