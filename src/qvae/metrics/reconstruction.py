"""How close a reconstruction is to the data, sample by sample."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["mse", "nmse", "psnr", "ssim"]


def _check(recon: Tensor, x: Tensor) -> None:
    if recon.shape != x.shape:
        raise ValueError(
            f"recon of shape {tuple(recon.shape)} for x of shape {tuple(x.shape)}: must be equal"
        )


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}={value}: must be > 0")


def _double(x: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def mse(recon: Float[Tensor, "B C *S"], x: Float[Tensor, "_B _C *_S"]) -> Float[Tensor, " B"]:
    """Compute the mean squared error of every sample, in float64.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> mse(torch.zeros(1, 1, 4), torch.full((1, 1, 4), 0.5)).tolist()
        [0.25]
    """
    _check(recon, x)
    return (_double(recon) - _double(x)).square().flatten(1).mean(dim=1)


def nmse(
    recon: Float[Tensor, "B C *S"], x: Float[Tensor, "_B _C *_S"], *, variance: float
) -> Float[Tensor, " B"]:
    """Divide every sample's mean squared error by the variance of the data set.

    1 is what the data's mean would score, as in DeepMind's VQ-VAE example.

    Args:
        recon: reconstructions.
        x: the data.
        variance: of all numbers of the training data, > 0.

    Raises:
        ValueError: if the shapes differ or the variance is not positive.
    """
    _check_positive("variance", variance)
    return mse(recon, x) / variance


def psnr(
    recon: Float[Tensor, "B C *S"], x: Float[Tensor, "_B _C *_S"], *, data_range: float = 1.0
) -> Float[Tensor, " B"]:
    """Compute the peak signal-to-noise ratio of every sample, in dB.

    10 log10(data_range^2 / MSE); infinite where the two are equal. Average over samples, not MSE.

    Args:
        recon: reconstructions; clip them to the data's range first.
        x: the data.
        data_range: largest minus least possible value, > 0.

    Raises:
        ValueError: if the shapes differ or the range is not positive.

    Example:
        >>> psnr(torch.zeros(1, 1, 4), torch.full((1, 1, 4), 0.1)).round(decimals=3).tolist()
        [20.0]
    """
    _check_positive("data_range", data_range)
    return 10 * torch.log10(data_range**2 / mse(recon, x))


def ssim(
    recon: Float[Tensor, "B C *S"],
    x: Float[Tensor, "_B _C *_S"],
    *,
    data_range: float = 1.0,
    window: int = 11,
    sigma: float = 1.5,
) -> Float[Tensor, " B"]:
    """Compute the structural similarity of every sample, mean over positions and channels.

    Paper: Wang et al. 2004, IEEE TIP 13(4), eq. 13, with K1 = .01, K2 = .03 and a Gaussian window
    that lies wholly inside the image. Ours differs: each channel by itself (the paper has grey
    images), any number of spatial axes, no shrinking of large images.

    Args:
        recon: reconstructions.
        x: the data, at least ``window`` long on each spatial axis.
        data_range: largest minus least possible value, > 0.
        window: length of the window, odd.
        sigma: its standard deviation, > 0.

    Returns:
        One number a sample, in float64, 1 where the two are equal.

    Raises:
        ValueError: if the shapes differ, an argument is out of range, or the data is smaller than
            the window.

    Example:
        >>> x = torch.rand(2, 3, 16, 16)
        >>> ssim(x, x).tolist()
        [1.0, 1.0]
    """
    _check(recon, x)
    _check_positive("data_range", data_range)
    _check_positive("sigma", sigma)
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window={window}: must be odd and >= 1")
    if x.ndim < 3 or min(x.shape[2:]) < window:
        raise ValueError(
            f"x has spatial sizes {tuple(x.shape[2:])}: SSIM needs at least window={window} each"
        )
    a, b = _double(recon), _double(x)
    moments = _blur(torch.stack([a, b, a * a, b * b, a * b]), _bell(window, sigma))
    mean_a, mean_b, square_a, square_b, product = moments
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    variances = square_a - mean_a.square() + square_b - mean_b.square()
    structure = (2 * (product - mean_a * mean_b) + c2) / (variances + c2)
    return (luminance * structure).flatten(1).mean(dim=1)


def _bell(window: int, sigma: float) -> Float[Tensor, " W"]:
    offsets = torch.arange(window, dtype=torch.float64) - window // 2
    weights = (-0.5 * (offsets / sigma).square()).exp()
    return weights / weights.sum()


def _blur(x: Float[Tensor, "Q B C *S"], weights: Float[Tensor, " W"]) -> Tensor:
    """Weigh along every spatial axis in turn, where the window fits: shifts, added up."""
    for axis in range(3, x.ndim):
        num_fits = x.shape[axis] - len(weights) + 1
        blurred = torch.zeros_like(x.narrow(axis, 0, num_fits))
        for start, weight in enumerate(weights.tolist()):
            blurred.add_(x.narrow(axis, start, num_fits), alpha=weight)
        x = blurred
    return x
