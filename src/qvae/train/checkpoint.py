"""Checkpoints that a crash cannot break: ``state/step_00001234/`` is whole or it is not there.

A folder holds safetensors files and ``state.json``: the step, the facts of the loop, the size and
SHA-256 of every file, and a hash of itself. Order of writing: temporary folder, files (each
flushed to disk), ``state.json``, flush the folder, rename, flush the parent; only then are older
ones removed, and by a rename first, so that half a removal never looks like a checkpoint. The
newest is the highest step whose hashes hold; no clock and no pointer file has a say.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file
from torch import Tensor

from qvae.errors import FormatError, TrainingStopped
from qvae.store import fsync_path, read_json, sha256_file
from qvae.train.files import safetensors_chunks, write_new

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "clear_leftovers",
    "latest_checkpoint",
    "open_checkpoint",
    "prune",
    "save_checkpoint",
    "saved_steps",
]

FORMAT_VERSION = 1
_MANIFEST = "state.json"
_STEP = re.compile(r"step_(\d+)")
_LEFTOVERS = (".saving_", ".removing_")
logger = logging.getLogger(__name__)


class CheckpointError(TrainingStopped, OSError):
    """A checkpoint could not be written; the older ones are untouched."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose hashes hold."""

    path: Path
    step: int
    facts: dict[str, Any]

    def tensors(self, part: str) -> dict[str, Tensor]:
        """Read one of its files; an empty dict if it was not saved.

        Raises:
            FormatError: not a safetensors file.
        """
        file = self.path / f"{part}.safetensors"
        try:
            return load_file(file) if file.exists() else {}
        except (safetensors.SafetensorError, ValueError) as error:
            raise FormatError(f"{file}: {error}") from None


def save_checkpoint(
    state: Path,
    *,
    step: int,
    parts: Mapping[str, Mapping[str, Tensor]],
    facts: Mapping[str, Any],
) -> Path:
    """Write a checkpoint; on return it is on the disk.

    A whole one of the same step is kept as it is: a step's state is a function of the run.

    Args:
        state: the run's folder of checkpoints.
        step: optimizer steps done.
        parts: file name (without ending) -> its tensors.
        facts: JSON values.

    Raises:
        CheckpointError: the disk is full, or may not be written; what was there still loads.
    """
    path = state / f"step_{step:08d}"
    temporary = state / f"{_LEFTOVERS[0]}{path.name}"
    try:
        if not state.is_dir():
            state.mkdir(parents=True)
            fsync_path(state.parent)
        if path.exists():
            if _is_whole(path):
                return path
            _remove(path)
        _remove(temporary)
        temporary.mkdir()
        _fill(temporary, step, parts, facts)
        os.rename(temporary, path)
        fsync_path(state)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _explain(error, path, parts) from error
    return path


def latest_checkpoint(state: Path) -> Checkpoint | None:
    """Find the highest step whose hashes hold, and warn about each that was passed over.

    Raises:
        FormatError: there are checkpoints and none is whole, or one is of a newer release.
    """
    steps = saved_steps(state)
    for _, path in steps:
        try:
            return open_checkpoint(path)
        except _Broken as error:
            logger.warning("checkpoint passed over: %s", error)
    if steps:
        raise FormatError(f"{state}: none of its {len(steps)} checkpoints is whole")
    return None


def saved_steps(state: Path) -> list[tuple[int, Path]]:
    """List the folders that look like checkpoints, the highest step first."""
    found = []
    for path in state.iterdir() if state.is_dir() else ():
        match = _STEP.fullmatch(path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def prune(state: Path, *, keep: int) -> None:
    """Remove what is older than the ``keep`` newest whole checkpoints."""
    num_whole = 0
    for _, path in saved_steps(state):
        if num_whole >= keep:
            _remove(path)
        elif _is_whole(path, check_hashes=False):
            num_whole += 1


def clear_leftovers(state: Path) -> None:
    """Remove what a killed process left half-written; only the run's owner may call this."""
    for path in list(state.iterdir()) if state.is_dir() else ():
        if path.name.startswith(_LEFTOVERS):
            shutil.rmtree(path, ignore_errors=True)


class _Broken(FormatError):
    """This folder is not a whole checkpoint."""


def open_checkpoint(path: Path, *, check_hashes: bool = True) -> Checkpoint:
    """Read a checkpoint's facts, after checking sizes and hashes of all its files.

    Raises:
        FormatError: it is not whole, or of a newer release.
    """
    try:
        manifest = read_json(path / _MANIFEST)
    except FormatError as error:
        raise _Broken(str(error)) from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format_version"), int):
        raise _Broken(f"{path / _MANIFEST}: format_version is missing")
    if manifest["format_version"] > FORMAT_VERSION:
        raise FormatError(
            f"{path / _MANIFEST}: format_version={manifest['format_version']}, this release "
            f"reads up to {FORMAT_VERSION}; upgrade qvae"
        )
    promised = manifest.pop("sha256", None)
    if promised != _hash_json(manifest):
        raise _Broken(f"{path / _MANIFEST}: was damaged or changed, its own hash does not hold")
    if manifest["step"] != int(path.name.removeprefix("step_")):
        raise _Broken(f"{path}: holds step {manifest['step']}, which is not its name")
    for name, file in manifest["files"].items():
        _verify_file(path / name, file, check_hashes=check_hashes)
    return Checkpoint(path=path, step=manifest["step"], facts=manifest["facts"])


def _verify_file(path: Path, file: Mapping[str, Any], *, check_hashes: bool) -> None:
    try:
        size = path.stat().st_size
        if size != file["size"]:
            raise _Broken(f"{path}: has {size} bytes, {_MANIFEST} promises {file['size']}")
        if check_hashes and sha256_file(path) != file["sha256"]:
            raise _Broken(f"{path}: SHA-256 is not what {_MANIFEST} promises")
    except OSError as error:
        raise _Broken(f"{path}: {error.strerror}") from None


def _is_whole(path: Path, *, check_hashes: bool = True) -> bool:
    try:
        open_checkpoint(path, check_hashes=check_hashes)
    except FormatError:
        return False
    return True


def _remove(path: Path) -> None:
    if path.exists():
        doomed = path.with_name(f"{_LEFTOVERS[1]}{path.name.removeprefix(_LEFTOVERS[0])}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def _fill(
    folder: Path,
    step: int,
    parts: Mapping[str, Mapping[str, Tensor]],
    facts: Mapping[str, Any],
) -> None:
    files = {}
    for part, tensors in parts.items():
        name = f"{part}.safetensors"
        files[name] = write_new(folder / name, safetensors_chunks(tensors))
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "files": files,
        "facts": facts,
    }
    manifest["sha256"] = _hash_json(manifest)
    text = json.dumps(manifest, indent=1, allow_nan=False)
    write_new(folder / _MANIFEST, [text.encode()])
    fsync_path(folder)


def _hash_json(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _explain(
    error: OSError, path: Path, parts: Mapping[str, Mapping[str, Tensor]]
) -> CheckpointError:
    num_bytes = sum(t.numel() * t.element_size() for part in parts.values() for t in part.values())
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason += f"; it needs {num_bytes / 1e6:.1f} MB"
    kept = saved_steps(path.parent)
    older = f"step {kept[0][0]} is kept" if kept else "there is no older one"
    return CheckpointError(error.errno, f"checkpoint not written ({reason}); {older}", str(path))
