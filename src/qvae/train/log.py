"""What a run writes for its reader: ``metrics.jsonl``, ``env.json``, ``recipe.yaml``, a bar."""

import contextlib
import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import qvae
from qvae.store import fsync_path
from qvae.train.engine import Engine

__all__ = [
    "MetricsLog",
    "Window",
    "describe_machine",
    "device_name",
    "open_bar",
    "trained_machine",
    "trained_seconds",
]

_LINE_SECONDS = 30.0  # between two lines of progress in a log: a short run leaves it clean


class MetricsLog:
    """Append rows to ``metrics.jsonl``, one JSON object a line; a number is written as its repr.

    What is not finite becomes null. Fields that a clock gave are called ``seconds`` and
    ``samples_per_second``; every other field is the same whenever the run is repeated.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row through to the operating system."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(row), allow_nan=False) + "\n")

    def sync(self) -> None:
        """Have the rows on the disk, so that no checkpoint is newer than its rows."""
        fsync_path(self._path)

    @staticmethod
    def cut(path: Path, *, step: int) -> None:
        """Drop what a checkpoint of ``step`` did not know: later rows, and its own evaluation."""
        if not path.exists():
            return
        keep = 0
        for line in path.read_bytes().splitlines(keepends=True):
            if not _is_kept(line, step):
                break
            keep += len(line)
        os.truncate(path, keep)


def _is_kept(line: bytes, step: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:  # torn by a kill
        return False
    if not line.endswith(b"\n"):
        return False
    return bool(row["step"] < step or (row["step"] == step and row["split"] == "train"))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Window:
    """Means over the steps since the last row; its sums go into checkpoints, exactly."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Take in the values of a step; a name need not be there in every step."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means and start anew."""
        means = {name: value / self.counts[name] for name, value in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


def describe_machine(engine: Engine, *, seed: int) -> dict[str, Any]:
    """Say on what a run ran, as far as that can change its numbers or its speed."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "qvae": qvae.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_flags": _flags(),
        "num_threads": torch.get_num_threads(),
        "device": device_name(engine.device),
        "precision": engine.precision,
        "num_processes": engine.world,
        "seed": seed,
    }


def device_name(device: torch.device) -> str:
    """Name the card, or say of which kind the device is.

    Example:
        >>> device_name(torch.device("cpu"))
        'cpu'
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _cpuinfo(key: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor()


def _flags() -> list[str]:
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
    return [flag for flag in wanted if flag in _cpuinfo("flags").split()]


class _Lines:
    """Standard error for a bar that no terminal redraws: what it shows becomes a line of a log."""

    def write(self, text: str) -> None:
        """Write a line, without what is there to draw over the last one."""
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        """Pass on what was written."""
        sys.stderr.flush()


@contextlib.contextmanager
def open_bar(progress: bool | str, *, steps: int, start: int) -> Iterator["tqdm[Any]"]:
    """Show the steps and the time left: a bar on a terminal, elsewhere a line now and then.

    Args:
        progress: False shows nothing; ``force`` draws the bar wherever standard error goes.
        steps: of the whole run.
        start: steps that are done.
    """
    options: dict[str, Any] = {"dynamic_ncols": True}
    if progress != "force" and not sys.stderr.isatty():
        pause = _LINE_SECONDS
        options = {"file": _Lines(), "delay": pause, "mininterval": pause, "maxinterval": pause}
        options |= {"ncols": 0, "leave": False}
    bar = tqdm(total=steps, initial=start, disable=not progress, unit="step", **options)
    try:
        yield bar
    finally:
        bar.close()


def trained_machine(run: Path) -> dict[str, Any]:
    """Return what a run was trained on, from ``env.json``, without what names the run."""
    env: dict[str, Any] = json.loads((run / "env.json").read_text(encoding="utf-8"))
    return {key: value for key, value in env.items() if key != "run"}


def trained_seconds(run: Path) -> float:
    """Return the seconds that a run was training, over all its starts, from ``metrics.jsonl``."""
    total = last = 0.0
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        now = json.loads(line)["seconds"]
        total += now - last if now >= last else now
        last = now
    return round(total, 1)
