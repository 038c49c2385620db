"""Folders of tensors and facts: safetensors + JSON, written whole or not at all, checked on load.

A folder holds ``model.safetensors`` (numbers) and ``config.json`` (facts: a format version, the
SHA-256 of the numbers, and what the caller stored). There is no pickle on any path.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qvae.errors import FormatError

__all__ = [
    "FORMAT_VERSION",
    "content_hash",
    "fsync_path",
    "load_folder",
    "read_json",
    "save_folder",
    "sha256_file",
    "write_json",
]

FORMAT_VERSION = 1
_TENSORS, _CONFIG = "model.safetensors", "config.json"


def fsync_path(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """Hash a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a temporary file, so that a reader sees the old or the new text."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read JSON, or raise FormatError with the file's name."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not readable as JSON ({error})") from None


def content_hash(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """Hash what a model is: names, types, shapes and bytes of its tensors, and its config.

    The order of the names and the layout of the file do not matter.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_folder(
    path: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write a folder of tensors, facts and extra text files in one rename.

    An existing folder at ``path`` is replaced whole. Between its two renames, a crash of the
    machine leaves the old one beside it as ``.NAME.PID.old``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        # Tied tensors are written out one by one; safetensors refuses shared memory.
        flat = {
            name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()
        }
        save_file(flat, temporary / _TENSORS)
        # safetensors creates private files (0600); give them the mode any other file gets.
        (temporary / _TENSORS).chmod(0o666 & ~_umask())
        facts = {
            "format_version": FORMAT_VERSION,
            **config,
            "weights_sha256": sha256_file(temporary / _TENSORS),
        }
        write_json(temporary / _CONFIG, facts)
        for name, text in (files or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
        for file in temporary.iterdir():
            fsync_path(file)
        fsync_path(temporary)
        _replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _replace_folder(new: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise
    fsync_path(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def load_folder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a folder that :func:`save_folder` wrote, and check its version and hash.

    Raises:
        FormatError: a file is missing, damaged, of a newer format, or was changed since.
    """
    path = Path(path)
    config = read_json(path / _CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("format_version"), int):
        raise FormatError(f"{path / _CONFIG}: format_version is missing; not a folder of ours")
    if config["format_version"] > FORMAT_VERSION:
        raise FormatError(
            f"{path / _CONFIG}: format_version={config['format_version']}, "
            f"this release reads up to {FORMAT_VERSION}; upgrade qvae"
        )
    try:
        found = sha256_file(path / _TENSORS)
    except OSError as error:
        raise FormatError(f"{path / _TENSORS}: {error.strerror}") from None
    if found != config.get("weights_sha256"):
        raise FormatError(
            f"{path / _TENSORS}: SHA-256 is {found[:12]}, {_CONFIG} promises "
            f"{str(config.get('weights_sha256'))[:12]}; the file was damaged or swapped"
        )
    try:
        return load_file(path / _TENSORS), config
    except (safetensors.SafetensorError, ValueError) as error:
        raise FormatError(f"{path / _TENSORS}: {error}") from None
