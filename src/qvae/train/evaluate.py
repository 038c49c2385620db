"""Evaluation on the valid split: no gradient, eval mode, the same noise every time."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from qvae.eval_mode import eval_mode
from qvae.train.engine import Engine
from qvae.train.order import noise_seed
from qvae.train.settings import TrainSettings
from qvae.train.sources import Split, place
from qvae.train.step import loss_values

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    *,
    engine: Engine,
    settings: TrainSettings,
    should_stop: Callable[[], bool],
) -> dict[str, float] | None:
    """Average loss and metrics over evenly spread samples of a split.

    Args:
        model: returns a Loss; goes to eval mode and comes back as it was.
        split: to read from.
        engine: every process takes its share of the batches.
        settings: ``batch_size``, ``accumulate``, ``eval_samples`` and ``seed`` matter.
        should_stop: asked before every batch, on every process alike.

    Returns:
        Means over the samples, or None if it was told to stop.
    """
    wanted = len(split) if settings.eval_samples is None else settings.eval_samples
    count = min(len(split), wanted)
    indices = np.arange(count, dtype=np.int64) * len(split) // count
    size = max(1, settings.batch_size // settings.accumulate)
    starts = range(0, count, size)
    sums: dict[str, float] = {}
    with eval_mode(model):
        for i in range(0, len(starts), engine.world):
            if should_stop():
                return None
            mine = i + engine.rank
            is_mine = mine < len(starts)
            if not is_mine and sums:
                continue
            mine %= len(starts)  # one that has no batch at all still needs the metrics' names
            batch = split.batch(indices[starts[mine] : starts[mine] + size])
            engine.seed(noise_seed(settings.seed, "evaluate", mine))
            with engine.autocast():
                loss = model(place(batch, engine))
            for name, value in loss_values(loss).items():
                sums[name] = sums.get(name, 0.0) + value * len(batch) * is_mine
    return {name: value / count for name, value in engine.total(sums).items()}
