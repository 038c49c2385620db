"""Features of a small classifier of 28x28 pictures: a second ruler for the Frechet distance."""

from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from qvae.errors import FormatError
from qvae.store import load_folder

__all__ = ["FASHION_FEATURES", "ClassifierFeatures", "load_fashion_features"]

FASHION_FEATURES = Path(str(files("qvae") / "weights" / "fashion_features"))
"""The weights in the package, which ``benchmarks/fashion_classifier.py`` made."""


class ClassifierFeatures(nn.Module):
    """Describe 28x28 grey pictures by the 64 numbers before a classifier's last layer.

    Three convolutions of stride 2 with ReLU (16, 32, 64 channels), a layer of 64, a layer of
    ``classes``. Trained on Fashion-MNIST it is "fashion-cnn-64".

    What it is: a ruler that sees layout and what garment something is, where "random-conv-64" sees
    texture. What it is not: the Inception network, so no number from it is an FID; nor of any use
    on other data than the training set's.

    Shapes: x [B 1 28 28] in [0, 1] -> features [B 64], logits [B classes].

    Args:
        classes: of the classifier, >= 2.

    Raises:
        ValueError: fewer than 2 classes.

    Example:
        >>> import torch
        >>> ClassifierFeatures(classes=10)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 64])
    """

    name = "fashion-cnn-64"
    dim = 64

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes={classes}: must be at least 2")
        widths = (1, 16, 32, 64)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.hidden = nn.Linear(64 * 4 * 4, self.dim)
        self.last = nn.Linear(self.dim, classes)

    def forward(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B F"]:
        """Compute the features.

        Raises:
            ValueError: the data is not ``[B, 1, 28, 28]``.
        """
        if tuple(x.shape[1:]) != (1, 28, 28):
            raise ValueError(f"x of shape {tuple(x.shape)}: {self.name} takes [B, 1, 28, 28]")
        h = 2 * x.float() - 1
        for conv in self.convs:
            h = conv(h).relu()
        return self.hidden(h.flatten(1)).relu()

    def logits(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B classes"]:
        """Compute the classes' scores."""
        return self.last(self(x))

    def loss(self, x: Float[Tensor, "B C *S"], labels: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Compute the cross-entropy of each sample, in nats."""
        return F.cross_entropy(self.logits(x), labels.long(), reduction="none")


def load_fashion_features(path: Path = FASHION_FEATURES) -> ClassifierFeatures:
    """Load "fashion-cnn-64", in eval mode and without gradients.

    Raises:
        FormatError: the folder is missing, damaged, or of another network.
    """
    tensors, config = load_folder(path)
    if config.get("name") != ClassifierFeatures.name:
        raise FormatError(f"{path}: name={config.get('name')!r}, needs {ClassifierFeatures.name!r}")
    network = ClassifierFeatures(classes=int(config["classes"]))
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return network.eval().requires_grad_(False)
