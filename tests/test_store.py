"""Folders are written whole or not at all, and a damaged one is refused by name."""

import json
import os

import pytest
import torch

from qvae import store
from qvae.errors import FormatError


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3), "c": torch.zeros(0)}
    store.save_folder(path, tensors, {"kind": "test"}, files={"README.md": "card"})
    return path


def test_round_trip(folder):
    tensors, config = store.load_folder(folder)
    assert torch.equal(tensors["a"], torch.arange(6.0).view(2, 3))
    assert tensors["b"].dtype == torch.int64 and tensors["c"].shape == (0,)
    assert config["kind"] == "test" and config["format_version"] == store.FORMAT_VERSION
    assert (folder / "README.md").read_text() == "card"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_tied_and_strided_tensors_are_stored(tmp_path):
    shared = torch.arange(12.0).view(3, 4)
    store.save_folder(tmp_path / "m", {"x": shared, "y": shared, "t": shared.T}, {})
    tensors, _ = store.load_folder(tmp_path / "m")
    assert torch.equal(tensors["y"], shared) and torch.equal(tensors["t"], shared.T)


@pytest.mark.parametrize("place", [0, 100, -1])
def test_one_flipped_bit_is_found(folder, place):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="damaged or swapped"):
        store.load_folder(folder)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "not readable as JSON"),
        ("[]", "format_version is missing"),
        ('{"format_version": "1"}', "format_version is missing"),
        ('{"format_version": 99}', "upgrade qvae"),
        ("[" * 100_000, "not readable as JSON"),
    ],
)
def test_other_configs_are_refused(folder, text, rule):
    (folder / "config.json").write_text(text)
    with pytest.raises(FormatError, match=rule) as caught:
        store.load_folder(folder)
    assert "config.json" in str(caught.value)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(FormatError, match="nowhere.*no such file"):
        store.load_folder(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FormatError, match="model.safetensors"):
        store.load_folder(folder)


def test_a_failed_write_leaves_the_old_folder(folder, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space"):
                store.save_folder(folder, {"a": torch.ones(1)}, {})
        tensors, _ = store.load_folder(folder)
        assert torch.equal(tensors["a"], torch.arange(6.0).view(2, 3)), name
        assert sorted(path.name for path in folder.parent.iterdir()) == ["model"], name


def test_files_get_the_mode_that_the_umask_gives(tmp_path):
    old = os.umask(0o027)
    try:
        store.save_folder(tmp_path / "m", {"a": torch.ones(1)}, {})
    finally:
        os.umask(old)
    assert (tmp_path / "m" / "model.safetensors").stat().st_mode & 0o777 == 0o640


def test_the_hash_knows_names_types_values_and_config_but_no_order():
    a, b = torch.ones(2), torch.zeros(2)
    known = store.content_hash({"a": a, "b": b}, {"x": 1, "y": 2})
    assert known == store.content_hash({"b": b, "a": a}, {"y": 2, "x": 1})
    others = [
        ({"a": b, "b": a}, {"x": 1, "y": 2}),
        ({"a": a, "c": b}, {"x": 1, "y": 2}),
        ({"a": a.double(), "b": b}, {"x": 1, "y": 2}),
        ({"a": a.view(2, 1), "b": b}, {"x": 1, "y": 2}),
        ({"a": a, "b": b}, {"x": 1, "y": 3}),
    ]
    assert len({known, *(store.content_hash(*other) for other in others)}) == 6


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "facts.json"
    store.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="NaN|nan|Out of range"):
        store.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]
