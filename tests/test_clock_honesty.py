"""The clock's score cannot be cheated: untrained models fail, mirrored labels mirror clocks."""

import numpy as np
import pytest
import torch

from qvae.autoencoder import build_autoencoder
from qvae.config import load_recipe
from qvae.data.clock_times import split_of
from qvae.data.clocks import Clocks, clock_hours
from qvae.metrics.clock_score import score_clocks
from qvae.reports.clocks import to_pixels
from qvae.runs.loading import open_run
from qvae.runs.training import train_recipe
from qvae.tokenizer import Tokenizer

_TIMES = np.arange(0, 720, 3)


def _draw_at(tokenizer, minutes, *, mirror=False):
    """Encode clocks at some times and draw their codes at others."""
    clocks = Clocks(mirror=mirror).test().batch(np.arange(0, 720, 3))
    tokens = tokenizer.encode(clocks.x, clocks.cond)
    drawn = tokenizer.decode(tokens, clock_hours(minutes, mirror=mirror))
    return score_clocks(to_pixels(drawn), minutes, split_of(minutes))["off_block"]


@pytest.mark.parametrize("route", ["clock_style", "clock_grid"])
def test_an_untrained_model_cannot_tell_the_time(route):
    torch.manual_seed(0)
    model = build_autoencoder(load_recipe(route).model, Clocks.spec)
    row = _draw_at(Tokenizer(model), _TIMES)
    assert row["within_1_no_floor"] < 0.05
    assert row["gross"] > 0.5


@pytest.mark.slow
def test_mirrored_labels_make_mirrored_clocks(tmp_path):
    changes = {
        "data.mirror": True,
        "data.size": 8000,
        "train.steps": 700,
        "train.eval_every": 700,
    }
    train_recipe(load_recipe("clock_style", list(changes.items())), run=tmp_path, progress=False)
    tokenizer = open_run(tmp_path).require_tokenizer()
    asked = (_TIMES * 7 + 131) % 720
    # Told the label under which mirrored data files this clock, it draws this clock ...
    assert _draw_at(tokenizer, asked, mirror=True)["within_1_no_floor"] > 0.5
    # ... and told the time itself, it draws the mirror image.
    honest = tokenizer.decode(
        tokenizer.encode(*_clocks(mirror=True)), clock_hours(asked, mirror=False)
    )
    row = score_clocks(to_pixels(honest), (720 - asked) % 720, split_of(asked))["off_block"]
    assert row["within_1_no_floor"] > 0.5
    row = score_clocks(to_pixels(honest), asked, split_of(asked))["off_block"]
    assert row["within_1_no_floor"] < 0.1


def _clocks(*, mirror):
    batch = Clocks(mirror=mirror).test().batch(np.arange(0, 720, 3))
    return batch.x, batch.cond
