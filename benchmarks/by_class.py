"""Do samples of a class belong to it, and do they vary? Asked of a prior over a tokenizer's tokens.

A linear classifier that was trained on reconstructions of training images is asked for the class
of samples and of reconstructions of test images. Accuracies are means over the classes, and so are
variances of pixels: a class counts as much as another, however many test images it has.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from qvae.data.base import DataModule
from qvae.priors.base import Prior
from qvae.runs.loading import Run

A_CLASS, TRAIN, BATCH = 100, 10_000, 250


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
    """Ridge regression onto one-hot labels, in closed form; all classes weigh alike."""

    def __init__(self, x: Tensor, labels: Tensor, classes: int) -> None:
        self.classes = classes
        features = self._features(x)
        counts = torch.bincount(labels, minlength=classes)
        weights = (len(labels) / (classes * counts.double()))[labels, None]
        gram = features.t() @ (weights * features)
        gram += 10.0 * torch.eye(len(gram), dtype=torch.float64)
        hot = weights * one_hot(labels, classes).double()
        self.weight = torch.linalg.solve(gram, features.t() @ hot)

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Return the share of labels that it finds, as a mean over the classes."""
        right = ((self._features(x) @ self.weight).argmax(1) == labels).double()
        return float(torch.stack([right[labels == c].mean() for c in range(self.classes)]).mean())

    def _features(self, x: Tensor) -> Tensor:
        flat = x.flatten(1).double()
        return torch.cat([flat, torch.ones(len(flat), 1, dtype=torch.float64)], 1)


def variance(x: Tensor, labels: Tensor, classes: int) -> float:
    """Return the pixels' variance within a class, averaged over pixels and classes."""
    return float(torch.stack([x[labels == c].var(0).mean() for c in range(classes)]).mean())


def samples_by_class(
    run: Run, first: Run, data: DataModule, classes: int
) -> tuple[dict[str, float], Tensor]:
    """Draw samples of each class with the recipe's own sampler and compare with real ones.

    Returns:
        The scores, and the pictures drawn, ``A_CLASS`` of each class in turn.
    """
    assert isinstance(run.model, Prior) and run.recipe is not None
    _, recon, labels = reconstructions(first, data.train(), TRAIN)
    classifier = LinearClassifier(recon, labels, classes)
    real, recon, labels = reconstructions(first, data.test(), len(data.test()))
    asked = torch.arange(classes).repeat_interleave(A_CLASS)
    start = time.process_time()
    tokens = run.model.sample(len(asked), asked[:, None].float(), seed=0, **run.recipe.sample)
    seconds = time.process_time() - start
    drawn = first.require_tokenizer().decode(tokens, asked[:, None].float())
    on_samples, on_recon = classifier.accuracy(drawn, asked), classifier.accuracy(recon, labels)
    scores = {
        "accuracy_on_samples": on_samples,
        "accuracy_on_reconstructions": on_recon,
        "accuracy_ratio": on_samples / on_recon,
        "variance_ratio": variance(drawn, asked, classes) / variance(real, labels, classes),
        "cpu_ms_a_sample": 1000 * seconds / len(asked),
    }
    return scores, drawn
