"""The demo: pixels -> tokens -> prior -> new clocks at the time you ask, and how well it went."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qvae.config import load_recipe
from qvae.data.tokens import TokenData
from qvae.errors import UsageError
from qvae.reports.clocks import draw_times, evaluate
from qvae.reports.timer import Timer
from qvae.runs.build import build_data
from qvae.runs.loading import open_run
from qvae.runs.tokens import encode_data
from qvae.runs.training import train_recipe
from qvae.store import read_json, write_json
from qvae.train.log import trained_seconds

__all__ = ["run_demo"]

_FULL = {
    "tokenizer": {"train.steps": 1500, "train.eval_every": 500},
    "prior": {"train.steps": 1000, "train.eval_every": 500},
}
"""What the demo changes in the recipes: they train for an hour, it has twelve minutes."""
_QUICK = {
    "tokenizer": {"data.size": 4000, "train.steps": 280, "train.eval_every": 140},
    "prior": {"train.steps": 100, "train.eval_every": 100},
}
"""What ``--quick`` changes: enough steps to see every stage work, too few to draw well."""

_SHEET_TIMES = [610, 260, 0, 180, 395, 545, 37, 98, 443, 700, 305, 128]
_SHEET_STYLES = 6


def run_demo(
    path: str | Path,
    *,
    is_quick: bool = False,
    device: str = "auto",
    seed: int = 0,
    progress: bool | str = True,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train a tokenizer and a prior on the embedded clocks, draw the 720 times, read them back.

    Leaves ``tokenizer/``, ``tokens/``, ``prior/``, ``clocks.png`` (12 times x 6 styles) and
    ``report.json`` under ``path``. Started again after an interruption it goes on; a finished
    demo with other options there is replaced.

    Args:
        path: the folder.
        is_quick: two minutes, for a look.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        seed: of training and samples, >= 0.
        progress: as in :func:`qvae.train.fit`.
        tell: called with a sentence as each stage starts.

    Raises:
        UsageError: the folder holds something that is no demo.
        TrainingStopped, Interrupted: as in :func:`qvae.train.fit`.
    """
    path = Path(path)
    _claim(path, {"demo": "quick" if is_quick else "full", "seed": seed})
    options: dict[str, Any] = {"device": device, "resume": True, "progress": progress}
    seconds: dict[str, float] = {}
    with Timer(seconds, "tokenizer"):
        tell("1/4 tokenizer: from pixels to 48 style tokens and back, told the time")
        recipe = _recipe("clock_style", is_quick, "tokenizer", {"seed": seed})
        train_recipe(recipe, run=path / "tokenizer", **options)
    with Timer(seconds, "tokens"):
        tell("2/4 tokens: every training clock becomes 48 integers")
        _encode(path)
    with Timer(seconds, "prior"):
        tell("3/4 prior: a small transformer learns which styles there are")
        told = {"seed": seed, "data.path": str(path / "tokens")}
        train_recipe(
            _recipe("clock_style_prior", is_quick, "prior", told), run=path / "prior", **options
        )
    with Timer(seconds, "scores"):
        tell("4/4 scores: draw the 720 times in 4 styles each, and read them back")
        scores = evaluate(path / "prior", seed=seed)
        _draw_sheet(path)
    for stage in ("tokenizer", "prior"):  # all of it, also what an earlier start trained
        seconds[stage] = max(seconds[stage], trained_seconds(path / stage))
    report = {**read_json(path / "report.json"), "seconds": seconds, **scores}
    write_json(path / "report.json", report)
    return report


def _recipe(name: str, is_quick: bool, stage: str, more: Mapping[str, Any]) -> Any:
    changes = (_QUICK if is_quick else _FULL)[stage]
    return load_recipe(name, [*changes.items(), *more.items()])


def _claim(path: Path, demo: dict[str, Any]) -> None:
    """Make the folder this demo's: go on with the same one, replace another, refuse the rest."""
    report = path / "report.json"
    if report.is_file() and "demo" in (found := read_json(report)):
        if {key: found.get(key) for key in demo} == demo:
            return
        for name in ("tokenizer", "tokens", "prior"):
            shutil.rmtree(path / name, ignore_errors=True)
    elif path.exists() and any(path.iterdir()):
        raise UsageError(f"run={str(path)!r}: holds files that are no demo; choose another --run")
    path.mkdir(parents=True, exist_ok=True)
    write_json(report, demo)


def _encode(path: Path) -> None:
    run = open_run(path / "tokenizer")
    tokenizer = run.require_tokenizer()
    tokens = path / "tokens"
    if tokens.exists():
        if TokenData(tokens).tokenizer_hash == tokenizer.hash:
            return
        shutil.rmtree(tokens)
    assert run.recipe is not None
    encode_data(tokenizer, build_data(run.recipe), tokens)


def _draw_sheet(path: Path) -> None:
    """Save a contact sheet: a column a time, a row a style."""
    run = open_run(path / "prior")
    minutes = np.repeat(_SHEET_TIMES, _SHEET_STYLES)
    clocks = draw_times(run, minutes, seed=7).reshape(len(_SHEET_TIMES), _SHEET_STYLES, 64, 64, 3)
    sheet = clocks.transpose(1, 2, 0, 3, 4).reshape(_SHEET_STYLES * 64, -1, 3)
    Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), 0).save(
        path / "clocks.png"
    )
