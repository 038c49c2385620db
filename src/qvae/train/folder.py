"""The run folder: held by one, filled before training, and as it was where nothing came of it."""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from qvae import store
from qvae.errors import UsageError
from qvae.train.checkpoint import clear_leftovers, saved_steps
from qvae.train.files import write_text
from qvae.train.lock import run_lock
from qvae.train.log import MetricsLog
from qvae.yaml_text import dump_yaml

__all__ = ["fill_folder", "open_folder"]

_RECIPE, _MACHINE, _METRICS = "recipe.yaml", "env.json", "metrics.jsonl"


@contextlib.contextmanager
def open_folder(run: Path, *, resume: bool) -> Iterator[None]:
    """Hold the run folder while the ``with`` block runs.

    An error that comes before a row was logged or a state saved takes back what was made here:
    the files of :func:`fill_folder`, the folder, and those above it.

    Raises:
        UsageError: it is in use, cannot be written to, or holds what would be lost.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(_made_folders(run))
            stack.enter_context(run_lock(run))
        except OSError as error:
            reason = error.strerror
            raise UsageError(f"run={str(run)!r}: cannot be written to ({reason})") from error
        steps = saved_steps(run / "state")
        held = f"step {steps[0][0]}" if steps else "a model" if (run / "model").exists() else ""
        if held and not resume:
            raise UsageError(
                f"run={str(run)!r} already holds {held}; pass --resume to go on or choose "
                "another --run"
            )
        clear_leftovers(run / "state")
        stack.enter_context(_made_files(run))
        yield


def fill_folder(
    run: Path, *, step: int, recipe: Mapping[str, Any] | None, machine: Mapping[str, Any]
) -> None:
    """Write what is known before training goes on from a step, and drop later rows of the log."""
    if recipe is not None:
        write_text(run / _RECIPE, dump_yaml(dict(recipe)))
    store.write_json(run / _MACHINE, machine)
    MetricsLog.cut(run / _METRICS, step=step)


@contextlib.contextmanager
def _made_folders(run: Path) -> Iterator[None]:
    """Make the folder and those above it; after an error those that are still empty go again."""
    made = [path for path in (run, *run.parents) if not path.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _made_files(run: Path) -> Iterator[None]:
    """After an error, remove the files that were not there before, unless training left more."""
    made = [path for name in (_RECIPE, _MACHINE, _METRICS) if not (path := run / name).exists()]
    try:
        yield
    except BaseException:
        if not _holds_work(run):
            for path in made:
                path.unlink(missing_ok=True)
        raise


def _holds_work(run: Path) -> bool:
    log = run / _METRICS
    is_logged = log.exists() and log.stat().st_size > 0
    return is_logged or any((run / name).exists() for name in ("state", "model"))
