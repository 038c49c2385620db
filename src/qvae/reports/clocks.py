"""The score of clocks: asked for a time, does the model draw it? Read by an independent reader.

The protocol, the same for every run: uint8 pictures; one sample a request, fixed seeds, no
rejection; a minute hand of contrast below .5 counts as wrong; the 720 times in four styles each.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from qvae.autoencoder import Autoencoder
from qvae.bottlenecks.gaussian import Gaussian
from qvae.data.clock_times import split_of
from qvae.data.clocks import Clocks, clock_hours
from qvae.errors import UsageError
from qvae.metrics.clock_reader import read_clocks
from qvae.metrics.clock_score import (
    hand_colour_error,
    score_clocks,
    score_reading,
    style_variance_ratio,
)
from qvae.metrics.reconstruction import psnr
from qvae.priors.base import Prior
from qvae.runs.loading import Run, open_run
from qvae.runs.sampling import sample_latents
from qvae.tokenizer import Tokenizer

__all__ = ["draw_times", "evaluate", "score_reconstructions", "table", "to_pixels"]

_NUM_TIMES, _NUM_STYLES = 720, 4
_BATCH = 240


def to_pixels(x: Float[Tensor, "B 3 64 64"]) -> UInt8[np.ndarray, "B 64 64 3"]:
    """Round pictures to uint8, channels last: the form that is read and saved."""
    return (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def draw_times(
    run: Run, minutes: np.ndarray, *, seed: int = 0, mirror: bool = False, **settings: Any
) -> UInt8[np.ndarray, "B 64 64 3"]:
    """Draw one clock a time; drawing i depends on the model, its time and (seed, i) alone.

    Args:
        run: a prior run whose condition is the clocks' time, or a VAE that is told the time.
        minutes: ``[B]`` minutes after twelve.
        seed: of the samples, >= 0.
        mirror: ask for the time under which a mirrored training set files the clock.
        **settings: of the sampler; what is not named comes from the run's recipe.

    Raises:
        UsageError: the run is neither.
    """
    model = run.model
    is_vae = isinstance(model, Autoencoder) and isinstance(model.bottleneck, Gaussian)
    is_told = [c.name for c in run.conditions] == ["time"] and (
        isinstance(model, Prior) or (is_vae and model.conditioner is not None)
    )
    if not is_told:
        raise UsageError(
            f"{run.path}: needs a prior trained on the tokens of clocks, or a VAE told their time"
        )
    options = {**(run.recipe.sample if run.recipe else {}), **settings}
    cond = clock_hours(minutes, mirror=mirror).to(run.device)
    if isinstance(model, Autoencoder):
        return to_pixels(sample_latents(model, len(cond), cond, seed=seed, **options))
    assert isinstance(run.model, Prior)
    tokens = run.model.sample(len(cond), cond, seed=seed, **options)
    return to_pixels(run.require_tokenizer().decode(tokens, cond))


def evaluate(
    path: str | Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    mirror: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Score a prior run, or a VAE told the time, on clocks by the protocol.

    Args:
        path: of the run.
        seed: of the samples, >= 0.
        device: where to draw.
        mirror: for a run that learned mirrored labels.
        **settings: of the sampler; what is not named comes from the run's recipe.

    Returns:
        ``samples``: a row a split of the held-out plan; ``style_variance_ratio``; and what the
        tokenizer under the prior, or the VAE, does to real clocks: ``reconstructions``.

    Raises:
        UsageError: the run is neither.
        FormatError: a damaged run folder.
    """
    run = open_run(path, device=device)
    minutes = np.tile(np.arange(_NUM_TIMES), _NUM_STYLES)
    drawn = draw_times(run, minutes, seed=seed, mirror=mirror, **settings)
    real = Clocks().test().batch(np.arange(len(minutes)))
    return {
        "protocol": {
            "requests": len(minutes),
            "styles_a_time": _NUM_STYLES,
            "seed": seed,
            "sampler": {**(run.recipe.sample if run.recipe else {}), **settings},
            "contrast_floor": 0.5,
        },
        "samples": score_clocks(drawn, minutes, split_of(minutes)),
        "style_variance_ratio": style_variance_ratio(drawn, to_pixels(real.x)),
        "reconstructions": score_reconstructions(run.tokenizer or run.model, mirror=mirror),
    }


@torch.no_grad()
def score_reconstructions(
    coder: Tokenizer | Autoencoder | Prior, *, mirror: bool = False
) -> dict[str, Any]:
    """Score what comes back from a coder for the test clocks, whose styles it never saw.

    ``time_swap`` is there when the decoder is told the time: encode a clock at one time, decode
    its codes at another, and read the other.
    """
    minutes = np.tile(np.arange(_NUM_TIMES), _NUM_STYLES)
    batch = Clocks(mirror=mirror).test().batch(np.arange(len(minutes)))
    assert batch.cond is not None, "clocks have a time"
    assert not isinstance(coder, Prior), "a prior run has a tokenizer"
    pairs = zip(batch.x.split(_BATCH), batch.cond.split(_BATCH), strict=True)
    codes = torch.cat([_encode(coder, x, cond) for x, cond in pairs])
    recon = _decode(coder, codes, batch.cond)
    pixels, source = to_pixels(recon), to_pixels(batch.x)
    reading = read_clocks(pixels)
    scores: dict[str, Any] = {
        "psnr": psnr(torch.from_numpy(pixels / 255.0), torch.from_numpy(source / 255.0))
        .mean()
        .item(),
        "hand_colour_error": hand_colour_error(reading, read_clocks(source)),
        "times": score_reading(reading, minutes, split_of(minutes)),
    }
    if (coder.model if isinstance(coder, Tokenizer) else coder).conditioner is not None:
        other = (minutes * 7 + 131) % _NUM_TIMES  # a permutation of the times
        swapped = _decode(coder, codes, clock_hours(other, mirror=mirror))
        scores["time_swap"] = score_clocks(to_pixels(swapped), other, split_of(other))
    return scores


def _encode(coder: Tokenizer | Autoencoder, x: Tensor, cond: Tensor) -> Tensor:
    """Return tokens, or the most likely z."""
    if isinstance(coder, Tokenizer):
        return coder.encode(x, cond)
    return coder.bottleneck.mode(coder.embed(x, cond))


def _decode(coder: Tokenizer | Autoencoder, codes: Tensor, cond: Tensor) -> Tensor:
    if isinstance(coder, Tokenizer):
        return coder.decode(codes, cond)
    pairs = zip(codes.split(_BATCH), cond.split(_BATCH), strict=True)
    return torch.cat([coder.likelihood.mean(coder.decode(z, c).float()) for z, c in pairs])


def table(report: Mapping[str, Any]) -> str:
    """Lay out a report's scores as text, a row a split."""
    columns = {
        "n": "{:d}",
        "median": "{:.2f}",
        "p99": "{:.1f}",
        "within_1": "{:.1%}",
        "within_1_no_floor": "{:.1%}",
        "dial_right": "{:.1%}",
        "gross": "{:.1%}",
        "hour_slips": "{:.1%}",
    }
    head = ["split", "n", "median min", "p99 min", "<=1 min", "no floor", "dial", "gross", "slips"]
    rows = [
        [split, *(form.format(row[name]) for name, form in columns.items())]
        for split, row in report["samples"].items()
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in [head, *rows]
    ]
    recon = report["reconstructions"]
    seconds = report.get("seconds", {})
    lines.append(f"style variance / real  {report['style_variance_ratio']:.2f}")
    lines.append(
        f"reconstructions        PSNR {recon['psnr']:.2f} dB, "
        f"hand colour error {recon['hand_colour_error']['mean']:.3f}"
    )
    if "time_swap" in recon:
        row = recon["time_swap"]["off_block"]
        lines.append(f"time swap              {row['within_1']:.1%} within 1 min off the block")
    if seconds:
        lines.append(
            "seconds                " + ", ".join(f"{k} {v:g}" for k, v in seconds.items())
        )
    return "\n".join(lines)
