"""The benchmark measures what it says, refuses what would not fit, and writes it down."""

import json
import mmap
import os
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from qvae.cli.main import main
from qvae.reports import bench as bench_module
from qvae.reports import contestants
from qvae.reports.bench import bench, race
from qvae.reports.bench_figure import fingerprint
from qvae.reports.machine import describe_machine, forget_peak, peak_memory
from tables_speed import bound


@pytest.fixture(autouse=True)
def _no_peers(monkeypatch):
    """A peer that is on no machine, so that the tests are the same on all."""
    peers = {"qvae-peer-that-is-nowhere": ("nowhere", "1.0")}
    monkeypatch.setattr(contestants, "PEERS", peers)
    monkeypatch.setattr(bench_module, "PEERS", peers)


def test_contestants_take_turns_and_slow_ones_fewer():
    order = []

    def slow():
        order.append("slow")
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    found = race({"slow": slow, "quick": lambda: order.append("quick")}, rounds=4, patience=0.01)
    assert order[:2] == ["slow", "quick"]
    assert found["slow"]["rounds"] == 1 and found["quick"]["rounds"] == 4
    assert found["slow"]["best_ms"] >= 20


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no such mask")
def test_a_result_says_whether_its_process_was_pinned():
    cores = os.sched_getaffinity(0)
    assert describe_machine()["cores"] == len(cores)
    try:
        os.sched_setaffinity(0, {min(cores)})
        machine = bench("nearest", rounds=1, shapes=[(8, 4, 2)], has_memory=False)["machine"]
    finally:
        os.sched_setaffinity(0, cores)
    assert machine["cores"] == 1 and bound(machine) == " pinned to one core"
    assert bound({**machine, "cores": 3}) == ", 3 cores to run on"
    del machine["cores"]  # an older result
    assert bound(machine) == ""


@pytest.mark.parametrize("what", ["nearest", "quantizer"])
def test_bench_as_a_command(what, tmp_path, capsys):
    out = tmp_path / "result.json"
    words = ["--shape", "40,12,4", "--rounds", "2", "--no-memory", "-o", str(out), "--json"]
    assert main(["bench", what, *words]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(out.read_text())
    row = data["rows"][0]
    assert row["shape"] == [40, 12, 4]
    assert row["contestants"]["torch"]["rounds"] == 2
    assert row["contestants"]["qvae-peer-that-is-nowhere"] == "not installed"
    with Image.open(out.with_suffix(".png")) as image:
        assert image.text["Description"] == fingerprint(data)
        colours = {colour for _, colour in image.convert("RGB").getcolors(100_000)}
    assert (0x1F, 0x5F, 0xA8) in colours, "our own dots are blue"
    assert main(["bench", what, "-o", str(out.with_suffix(".png"))]) == 2
    assert "is the JSON's name" in capsys.readouterr().err
    assert main(["bench", what, *words[:-3]]) == 0
    assert "N=40 K=12 D=4" in capsys.readouterr().out


def test_a_shape_that_is_none_is_refused(capsys):
    assert main(["bench", "nearest", "--shape", "8,0,2"]) == 2
    assert "'8,0,2' must be three whole numbers" in capsys.readouterr().err


def test_what_would_not_fit_is_not_run(monkeypatch):
    monkeypatch.setattr(bench_module, "free_memory", lambda: 10_000)
    result = bench("nearest", rounds=1, shapes=[(64, 64, 2)], has_memory=False)
    assert result["rows"][0]["contestants"]["cdist"] == "would need about 0 GB"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_that_of_one_call():
    """cdist makes the whole matrix, 32 MB here; a tiled search makes a small part of it."""
    matrix = bench_module._peak_memory("nearest", "cdist", 1000, 8000, 4)
    tiles = bench_module._peak_memory("nearest", "torch", 1000, 8000, 4)
    assert matrix > 30 and tiles < 15


def test_a_forced_path_is_given_back(monkeypatch):
    monkeypatch.setenv("QVAE_KERNEL", "reference")
    with contestants.on_path("torch"):
        assert contestants.os.environ["QVAE_KERNEL"] == "torch"
    assert contestants.os.environ["QVAE_KERNEL"] == "reference"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is not kept here")
def test_a_peak_that_is_past_is_forgotten():
    before = forget_peak()
    with mmap.mmap(-1, 160_000_000) as pages:  # an allocator might keep them for later
        for start in range(0, len(pages), 4096):
            pages[start] = 1
    assert peak_memory() - before > 150e6
    assert peak_memory() - forget_peak() > 100e6
    assert peak_memory() - before < 100e6
