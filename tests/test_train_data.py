"""What can be trained on, and what a run folder holds in the end."""

import json
import logging
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from qvae import store
from qvae.autoencoder import build_autoencoder
from qvae.errors import DataError, FormatError, TrainingStopped, UsageError
from qvae.registry import COMPONENTS
from qvae.train import fit, log
from qvae.train.sources import as_pair
from qvae.types import Batch, DataSpec
from train_toy import (
    SETTINGS,
    Rows,
    Toy,
    one_thread,
    rows_of,
    toy_data,
)

__all__ = ["one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")


def run_of(run, data=None, model=None, **changes):
    settings = SETTINGS | {"progress": False} | changes
    data = (Rows(toy_data(45)), Rows(toy_data(10))) if data is None else data
    return fit(model or Toy(), data, run=run, **settings)


# --- data --------------------------------------------------------------------------------------


class Module:
    def train(self):
        return Rows(toy_data(45))

    def valid(self):
        return Rows(toy_data(5))


@pytest.mark.parametrize(
    ("data", "num_train", "num_valid"),
    [
        pytest.param(Module(), 45, 5, id="module"),
        pytest.param((Rows(toy_data(20)), Rows(toy_data(3))), 20, 3, id="pair of splits"),
        pytest.param((toy_data(20), None), 20, None, id="no valid"),
        pytest.param((toy_data(20), []), 20, None, id="empty valid"),
        pytest.param(toy_data(50), 45, 5, id="tensor"),
        pytest.param(toy_data(50).numpy().astype(np.float64), 45, 5, id="array"),
        pytest.param(list(toy_data(20)), 18, 2, id="list"),
        pytest.param(toy_data(1), 1, None, id="one sample"),
    ],
)
def test_kinds_of_data(tmp_path, data, num_train, num_valid):
    train, valid = as_pair(data)
    assert len(train) == num_train
    assert (None if valid is None else len(valid)) == num_valid
    result = run_of(tmp_path, data, steps=3)
    assert result.step == 3 and result.run == tmp_path
    assert result.metrics["split"] == ("train" if num_valid is None else "valid")


def test_train_and_valid_share_no_sample():
    train, valid = as_pair(torch.arange(100))
    parts = [set(part.batch(np.arange(len(part))).x.tolist()) for part in (train, valid)]
    assert parts[0] | parts[1] == set(range(100)) and len(parts[1]) == 10
    assert parts[1] != set(range(90, 100))


def test_torchs_own_datasets_and_loaders(tmp_path):
    rows = toy_data(16)
    alone = torch.utils.data.TensorDataset(rows)
    labelled = torch.utils.data.TensorDataset(rows, torch.arange(16))
    for name, data in {"set": alone, "loader": torch.utils.data.DataLoader(alone, 4)}.items():
        assert run_of(tmp_path / name, data, steps=2, batch_size=4).step == 2
    with pytest.raises(UsageError, match="an item is a tuple and no array.*qvae.types.Batch"):
        run_of(tmp_path / "labelled", labelled, steps=2, batch_size=4)


def test_types_of_numbers():
    for given, expected in [
        (torch.tensor([[0, 255]], dtype=torch.uint8), torch.tensor([[0.0, 1.0]])),
        (torch.tensor([[3]], dtype=torch.int16), torch.tensor([[3]])),
        (np.array([[0.5]], dtype=np.float64), torch.tensor([[0.5]])),
    ]:
        x = as_pair((given, None))[0].batch(np.array([0])).x
        assert x.dtype == expected.dtype and torch.equal(x, expected)


def test_streams(tmp_path):
    seen = []

    class Counting(Toy):
        def forward(self, batch):
            seen.append((len(batch), None if batch.ids is None else batch.ids.tolist()))
            return super().forward(batch)

    class Stream:
        def __iter__(self):
            yield Batch(x=toy_data(6), ids=torch.arange(6))
            yield toy_data(4)

    run_of(tmp_path, Stream(), model=Counting(), steps=3)
    assert seen == [(3, [0, 1, 2]), (3, [3, 4, 5]), (2, None), (2, None)] + seen[:2]
    with pytest.raises(DataError, match="the data ended after 2 batches"):
        run_of(tmp_path / "short", iter(Stream()), steps=3)


@pytest.mark.parametrize("data", [3, (1, 2, 3), object(), (toy_data(4), iter([]))])
def test_what_is_no_data(tmp_path, data):
    with pytest.raises(UsageError, match="data: "):
        run_of(tmp_path / "new", data)
    assert not (tmp_path / "new").exists()


def test_empty_data(tmp_path):
    with pytest.raises(DataError, match="the train split is empty"):
        run_of(tmp_path / "new", (Rows(toy_data(0)), None))
    assert not (tmp_path / "new").exists()


def picture_model(likelihood, levels=None):
    parts = {
        "encoder": {"name": "mlp", "hidden": [8]},
        "bottleneck": {"name": "gaussian", "dim": 2},
        "decoder": {"name": "mlp", "hidden": [8]},
        "likelihood": {"name": likelihood},
    }
    return build_autoencoder(parts, DataSpec(shape=(1, 4, 4), levels=levels))


PIXELS = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
SPOILED = PIXELS.clone()
SPOILED[19, 0, 3, 3] = torch.inf


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (PIXELS * 255, r"data: values from [0-9.]+ to 25[0-9.]+, DataSpec\(levels=256\) needs"),
        ((PIXELS.numpy(), 0.5 - PIXELS.double()), r"data\[1\], the valid split: values from -0"),
        (list(PIXELS - 0.5), r"data: values from -0.[0-9]+ to 0.[0-9]+, DataSpec"),
        (torch.full_like(PIXELS, torch.nan), "data: holds NaN or Inf, needs finite values"),
        (SPOILED, "data: holds NaN or Inf"),
        (list(SPOILED.bfloat16()), "data: holds NaN or Inf"),
        ((torch.ones_like(PIXELS), None), r"data\[0\], the train split: every value is 1, a"),
        (np.full((9, 1, 4, 4), 7, np.uint8), "data: every value is 7, a constant has nothing"),
    ],
)
def test_numbers_that_teach_nothing_are_refused_before_a_folder_is_made(tmp_path, data, sentence):
    with pytest.raises(DataError, match=sentence):
        run_of(tmp_path / "new", data, model=picture_model("gaussian", levels=256), steps=1)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("likelihood", COMPONENTS["likelihood"])
def test_a_likelihood_on_the_unit_interval_declares_it(tmp_path, likelihood):
    """Real numbers are the data of a density of real numbers; the others refuse a batch of them."""
    model, data = picture_model(likelihood), 3 * PIXELS - 1
    if not model.likelihood.takes_unit:
        assert run_of(tmp_path / "new", data, model=model, steps=2).step == 2
        return
    with pytest.raises(ValueError, match="takes data in"):
        model(Batch(x=data))
    with pytest.raises(DataError, match=rf"{type(model.likelihood).__name__} needs \[0, 1\]"):
        run_of(tmp_path / "new", data, model=model)
    assert not (tmp_path / "new").exists()


def test_what_may_pass(tmp_path):
    """Bytes are brought to [0, 1], and one blank picture is enough to evaluate on."""
    model = picture_model("gaussian", levels=256)
    data = ((PIXELS * 255).byte(), torch.zeros(1, 1, 4, 4))
    assert run_of(tmp_path, data, model=model, steps=2).step == 2


def test_an_error_while_reading_ahead_is_raised(tmp_path):
    class Failing(Rows):
        def batch(self, indices):
            if 7 in indices:
                raise DataError("sample 7 is broken")
            return super().batch(indices)

    with pytest.raises(DataError, match="sample 7 is broken"):
        run_of(tmp_path, (Failing(toy_data(45)), None))
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("seconds", [0, 0.04])
def test_only_what_is_slow_is_read_ahead(tmp_path, seconds, monkeypatch):
    monkeypatch.setattr("qvae.train.sources._QUICK", 0.02)  # the type checker is slow
    readers = []

    class Timed(Rows):
        def batch(self, indices):
            readers.append(threading.current_thread().name)
            time.sleep(seconds)
            return super().batch(indices)

    run_of(tmp_path, (Timed(toy_data(45)), None), steps=8)
    assert len(readers) == 8
    assert any("qvae-read" in name for name in readers) == bool(seconds)


# --- files and arguments -----------------------------------------------------------------------


def test_rows_and_files(tmp_path):
    run_of(tmp_path, recipe={"model": {"dim": 3}, "näme": [1, 2]}, seed=4)
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == {
        "model": {"dim": 3},
        "näme": [1, 2],
    }
    env = json.loads((tmp_path / "env.json").read_text())
    assert env["torch"] == torch.__version__ and env["seed"] == 4
    assert env["precision"] == "float32" and env["num_threads"] == 1
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["split"] == "train"]
    valid = [row for row in rows if row["split"] == "valid"]
    assert [row["step"] for row in train] == list(range(3, 31, 3))
    assert [row["step"] for row in valid] == [7, 14, 21, 28, 30]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    fields = ["step", "split", "loss", "nll", "rate", "penalty", "used"]
    more = ["lr", "grad_norm", "seconds", "samples_per_second"]
    assert list(train[0]) == fields + more and list(valid[0]) == [*fields, "seconds"]
    assert train[-1]["loss"] < train[0]["loss"]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert sorted(os.listdir(tmp_path / "state")) == ["step_00000028", "step_00000030"]


def test_a_row_is_the_mean_of_its_steps(tmp_path):
    run_of(tmp_path / "each", log_every=1)
    run_of(tmp_path / "third", log_every=3)
    each = [row["loss"] for row in rows_of(tmp_path / "each") if row["split"] == "train"]
    third = [row["loss"] for row in rows_of(tmp_path / "third") if row["split"] == "train"]
    assert third == pytest.approx([sum(each[i : i + 3]) / 3 for i in range(0, 30, 3)])


def test_export_is_called_once_with_the_final_model(tmp_path):
    calls = []
    run_of(tmp_path, steps=3, export=lambda model, path: calls.append((model, path)))
    assert [path for _, path in calls] == [tmp_path / "model"]
    assert not (tmp_path / "model").exists()


def test_init_takes_weights_from_a_run_or_a_model_folder(tmp_path):
    run_of(tmp_path / "first")
    weights, _ = store.load_folder(tmp_path / "first/model")
    for init in (tmp_path / "first", tmp_path / "first/model"):
        seen = []

        class First(Toy):
            def forward(self, batch, seen=seen):
                seen.append(self.encoder.weight.detach().clone())
                return super().forward(batch)

        run_of(tmp_path / init.name / "second", init=init, model=First(), steps=1)
        assert torch.equal(seen[0], weights["encoder.weight"])
    with pytest.raises(FormatError, match="not of this model"):
        run_of(tmp_path / "third", init=tmp_path / "first", model=Toy(width=5))
    with pytest.raises(FormatError, match="no such file"):
        run_of(tmp_path / "fourth", init=tmp_path / "nowhere")


def test_a_caller_keeps_his_random_numbers(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    model = Toy()
    torch.manual_seed(5)
    run_of(tmp_path, model=model, steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_a_folder_in_use_is_refused(tmp_path):
    class Nested(Rows):
        def batch(self, indices):
            with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
                run_of(tmp_path, steps=1)
            return super().batch(indices)

    run_of(tmp_path, (Nested(toy_data(45)), None), steps=1)


@pytest.mark.parametrize("progress", [False, True, "force"])
def test_the_bar_is_for_terminals(tmp_path, capfd, progress):
    run_of(tmp_path, steps=3, progress=progress)
    assert ("3/3" in capfd.readouterr().err) == (progress == "force")


@pytest.mark.parametrize("progress", [False, True])
def test_a_log_gets_lines_instead_of_a_bar(tmp_path, capfd, monkeypatch, progress):
    monkeypatch.setattr(log, "_LINE_SECONDS", 0.0)
    run_of(tmp_path, steps=3, progress=progress)
    err = capfd.readouterr().err
    assert [f"{step}/3" in err for step in (1, 2, 3)] == [progress] * 3
    assert "\r" not in err and "\n\n" not in err


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written to"):
        run_of(tmp_path / "file" / "run")


def test_out_of_memory_names_the_knob(tmp_path):
    class Huge(Toy):
        def forward(self, batch):
            torch.empty(2**50)
            return super().forward(batch)

    with pytest.raises(TrainingStopped, match="out of memory with batch_size=8 in 2 parts: raise"):
        run_of(tmp_path, model=Huge())


def test_nothing_leaks(tmp_path):
    def count():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    run_of(tmp_path / "0", steps=2)
    before = count()
    for i in range(1, 4):
        run_of(tmp_path / str(i), steps=5, save_every=1)
    assert count() == before
    assert not logging.getLogger("qvae").handlers


def test_a_user_module_around_a_codebook_needs_no_hooks(tmp_path):
    class Around(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.ModuleList([Toy()])

        def forward(self, batch):
            return self.inner[0](batch)

    model = Around()
    before = model.inner[0].sums.clone()
    run_of(tmp_path, model=model, steps=2)
    assert not torch.equal(model.inner[0].sums, before)
    assert float(model.inner[0].staged_counts.sum()) == 0


def test_a_folder_of_strings_works_too(tmp_path):
    assert run_of(str(tmp_path / "run"), steps=1).run == Path(tmp_path / "run")
