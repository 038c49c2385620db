"""Killed anywhere and resumed, a run ends with the same bits."""

import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from qvae.errors import FormatError, UsageError
from qvae.train import fit
from qvae.types import Batch, Loss
from train_toy import (
    SETTINGS,
    Rows,
    Toy,
    die,
    files_of,
    fork,
    forked,
    one_thread,
    rows_of,
    toy_data,
)

__all__ = ["one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")


class Mortal(Toy):
    """Dies in its n-th forward, be it of a micro-batch or of an evaluation."""

    def __init__(self, dies_at: int) -> None:
        super().__init__()
        self.dies_at = dies_at

    def forward(self, batch: Batch) -> Loss:
        self.dies_at -= 1
        if self.dies_at == 0:
            die()
        return super().forward(batch)


def train(run: Path, model: Toy | None = None, **changes: object) -> None:
    settings = SETTINGS | {"resume": True, "progress": False} | changes
    fit(model or Toy(), toy_data(), run=run, **settings)


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Uninterrupted runs, by optimizer."""
    torch.set_num_threads(1)
    runs = {name: tmp_path_factory.mktemp("run") / name for name in ("adamw", "muon")}
    for name, run in runs.items():
        train(run, optimizer=name)
    return runs


@pytest.fixture
def reference(references):
    """The one with AdamW."""
    return references["adamw"]


def assert_same(run: Path, reference: Path) -> None:
    steps = SETTINGS["steps"]
    found, expected = files_of(run, steps), files_of(reference, steps)
    assert len(expected) == 4
    assert found == expected
    assert rows_of(run) == rows_of(reference)
    assert not [p for p in (run / "state").iterdir() if p.name.startswith(".")]
    assert not (run / ".lock").exists()


# Forwards of this run: 2 a step, and 1 an evaluation after every 7th step. Saves after every 4th.
@pytest.mark.parametrize(
    "dies_at",
    [
        pytest.param(1, id="first step"),
        pytest.param(9, id="first forward after a save"),
        pytest.param(14, id="between two micro-batches, mid-epoch"),
        pytest.param(15, id="in an evaluation"),
        pytest.param(24, id="in the second epoch"),
        pytest.param(63, id="in the last step"),
        pytest.param(64, id="in the last evaluation"),
    ],
)
def test_kill_in_forward(references, tmp_path, dies_at):
    optimizer = "muon" if dies_at % 2 else "adamw"
    assert forked(lambda: train(tmp_path, Mortal(dies_at), optimizer=optimizer)) == -9
    train(tmp_path, optimizer=optimizer)
    assert_same(tmp_path, references[optimizer])


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "open", "mkdir", "rmdir", "replace"])
def test_kill_in_a_save(reference, tmp_path, monkeypatch, call):
    real, count = getattr(os, call), 0

    def dying(*args, **kwargs):
        nonlocal count
        count += 1
        if count == {"write": 40, "fsync": 14, "open": 17, "mkdir": 5, "rename": 4}.get(call, 1):
            die()
        return real(*args, **kwargs)

    def child():
        monkeypatch.setattr(os, call, dying)
        train(tmp_path)

    assert forked(child) == -9
    train(tmp_path)
    assert_same(tmp_path, reference)


def test_kill_at_random_times(reference, tmp_path):
    rng = random.Random(0)
    start = time.monotonic()
    os.waitpid(fork(lambda: train(tmp_path / "whole")), 0)
    wait = time.monotonic() - start  # so that kills fall inside on any machine
    for trial in range(4):
        run, num_kills = tmp_path / str(trial), 0
        while num_kills < 3:
            pid = fork(lambda run=run: train(run))
            time.sleep(rng.uniform(0, wait))
            os.kill(pid, 9)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert code in (-9, 0)
            if code == -9:
                num_kills += 1
            else:  # it had ended: the machine is quicker than at first
                shutil.rmtree(run)
                num_kills, wait = 0, 0.8 * wait
        train(run)
        assert_same(run, reference)


def test_the_comparison_can_fail(reference, tmp_path):
    train(tmp_path, seed=1)
    assert files_of(tmp_path, 30) != files_of(reference, 30)
    assert rows_of(tmp_path) != rows_of(reference)


def test_bf16_resumes_exactly_too(tmp_path):
    for run, cuts in ((tmp_path / "a", (30,)), (tmp_path / "b", (11, 23, 30))):
        for steps in cuts:
            train(run, precision="bf16", steps=steps, decay="none", warmup_steps=0)
    assert files_of(tmp_path / "a", 30) == files_of(tmp_path / "b", 30)


def test_more_steps_go_on_where_fewer_ended(tmp_path):
    constant = {"decay": "none", "warmup_steps": 0}
    train(tmp_path / "a", steps=12, **constant)
    train(tmp_path / "a", steps=30, **constant)
    train(tmp_path / "b", steps=30, **constant)
    assert files_of(tmp_path / "a", 30) == files_of(tmp_path / "b", 30)


def test_a_broken_newest_checkpoint_costs_only_time(reference, tmp_path, caplog):
    forked(lambda: train(tmp_path, Mortal(50)))
    file = sorted((tmp_path / "state").glob("step_*"))[-1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    train(tmp_path)
    assert "passed over" in caplog.text and str(file) in caplog.text
    assert_same(tmp_path, reference)


def test_a_finished_run_resumes_to_itself(reference, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(reference, run)
    train(run)
    assert_same(run, reference)


def test_a_stream_is_read_past_what_was_seen(tmp_path):
    rows = toy_data(80).split(8)
    for run, cuts in ((tmp_path / "a", (25,)), (tmp_path / "b", (3, 14, 25))):
        for steps in cuts:
            fit(
                Toy(),
                iter(rows * 3),
                run=run,
                resume=True,
                progress=False,
                **SETTINGS | {"steps": steps, "decay": "none", "warmup_steps": 0},
            )
    assert files_of(tmp_path / "a", 25) == files_of(tmp_path / "b", 25)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 16}, "batch_size was 8 and is now 16"),
        ({"seed": 3}, "seed was 0 and is now 3"),
        ({"steps": 2, "warmup_steps": None}, "steps=2"),
    ],
)
def test_other_settings_are_refused(tmp_path, changes, said):
    train(tmp_path, steps=4, warmup_steps=None)
    before = files_of(tmp_path, 4)
    with pytest.raises(UsageError, match=said):
        train(tmp_path, **{"steps": 8} | changes)
    assert files_of(tmp_path, 4) == before


def test_other_data_is_refused(tmp_path):
    train(tmp_path, steps=4)
    with pytest.raises(UsageError, match="num_samples was 45 and is now 40"):
        fit(Toy(), Rows(toy_data(40)), run=tmp_path, resume=True, **SETTINGS)


def test_another_model_is_refused(tmp_path):
    train(tmp_path, steps=4)
    with pytest.raises(FormatError, match="not of this model: counts|encoder.bias is"):
        train(tmp_path, Toy(width=5), steps=8)
    with pytest.raises(FormatError, match="norm.weight is unknown"):
        train(tmp_path, Toy(has_norm=False), steps=8)


def test_a_used_folder_needs_resume(tmp_path):
    train(tmp_path, steps=4)
    before = files_of(tmp_path, 4)
    with pytest.raises(UsageError, match=r"already holds step 4; pass --resume .* another --run"):
        train(tmp_path, resume=False)
    assert files_of(tmp_path, 4) == before
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(UsageError, match="already holds a model"):
        train(tmp_path, resume=False)


def test_metrics_are_cut_at_a_torn_line(reference, tmp_path):
    forked(lambda: train(tmp_path, Mortal(40)))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 19, "split": "tr')
    train(tmp_path)
    assert_same(tmp_path, reference)
