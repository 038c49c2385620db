"""What the loop promises besides resuming: refusals, signals, evaluation, data, files."""

import math
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from qvae import store
from qvae.errors import Interrupted, TrainingStopped
from qvae.train import TrainSettings, fit
from qvae.train.engine import Engine
from qvae.train.evaluate import evaluate
from qvae.types import Loss
from train_toy import (
    SETTINGS,
    Rows,
    Toy,
    files_of,
    fork,
    forked,
    one_thread,
    rows_of,
    toy_data,
    wait,
)

__all__ = ["one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")
CONSTANT = {"decay": "none", "warmup_steps": 0}


class Poisoned(Rows):
    """A split with one sample that is not a number."""

    def batch(self, indices):
        batch = super().batch(indices)
        batch.x[batch.ids == 5] = math.nan
        return batch


def run_of(run, data=None, model=None, **changes):
    settings = SETTINGS | {"progress": False} | changes
    data = (Rows(toy_data(45)), Rows(toy_data(10))) if data is None else data
    return fit(model or Toy(), data, run=run, **settings)


def bad_steps(run):
    return [row["step"] for row in rows_of(run) if row.get("is_refused")]


# --- refused steps -----------------------------------------------------------------------------


def test_a_step_that_is_not_finite_changes_nothing(tmp_path, caplog):
    data = (Poisoned(toy_data(45)), None)
    settings = {"batch_size": 4, "accumulate": 2, "save_every": 1, "keep": 99, **CONSTANT}
    run_of(tmp_path, data, steps=30, **settings)
    refused = bad_steps(tmp_path)
    assert 2 <= len(refused) <= 3  # once an epoch of 45 / 4 steps
    assert f"step {refused[0]} refused: loss nan" in caplog.text
    for step in refused:
        before, after = files_of(tmp_path, step - 1), files_of(tmp_path, step)
        model = "model/model.safetensors"
        assert len(before) == 4 and before.pop(model) == after.pop(model)
        assert list(before.values()) == list(after.values())
        later = files_of(tmp_path, step + 1)
        del later[model]
        # The same files under the next step's name, each with other bytes.
        assert all(a != b for a, b in zip(after.values(), later.values(), strict=True))
    rows = [row for row in rows_of(tmp_path) if row.get("is_refused")]
    assert all(row["loss"] is None and 5 in row["ids"] for row in rows)
    assert all(math.isfinite(row["loss"]) for row in rows_of(tmp_path) if row not in rows)


def test_it_stops_after_many_refusals_with_the_last_good_state(tmp_path):
    class Breaks(Toy):
        def forward(self, batch):
            loss = super().forward(batch)
            if self.training and float(self.counts.sum()) > 5.3:  # after some steps, for ever
                return Loss(total=loss.total * math.inf, nll=loss.nll, rate=loss.rate,
                            penalty=loss.penalty)  # fmt: skip
            return loss

    with pytest.raises(TrainingStopped, match="not finite in 4 steps in a row") as caught:
        run_of(tmp_path, model=Breaks(), max_skipped=4, save_every=1000)
    refused = bad_steps(tmp_path)
    good = refused[0] - 1
    assert refused == [good + 1, good + 2, good + 3, good + 4] and good >= 1
    assert f"{good + 1} to {good + 4}" in str(caught.value) and "samples" in str(caught.value)
    assert f"the state after step {good} is saved" in str(caught.value)
    assert caught.value.exit_code == 5
    assert os.listdir(tmp_path / "state") == [f"step_{good:08d}"]
    assert not (tmp_path / ".lock").exists()
    # Resumed with a model that does not break, it goes on from there.
    run_of(tmp_path, resume=True)
    assert bad_steps(tmp_path) == [] and rows_of(tmp_path)[-1]["step"] == 30


def test_nothing_is_saved_when_no_step_was_good(tmp_path):
    data = (Rows(toy_data() * math.nan), None)
    with pytest.raises(TrainingStopped, match="no step was good"):
        run_of(tmp_path, data, max_skipped=3)
    assert not (tmp_path / "state").exists() and bad_steps(tmp_path) == [1, 2, 3]
    run_of(tmp_path)  # so the folder is free for a new attempt
    assert rows_of(tmp_path)[0]["step"] == 3


def test_an_error_before_the_first_step_leaves_nothing(tmp_path):
    wrong = (Rows(toy_data()[:, :5]), None)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_of(tmp_path / "above/run", wrong, recipe={"a": 1})
    assert os.listdir(tmp_path) == []
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    (mine / "recipe.yaml").write_text("mine")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_of(mine, wrong)
    assert sorted(os.listdir(mine)) == ["notes.txt", "recipe.yaml"]


def test_an_error_after_a_row_keeps_it(tmp_path):
    class Breaks(Rows):
        def batch(self, indices):
            self.reads = getattr(self, "reads", 0) + 1
            return super().batch(indices if self.reads < 5 else indices + 10**6)

    with pytest.raises(IndexError):
        run_of(tmp_path / "run", (Breaks(toy_data()), None), save_every=1000)
    assert sorted(os.listdir(tmp_path / "run")) == ["env.json", "metrics.jsonl"]
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [3]


def test_an_infinite_gradient_of_a_finite_loss_is_refused(tmp_path):
    class Steep(Toy):
        def forward(self, batch):
            loss = super().forward(batch)
            zero = (self.decoder.bias * 0).abs().sqrt().sum()  # 0, with derivative 0 * inf
            return Loss(total=loss.total + zero, nll=loss.nll, rate=loss.rate,
                        penalty=loss.penalty)  # fmt: skip

    with pytest.raises(TrainingStopped):
        run_of(tmp_path, model=Steep(), max_skipped=2)
    assert bad_steps(tmp_path) == [1, 2]


# --- accumulation ------------------------------------------------------------------------------


def test_accumulating_is_one_large_batch(tmp_path):
    models = []
    for accumulate in (1, 4):
        model = Toy(noise=0.0, has_norm=False)
        run_of(tmp_path / str(accumulate), model=model, batch_size=64, accumulate=accumulate)
        models.append(model)
    for (name, a), b in zip(
        models[0].state_dict().items(), models[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
    for a, b in zip(rows_of(tmp_path / "1"), rows_of(tmp_path / "4"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a.get("grad_norm", 0.0) == pytest.approx(b.get("grad_norm", 0.0), rel=1e-3)


# --- signals -----------------------------------------------------------------------------------


class Signalling(Rows):
    """A split that sends its own process a signal when it is read for the n-th time."""

    def __init__(self, rows, number, when):
        super().__init__(rows)
        self.number, self.when = number, when

    def batch(self, indices):
        self.when -= 1
        if self.when == 0:
            os.kill(os.getpid(), self.number)
        return super().batch(indices)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("where", ["train", "evaluation"])
def test_a_signal_saves_and_a_resume_goes_on_exactly(tmp_path, number, code, where):
    good = (Rows(toy_data(45)), Rows(toy_data(10)))
    if where == "train":
        data = (Signalling(toy_data(45), number, 6), good[1])
    else:
        data = (good[0], Signalling(toy_data(10), number, 2))  # 3 batches; the 1st evaluation
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        run_of(tmp_path / "a", data)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before
    steps = sorted(os.listdir(tmp_path / "a/state"))
    assert int(steps[-1][5:]) in ((5, 6) if where == "train" else (7,))
    assert not (tmp_path / "a/.lock").exists()
    run_of(tmp_path / "a", good, resume=True)
    run_of(tmp_path / "b", good)
    assert files_of(tmp_path / "a", 30) == files_of(tmp_path / "b", 30)
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")


def test_a_second_signal_ends_at_once(tmp_path):
    class Told(Toy):
        def forward(self, batch):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)
            return super().forward(batch)

    assert forked(lambda: run_of(tmp_path, model=Told())) == 143
    assert not (tmp_path / "state").exists()


def test_sigterm_from_outside(tmp_path):
    pid = fork(lambda: run_of(tmp_path, steps=10**6, save_every=10**6, eval_every=10**6))
    for _ in range(1000):
        if (tmp_path / "metrics.jsonl").exists() and (tmp_path / "metrics.jsonl").stat().st_size:
            break
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    began = time.monotonic()
    assert wait(pid) == 143
    assert time.monotonic() - began < 5
    assert len(os.listdir(tmp_path / "state")) == 1


def test_in_another_thread_it_trains_without_handlers(tmp_path):
    thread = threading.Thread(target=lambda: run_of(tmp_path, steps=2))
    thread.start()
    thread.join()
    assert (tmp_path / "model/model.safetensors").exists()


# --- evaluation --------------------------------------------------------------------------------


def test_evaluation_is_the_mean_over_samples_and_changes_nothing():
    model, split = Toy(), Rows(toy_data(10))
    model.train()
    model.dropout.eval()
    engine = Engine(rank=0, world=1, device=torch.device("cpu"), precision="float32")
    settings = TrainSettings(batch_size=4, eval_samples=None)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    found = [
        evaluate(model, split, engine=engine, settings=settings, should_stop=lambda: False)
        for _ in range(2)
    ]
    assert found[0] == found[1]
    for name, tensor in model.named_buffers():
        assert torch.equal(tensor, before[name]), name
    assert model.training and model.norm.training and not model.dropout.training
    model.eval()
    with torch.no_grad():
        whole = model(split.batch(np.arange(10)))
    assert found[0]["nll"] == pytest.approx(float(whole.nll.mean()), rel=1e-5)
    assert found[0]["loss"] == pytest.approx(float(whole.total), rel=1e-5)
    assert found[0]["rate"] == 1.5
    assert list(found[0]) == ["loss", "nll", "rate", "penalty", "used"]


def test_evaluation_takes_evenly_spread_samples():
    seen = []

    class Seen(Rows):
        def batch(self, indices):
            seen.extend(indices.tolist())
            return super().batch(indices)

    engine = Engine(rank=0, world=1, device=torch.device("cpu"), precision="float32")
    settings = TrainSettings(batch_size=2, eval_samples=5)
    rows = Seen(toy_data(50))
    evaluate(Toy(), rows, engine=engine, settings=settings, should_stop=lambda: False)
    assert seen == [0, 10, 20, 30, 40]


def test_averaged_weights_are_what_is_evaluated_and_exported(tmp_path):
    class Recording(Toy):
        seen = None

        def forward(self, batch):
            if not self.training:
                self.seen = self.encoder.weight.detach().clone()
            return super().forward(batch)

    model = Recording()
    run_of(tmp_path, model=model)
    folder = tmp_path / "state/step_00000030"
    average = store.load_file(folder / "average.safetensors")["encoder.weight"]
    live = store.load_file(folder / "model.safetensors")
    exported, config = store.load_folder(tmp_path / "model")
    assert config["kind"] == "custom"
    assert torch.equal(exported["encoder.weight"], average)
    assert torch.equal(model.encoder.weight, average) and not model.training
    assert torch.equal(model.seen, average)
    assert not torch.equal(live["encoder.weight"], average)
    assert torch.equal(exported["sums"], live["sums"])
    assert "staged_sums" in live and "staged_sums" not in exported
