"""A checkpoint is old or new, never half; the newest is the one whose hashes hold."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qvae.errors import FormatError
from qvae.train.checkpoint import (
    clear_leftovers,
    latest_checkpoint,
    prune,
    save_checkpoint,
    saved_steps,
)
from train_toy import loads, parts, save

CALLS = ("open", "write", "fsync", "mkdir", "rename", "unlink", "rmdir")


def test_round_trip_of_every_type(tmp_path):
    tensors = {
        "f64": torch.randn(3, 2, dtype=torch.float64),
        "transposed": torch.randn(3, 2).T,
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "bf16": torch.randn(5).bfloat16(),
        "half": torch.randn(5).half(),
        "bool": torch.tensor([True, False, True]),
        "long": torch.tensor(2**40),
        "empty": torch.zeros(0, 4),
        "byte": torch.arange(7, dtype=torch.uint8),
    }
    tensors["tied"] = tensors["f64"]
    path = save_checkpoint(tmp_path, step=3, parts={"model": tensors}, facts={})
    read = load_file(path / "model.safetensors")
    assert sorted(read) == sorted(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


def test_order_of_writing(tmp_path, monkeypatch):
    """Files, then the manifest, then the folder, then the rename, then the parent."""
    events = []
    opened: dict[int, str] = {}
    real_open, real_fsync, real_rename = os.open, os.fsync, os.rename

    def open_(path, *args, **kwargs):
        handle = real_open(path, *args, **kwargs)
        opened[handle] = Path(path).name
        return handle

    def fsync(handle):
        real_fsync(handle)
        events.append(opened[handle])

    def rename(old, new, **kwargs):
        real_rename(old, new, **kwargs)
        events.append(f"-> {Path(new).name}")

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    (tmp_path / "state").mkdir()
    save_checkpoint(tmp_path / "state", step=5, parts=parts(5), facts={})
    assert events == [
        "model.safetensors",
        "average.safetensors",
        "state.json",
        ".saving_step_00000005",
        "-> step_00000005",
        "state",
    ]


def broken(path: Path, how: str) -> None:
    file = path / "model.safetensors"
    manifest = path / "state.json"
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "flipped":
        data = bytearray(file.read_bytes())
        data[-3] ^= 4
        file.write_bytes(bytes(data))
    elif how == "gone":
        file.unlink()
    elif how == "no manifest":
        manifest.unlink()
    elif how == "empty manifest":
        manifest.write_text("")
    elif how == "edited manifest":
        manifest.write_text(manifest.read_text().replace('"step": ', '"step": 1'))
    elif how == "no files":
        shutil.rmtree(path)
        path.mkdir()
    elif how == "renamed":
        path.rename(path.with_name(f"{path.name}9"))


@pytest.mark.parametrize(
    "how",
    [
        "cut",
        "flipped",
        "gone",
        "no manifest",
        "empty manifest",
        "edited manifest",
        "no files",
        "renamed",
    ],
)
def test_a_broken_newest_is_passed_over_and_named(tmp_path, caplog, how):
    for step in (9, 10):
        save(tmp_path, step)
    broken(tmp_path / "step_00000010", how)
    assert loads(tmp_path) == 9
    assert "passed over" in caplog.text
    broken(tmp_path / "step_00000009", how)
    with pytest.raises(FormatError, match="none of its 2 checkpoints is whole"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], None),
        ([9999, 10000], 10000),
        ([99_999_999, 100_000_000], 100_000_000),
        ([7], 7),
    ],
)
def test_newest_is_the_highest_number(tmp_path, names, expected):
    for step in names:
        save(tmp_path, step)
    for i, path in enumerate(sorted(tmp_path.iterdir(), reverse=True)):
        os.utime(path, (i, i))  # the clock says the contrary
    found = latest_checkpoint(tmp_path)
    assert (found.step if found else None) == expected


def test_strays_are_no_checkpoints(tmp_path):
    save(tmp_path, 3)
    for name in ("step_9", "step_00000012.tmp", ".saving_step_00000013", "step_x", "step_-4"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_00000050").write_text("a file")
    shutil.copytree(tmp_path / "step_00000003", tmp_path / ".removing_step_00000014")
    assert [step for step, _ in saved_steps(tmp_path)] == [9, 3]
    assert loads(tmp_path) == 3
    clear_leftovers(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert (tmp_path / "step_00000012.tmp").exists()  # not ours, not touched
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_a_name_without_zeros_is_read_by_its_number(tmp_path):
    save(tmp_path, 10)
    save(tmp_path, 9)
    (tmp_path / "step_00000009").rename(tmp_path / "step_9")
    (tmp_path / "step_00000010").rename(tmp_path / "step_10")
    assert loads(tmp_path) == 10


def test_a_newer_release_is_not_passed_over(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    manifest = tmp_path / "step_00000002/state.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 2}))
    with pytest.raises(FormatError, match="format_version=2, this release reads up to 1; upgrade"):
        latest_checkpoint(tmp_path)


def test_every_flipped_bit_is_found(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    generator = torch.Generator().manual_seed(0)
    for path in sorted((tmp_path / "step_00000002").iterdir()):
        whole = path.read_bytes()
        for position in torch.randint(0, len(whole) * 8, (20,), generator=generator).tolist():
            data = bytearray(whole)
            data[position // 8] ^= 1 << position % 8
            path.write_bytes(bytes(data))
            try:
                assert loads(tmp_path) == 1
            except FormatError as error:  # the version's own digit
                assert "upgrade" in str(error)
        path.write_bytes(whole)
    assert loads(tmp_path) == 2


def test_pruning_counts_whole_ones_only(tmp_path):
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step=step, parts=parts(step), facts={"step": step})
    broken(tmp_path / "step_00000004", "cut")
    broken(tmp_path / "step_00000003", "gone")
    prune(tmp_path, keep=2)
    assert [step for step, _ in saved_steps(tmp_path)] == [4, 3, 2, 1]
    prune(tmp_path, keep=1)
    assert [step for step, _ in saved_steps(tmp_path)] == [4, 3, 2]


def test_a_broken_one_is_written_anew_and_a_whole_one_kept(tmp_path):
    save(tmp_path, 2)
    broken(tmp_path / "step_00000002", "cut")
    save(tmp_path, 2)
    assert loads(tmp_path) == 2
    before = (tmp_path / "step_00000002").stat().st_ino
    save(tmp_path, 2)
    assert (tmp_path / "step_00000002").stat().st_ino == before


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_modes_are_those_of_any_file(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        save(tmp_path / "state", 1)
    finally:
        os.umask(before)
    for path in (tmp_path / "state/step_00000001").iterdir():
        assert path.stat().st_mode & 0o777 == mode
