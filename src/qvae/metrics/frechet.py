"""The Frechet distance between two sets of samples, on a feature network that has a name."""

import math

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FeatureStatistics", "RandomConvFeatures", "frechet_distance"]

_CONV = (F.conv1d, F.conv2d, F.conv3d)


class RandomConvFeatures(nn.Module):
    """Describe samples by 64 numbers from a fixed network with random weights: "random-conv-64".

    Three strided convolutions with ReLU (16, 32, 32 channels), then mean and standard deviation
    over positions of each of the last 32. The weights come from the raw 64-bit stream of NumPy's
    Philox generator, so they are the same on every machine and nothing is downloaded.

    What it is: a fixed, cheap ruler that reacts to colour, contrast, edges and texture on patches
    of 15 pixels; fit to compare runs on the same data. What it is not: the Inception network, so
    no number from here is an FID or may be put beside one; nor a judge of layout or of meaning:
    it does not see where in the picture something is. Numbers depend on the number of samples
    (the distance of finite sets is biased upwards), so give N with them.

    Shapes: x [B C *S] in [0, 1], 1 to 3 spatial axes, each >= 8 -> [B 64].

    Args:
        channels: C of the data, >= 1.
        num_axes: spatial axes, 1 to 3.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> RandomConvFeatures(3, num_axes=2)(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 64])
    """

    name = "random-conv-64"
    dim = 64
    _seed = 20170911
    _widths = (16, 32, 32)

    def __init__(self, channels: int, *, num_axes: int = 2) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels={channels}: must be >= 1")
        if not 1 <= num_axes <= 3:
            raise ValueError(f"num_axes={num_axes}: must be 1, 2 or 3")
        self.channels, self.num_axes = channels, num_axes
        stream = np.random.Philox(self._seed)
        before = channels
        for index, width in enumerate(self._widths):
            shape = (width, before, *(3,) * num_axes)
            bits = stream.random_raw(math.prod(shape)) >> np.uint64(11)
            uniform = bits.astype(np.float64) * 2.0**-52 - 1  # in [-1, 1)
            bound = math.sqrt(6 / math.prod(shape[1:]))  # He et al. 2015: keeps the scale
            weight = torch.from_numpy((uniform * bound).astype(np.float32).reshape(shape))
            self.register_buffer(f"weight_{index}", weight)
            before = width

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B F"]:
        """Compute the features, in float32 whatever autocast says.

        Raises:
            ValueError: if the channels or axes differ, or the data is smaller than 8.
        """
        if x.shape[1] != self.channels or x.ndim != 2 + self.num_axes or min(x.shape[2:]) < 8:
            raise ValueError(
                f"x of shape {tuple(x.shape)}: {self.name} was made for {self.channels} channels "
                f"and {self.num_axes} spatial axes of at least 8"
            )
        convolve = _CONV[self.num_axes - 1]
        with torch.autocast(x.device.type, enabled=False):
            h = 2 * x.float() - 1
            for index in range(len(self._widths)):
                weight = self.get_buffer(f"weight_{index}")
                h = convolve(h, weight, stride=2, padding=1).relu_()
            flat = h.flatten(2)
            return torch.cat([flat.mean(dim=-1), flat.std(dim=-1, correction=0)], dim=1)


class FeatureStatistics:
    """Gather the mean and covariance of features, batch by batch, in float64.

    Args:
        dim: features per sample, >= 1.

    Example:
        >>> statistics = FeatureStatistics(2)
        >>> statistics.update(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> statistics.num, statistics.mean.tolist(), statistics.covariance[0, 0].item()
        (2, [1.0, 1.0], 2.0)
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim={dim}: must be >= 1")
        self.num = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Float[Tensor, "B F"]) -> None:
        """Take in a batch (Chan et al. 1983, eq. 2.1: stable whatever the mean).

        Raises:
            ValueError: if the number of features differs, or one is not finite.
        """
        if features.shape[1] != len(self.mean):
            raise ValueError(f"features has {features.shape[1]} columns: needs {len(self.mean)}")
        if not features.isfinite().all():
            raise ValueError("features has NaN or Inf: every feature must be finite")
        if not len(features):
            return
        batch = features.detach().cpu().double()
        total = self.num + len(batch)
        batch_mean = batch.mean(dim=0)
        centred, shift = batch - batch_mean, batch_mean - self.mean
        self._scatter += centred.T @ centred
        self._scatter += torch.outer(shift, shift) * (self.num * len(batch) / total)
        self.mean = self.mean + shift * (len(batch) / total)
        self.num = total

    @property
    def covariance(self) -> Float64[Tensor, "F F"]:
        """The unbiased covariance.

        Raises:
            ValueError: if there are fewer than 2 samples.
        """
        if self.num < 2:
            raise ValueError(f"{self.num} samples: a covariance needs at least 2")
        return self._scatter / (self.num - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Compute the squared Frechet distance of the Gaussians fitted to two sets of features.

    |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)); the last trace is the sum of the roots of the
    eigenvalues of A^(1/2) B A^(1/2), which is symmetric, so that singular covariances (fewer
    samples than features) give no trouble.

    Paper: Dowson & Landau 1982, eq. 4; for images Heusel et al. 2017, arXiv:1706.08500, eq. 6.
    Ours differs: see the feature network; never call this FID.

    Raises:
        ValueError: if the numbers of features differ, or a set has fewer than 2 samples.

    Example:
        >>> a, b = FeatureStatistics(1), FeatureStatistics(1)
        >>> a.update(torch.tensor([[-1.0], [1.0]]))
        >>> b.update(torch.tensor([[2.0], [4.0]]))
        >>> round(frechet_distance(a, b), 6)
        9.0
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"{len(a.mean)} and {len(b.mean)} features: must be equal")
    cov_a, cov_b = a.covariance, b.covariance
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ cov_b @ root)
    cross = product.clamp(min=0).sqrt().sum()
    square = (a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, square.item())
