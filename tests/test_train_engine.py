"""Devices, precision, and two processes that train as one."""

import contextlib
import math
import os
import signal
import socket
import threading

import pytest
import torch

from qvae.errors import TrainingStopped, UsageError
from qvae.train import fit
from qvae.train.engine import Engine, resolve_device, resolve_precision
from qvae.train.files import safetensors_chunks, write_new
from qvae.train.state import model_state
from qvae.types import Loss
from train_toy import SETTINGS, Rows, Toy, files_of, fork, one_thread, rows_of, toy_data, wait

__all__ = ["one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")


def two_processes(action):
    """Run action(rank) in two processes that can find each other; return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCH_GLOO_LAZY_INIT": "1",
    }
    pids = [
        fork(lambda rank=rank: action(rank), RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank in range(2)
    ]
    watchdog = threading.Timer(60, lambda: [_kill(pid) for pid in pids])
    watchdog.start()
    try:
        return [wait(pid) for pid in pids]
    finally:
        watchdog.cancel()


def _kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def run_of(run, model, data=None, **changes):
    data = (Rows(toy_data(45)), Rows(toy_data(10))) if data is None else data
    settings = SETTINGS | {"progress": False, "steps": 20, "batch_size": 16} | changes
    fit(model, data, run=run, **settings)


def dump(path, model):
    write_new(path, safetensors_chunks(model_state(model)))


def test_two_processes_are_one_and_agree_to_the_bit(tmp_path):
    def action(rank):
        model = Toy(noise=0.0, has_norm=False)
        run_of(tmp_path / "two", model)
        dump(tmp_path / f"rank{rank}", model)

    assert two_processes(action) == [0, 0]
    assert (tmp_path / "rank0").read_bytes() == (tmp_path / "rank1").read_bytes()
    run_of(tmp_path / "one", model := Toy(noise=0.0, has_norm=False))
    from safetensors.torch import load_file

    two = load_file(tmp_path / "rank0")
    for name, tensor in model_state(model).items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    one, other = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert [(r["step"], r["split"]) for r in one] == [(r["step"], r["split"]) for r in other]
    for a, b in zip(one, other, strict=True):
        assert a["nll"] == pytest.approx(b["nll"], rel=1e-4)


def test_two_processes_resume_to_the_same_bits(tmp_path):
    """Dropout and noise on; the first try stops by itself at a step."""

    def train(run, stops_at=None):
        class Stops(Toy):
            def forward(self, batch):
                if (
                    self.training
                    and stops_at is not None
                    and self.norm.num_batches_tracked >= 2 * (stops_at)
                ):
                    raise KeyboardInterrupt
                return super().forward(batch)

        run_of(run, Stops(), resume=True)

    assert two_processes(lambda rank: train(tmp_path / "a", 11)) == [99, 99]
    assert two_processes(lambda rank: train(tmp_path / "a")) == [0, 0]
    assert two_processes(lambda rank: train(tmp_path / "b")) == [0, 0]
    assert files_of(tmp_path / "a", 20) == files_of(tmp_path / "b", 20)
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_one_process_that_is_not_finite_stops_both_before_anything(tmp_path, where):
    class Breaks(Toy):
        def forward(self, batch):
            loss = super().forward(batch)
            if torch.distributed.get_rank() == 0 or not self.training:
                return loss
            zero = (self.decoder.bias * 0).abs().sqrt().sum()
            total = loss.total * math.nan if where == "loss" else loss.total + zero
            return Loss(total=total, nll=loss.nll, rate=loss.rate, penalty=loss.penalty,
                        metrics=loss.metrics)  # fmt: skip

    def action(rank):
        model = Breaks(noise=0.0)
        before = {name: tensor.clone() for name, tensor in model_state(model).items()}
        with pytest.raises(TrainingStopped, match="3 steps in a row"):
            run_of(tmp_path / "run", model, max_skipped=3)
        for name, tensor in model_state(model).items():
            assert torch.equal(tensor, before[name]), name

    assert two_processes(action) == [0, 0]
    assert len(rows_of(tmp_path / "run")) == 3


def test_an_error_of_the_first_process_ends_the_second(tmp_path):
    run_of(tmp_path, Toy(), steps=1)
    assert two_processes(lambda rank: run_of(tmp_path, Toy())) == [2, 5]


def test_more_processes_than_evaluation_batches(tmp_path):
    data = (Rows(toy_data(45)), Rows(toy_data(3)))

    def run(name):
        run_of(tmp_path / name, Toy(noise=0.0, has_norm=False), data)

    run("one")
    assert two_processes(lambda rank: run("two")) == [0, 0]
    for a, b in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert a["nll"] == pytest.approx(b["nll"], rel=1e-4) and a["rate"] == b["rate"]


def test_a_batch_that_cannot_be_shared(tmp_path):
    assert two_processes(lambda rank: run_of(tmp_path / "x", Toy(), batch_size=10)) == [2, 2]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "meta", "xpu"])
def test_unknown_devices(device):
    with pytest.raises(UsageError, match="device="):
        resolve_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="device='cuda': this machine or this torch has none"):
        run_of(tmp_path / "x", Toy(), device="cuda")
    assert not (tmp_path / "x").exists()


def test_precision(monkeypatch):
    cpu = torch.device("cpu")
    for amx, avx, expected in [(0, 0, "float32"), (1, 0, "bf16"), (0, 1, "bf16")]:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: bool(amx))
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: bool(avx))
        assert resolve_precision("auto", cpu) == expected
    assert resolve_precision("float32", cpu) == "float32"
    assert resolve_precision("auto", torch.device("mps")) == "float32"
    engine = Engine(rank=0, world=1, device=cpu, precision="bf16")
    conv = engine.place(torch.nn.Conv2d(3, 4, 3))
    assert conv.weight.dtype == torch.float32
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    with engine.autocast():
        y = conv(engine.place_input(torch.zeros(2, 3, 8, 8)))
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
