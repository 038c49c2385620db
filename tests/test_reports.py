"""The demo and the clock protocol, whole, at sizes that take seconds."""

import json

import numpy as np
import pytest
from PIL import Image

from qvae.config import load_recipe
from qvae.errors import UsageError
from qvae.reports import clocks, demo
from qvae.runs.loading import open_run
from qvae.runs.training import train_recipe

_TINY = {
    "tokenizer": {"data.size": 64, "data.valid_size": 16, "train.steps": 2, "train.eval_every": 2},
    "prior": {"train.steps": 2, "train.eval_every": 2},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "_QUICK", _TINY)
        patch.setattr(clocks, "_NUM_STYLES", 1)
        told = []
        report = demo.run_demo(path, is_quick=True, progress=False, tell=told.append)
        assert [text[:3] for text in told] == ["1/4", "2/4", "3/4", "4/4"]
    return path, report


def test_the_demo_leaves_what_it_promises(finished):
    path, report = finished
    assert {"tokenizer", "tokens", "prior", "clocks.png", "report.json"} == {
        found.name for found in path.iterdir()
    }
    with Image.open(path / "clocks.png") as picture:
        assert picture.size == (12 * 128, 6 * 128)
    assert json.loads((path / "report.json").read_text()) == report
    assert report["samples"]["all"]["n"] == 720
    assert set(report["seconds"]) == {"tokenizer", "tokens", "prior", "scores"}
    assert 0 <= report["reconstructions"]["time_swap"]["all"]["within_1"] <= 1
    # Two steps teach nothing, and the score says so.
    assert report["samples"]["all"]["within_1"] < 0.05
    text = clocks.table(report)
    assert "off_block" in text and "time swap" in text


def test_a_finished_demo_goes_on_where_it_was(finished, monkeypatch):
    path, report = finished
    monkeypatch.setattr(demo, "_QUICK", _TINY)
    monkeypatch.setattr(clocks, "_NUM_STYLES", 1)
    before = (path / "prior" / "model" / "model.safetensors").read_bytes()
    again = demo.run_demo(path, is_quick=True, progress=False)
    assert (path / "prior" / "model" / "model.safetensors").read_bytes() == before
    assert again["samples"] == report["samples"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="no demo"):
        demo.run_demo(tmp_path, is_quick=True, progress=False)
    assert [found.name for found in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_drawing_depends_on_its_time_and_seed_alone(finished):
    run = open_run(finished[0] / "prior")
    together = clocks.draw_times(run, np.array([10.0, 200.0, 610.0]), seed=3)
    alone = clocks.draw_times(run, np.array([10.0]), seed=3)
    assert together.shape == (3, 64, 64, 3) and together.dtype == np.uint8
    assert np.abs(together[0].astype(int) - alone[0].astype(int)).max() <= 1  # rounding
    other = clocks.draw_times(run, np.array([10.0]), seed=4)
    assert not np.array_equal(alone, other)


def test_runs_of_other_data_are_refused(finished):
    run = open_run(finished[0] / "tokenizer")
    with pytest.raises(UsageError, match="tokens of clocks"):
        clocks.draw_times(run, np.array([10.0]))


@pytest.fixture(scope="module")
def told_vae(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "cvae"
    few = {"data.size": 32, "data.valid_size": 8, "train.steps": 2, "train.eval_every": 2}
    train_recipe(load_recipe("clock_cvae", few.items()), run=path, device="cpu", progress=False)
    return path


def test_a_vae_that_is_told_the_time_draws_by_its_learned_prior(told_vae):
    run = open_run(told_vae)
    together = clocks.draw_times(run, np.array([10.0, 200.0]), seed=3)
    alone = clocks.draw_times(run, np.array([10.0]), seed=3)
    assert np.abs(together[0].astype(int) - alone[0].astype(int)).max() <= 1  # rounding
    assert not np.array_equal(alone, clocks.draw_times(run, np.array([10.0]), seed=4))


@pytest.mark.slow
def test_a_vae_that_is_told_the_time_goes_through_the_protocol(told_vae, monkeypatch):
    monkeypatch.setattr(clocks, "_NUM_STYLES", 1)
    report = clocks.evaluate(told_vae)
    assert report["samples"]["all"]["n"] == 720
    assert report["samples"]["all"]["within_1"] < 0.05  # two steps teach nothing
    assert 0 <= report["reconstructions"]["time_swap"]["all"]["within_1"] <= 1
