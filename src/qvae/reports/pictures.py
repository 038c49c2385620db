"""Pictures of what a run has learned: one function a kind, each from a run to frames."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from qvae.autoencoder import Autoencoder
from qvae.bottlenecks.base import Quantizer
from qvae.data.base import DataModule
from qvae.errors import UsageError
from qvae.reports.latent_walks import interpolate, manifold, traverse
from qvae.reports.sheets import code_maps, scatter, sheet
from qvae.runs.loading import Run, told_row
from qvae.runs.representations import require_untold
from qvae.runs.sampling import sample_run
from qvae.types import Batch

__all__ = ["FILMS", "KINDS", "USES", "Picture", "draw"]

_ROWS = 8
_COLUMNS = 10
_STEPS = 11
_FILM = 24
_SIDE = 20
_REACH = 2.5  # of a traversal, in deviations of the prior
_AVERAGED, _SCATTERED = 1024, 5000

Frames = list[UInt8[np.ndarray, "Y X 3"]]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What was drawn, and what the rows are where a number says it."""

    frames: Frames
    """One, unless it is a film."""
    rows: int | None = None
    """How many rows, or tiles of a film, of the number that was asked for."""
    facts: Mapping[str, Any] = field(default_factory=dict)


def draw(
    run: Run,
    *,
    kind: str,
    data: Callable[[], DataModule],
    num: int | None = None,
    column: str | None = None,
    cond: Mapping[str, str] | None = None,
    seed: int = 0,
    is_film: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Picture:
    """Draw a kind of picture.

    Args:
        run: an autoencoder's; for samples, a prior's too.
        kind: a name of :data:`KINDS`; which of the others it uses is in :data:`USES`.
        data: opens the data.
        num: rows, >= 1; None is 8, and ``tell`` hears if there are fewer than asked for.
        column: labels for scatter; None is the first category that the encoder is not told.
        cond: what to tell the model for samples and manifold.
        seed: of which samples, and of what is drawn, >= 0.
        is_film: several frames, for a kind of :data:`FILMS`.
        tell: called with a remark, such as which conditions are not told.

    Raises:
        UsageError: a kind that this model has not.
        DataError: the data cannot be read.
    """
    if kind == "samples":
        count = num or _ROWS
        x = sample_run(run, num=count * _COLUMNS, cond=cond, seed=seed, tell=tell)
        return Picture(frames=[sheet(x.unflatten(0, (count, _COLUMNS)))])
    if not isinstance(run.model, Autoencoder):
        raise UsageError(
            f"{run.path}: is the run of a prior; it has samples, its tokenizer the rest"
        )
    if kind == "manifold":
        row = told_row(run, cond or {}, tell=tell)
        rows = None if row is None else row[None]
        return Picture(frames=[sheet(manifold(run.model, side=_SIDE, cond=rows))])
    if kind == "scatter":
        source = data()
        label = _label_column(run, source, column)
        return Picture(frames=[_scatter(run.model, source, label)])
    picture: Picture = _BY_SAMPLES[kind](run.model, data(), num or _ROWS, seed, is_film)
    if num is not None and picture.rows is not None and picture.rows < num:
        tell(f"num={num}: there are {picture.rows} rows to draw")
    return picture


def _label_column(run: Run, data: DataModule, column: str | None) -> str | None:
    """Return what colours a scatter: the column asked for, else the first category.

    A column that the encoder is told is refused, or passed over: its colours would part codes
    that never looked at the data.
    """
    if column is not None:
        require_untold(run, column)
        return column
    if isinstance(run.model, Autoencoder) and run.model.conditioner is not None:
        return None  # what it is told is all that the data names
    return next((item.name for item in data.spec.conditions if item.kind == "category"), None)


def _some(model: Autoencoder, data: DataModule, num: int, seed: int) -> Batch:
    """Take test samples at random."""
    split = data.test()
    rows = np.random.default_rng(seed).permutation(len(split))[:num]
    return split.batch(rows).to(next(model.parameters()).device)


@torch.inference_mode()
def _reconstructions(
    model: Autoencoder, data: DataModule, num: int, seed: int, is_film: bool
) -> Picture:
    """Pairs of rows: the samples above, their reconstructions below."""
    batch = _some(model, data, num * _COLUMNS, seed)
    recon = model.reconstruct(batch.x, batch.cond)
    pairs = torch.stack([_in_rows(batch.x), _in_rows(recon)], dim=1)
    return Picture(frames=[sheet(pairs.flatten(0, 1))], rows=len(pairs))


def _in_rows(x: Tensor) -> Tensor:
    """Cut samples into rows; what is left over of a last row is dropped, if there is another."""
    columns = min(_COLUMNS, len(x))
    return x[: len(x) // columns * columns].unflatten(0, (-1, columns))


def _traversal(model: Autoencoder, data: DataModule, num: int, seed: int, is_film: bool) -> Picture:
    """A row for each coordinate, the one that carries most nats above."""
    batch = _some(model, data, _AVERAGED, seed)
    if is_film:  # there and back, slow at the ends
        values = _REACH * torch.sin(torch.linspace(0, 2 * torch.pi, _FILM + 1)[:-1])
    else:
        values = torch.linspace(-_REACH, _REACH, _STEPS)
    found = traverse(model, batch, index=0, values=values, most=num, seed=seed)
    rows = [{"dim": dim, "kl": kl} for dim, kl in zip(found.dims, found.kl.tolist(), strict=True)]
    frames = _film(found.x) if is_film else [sheet(found.x)]
    return Picture(frames=frames, rows=len(rows), facts={"dims": rows})


def _interpolation(
    model: Autoencoder, data: DataModule, num: int, seed: int, is_film: bool
) -> Picture:
    batch = _some(model, data, 2 * num, seed)
    if len(batch) < 2:
        raise UsageError("kind=interpolation: the test part has one sample, two are needed")
    if len(batch) % 2:
        batch = Batch(x=batch.x[:-1], cond=None if batch.cond is None else batch.cond[:-1])
    x = interpolate(model, batch, num_steps=_FILM if is_film else _STEPS)
    frames = _film(torch.cat([x, x.flip(1)], dim=1)) if is_film else [sheet(x)]
    return Picture(frames=frames, rows=len(x))


def _film(x: Tensor) -> Frames:
    """One frame a step, with a tile for each row."""
    return [sheet(_in_rows(x[:, step])) for step in range(x.shape[1])]


@torch.inference_mode()
def _codes(model: Autoencoder, data: DataModule, num: int, seed: int, is_film: bool) -> Picture:
    """Three rows: the samples, their codes as colours, their reconstructions."""
    bottleneck = model.bottleneck
    if not isinstance(bottleneck, Quantizer) or len(model.grid) != 2:
        raise UsageError(
            f"kind=codes: {type(bottleneck).__name__} on a grid of {len(model.grid)} axes has no "
            "map of indices; needs a quantizer on a grid of 2"
        )
    batch = _some(model, data, _COLUMNS, seed)
    found = bottleneck.encode(model.embed(batch.x, batch.cond))[..., 0].cpu().numpy()
    height, width = batch.x.shape[2:]
    maps = torch.from_numpy(code_maps(found, size=max(height, width)))
    recon = model.reconstruct(batch.x, batch.cond)
    fitted = torch.nn.functional.interpolate(maps, size=(height, width), mode="nearest")
    rows = [part.cpu().expand(-1, 3, -1, -1) for part in (batch.x, fitted, recon)]
    return Picture(frames=[sheet(torch.stack(rows))])


@torch.inference_mode()
def _scatter(
    model: Autoencoder, data: DataModule, column: str | None
) -> UInt8[np.ndarray, "Y X 3"]:
    """Plot codes of test samples; of more than two coordinates, the two principal axes."""
    split = data.test()
    num = min(len(split), _SCATTERED)
    device = next(model.parameters()).device
    parts = []
    for start in range(0, num, 256):
        batch = split.batch(np.arange(start, min(start + 256, num))).to(device)
        z = model.bottleneck.mode(model.embed(batch.x, batch.cond))
        parts.append(z.flatten(1).cpu().numpy())
    points = np.concatenate(parts).astype(np.float64)
    if points.shape[1] != 2:
        points = points - points.mean(axis=0)
        axes = np.linalg.svd(points, full_matrices=False)[2][:2]
        points = points @ axes.T
    if points.shape[1] < 2:
        points = np.hstack([points, np.zeros_like(points)])
    labels = None if column is None else data.column(column, "test")[:num]
    return scatter(points, labels)


_BY_SAMPLES: dict[str, Callable[..., Picture]] = {
    "reconstructions": _reconstructions,
    "traversal": _traversal,
    "interpolation": _interpolation,
    "codes": _codes,
}
USES: dict[str, tuple[str, ...]] = {
    "reconstructions": ("num", "data", "seed"),
    "traversal": ("num", "data", "seed"),
    "interpolation": ("num", "data", "seed"),
    "codes": ("data", "seed"),
    "samples": ("num", "cond", "seed"),
    "manifold": ("cond",),
    "scatter": ("data", "column"),
}
"""What can be drawn, and the options that change it."""
KINDS = tuple(USES)
"""Names of what can be drawn."""
FILMS = ("traversal", "interpolation")
"""Those that can move."""
