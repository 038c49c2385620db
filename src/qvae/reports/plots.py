"""Write pictures of a run to files: one kind, or each kind that its model has."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qvae.errors import DataError, UsageError
from qvae.reports.pictures import FILMS, KINDS, USES, draw
from qvae.reports.sheets import ANIMATED, save_frames
from qvae.runs.loading import Run, open_run_data

__all__ = ["check_plot", "plot_all", "plot_run"]

Tell = Callable[[str], None]


def check_plot(kind: str, path: Path, **options: Any) -> None:
    """Refuse a kind, a suffix or an option that the kind does not use, before any work.

    Raises:
        UsageError: with the names that there are.
    """
    if kind not in KINDS:
        raise UsageError(f"kind={kind!r}: must be one of {', '.join(KINDS)}")
    if path.suffix not in (".png", *ANIMATED):
        raise UsageError(f"{path}: must end in .png, {', '.join(ANIMATED)}")
    if path.suffix in ANIMATED and kind not in FILMS:
        raise UsageError(f"{path}: kind={kind} does not move; {', '.join(FILMS)} do")
    for name, value in options.items():
        if value is not None and name not in USES[kind]:
            raise UsageError(f"{name}={value!r}: kind={kind} has no use for it{_takers(name)}")


def plot_run(
    run: Run, *, kind: str, path: str | Path, tell: Tell = lambda _: None, **options: Any
) -> dict[str, Any]:
    """Draw a kind of picture and write it: ``.png``, or a film as ``.gif``, ``.webp``, ``.apng``.

    Args:
        run: an autoencoder's; for samples, a prior's too.
        kind: a name of :data:`~qvae.reports.pictures.KINDS`.
        path: file to write; its suffix says whether the picture moves.
        tell: called with a remark, such as which conditions are not told.
        **options: ``num``, ``data``, ``column``, ``cond`` and ``seed`` as in :func:`plot_all`, as
            far as :data:`~qvae.reports.pictures.USES` lists them for the kind.

    Returns:
        The path, how many frames, their width and height; of a traversal ``dims``, too: for each
        row which coordinate it is and its KL in nats.

    Raises:
        UsageError: an unknown kind or suffix, a kind that this model has not, or an option that
            the kind does not use.
        DataError: the data cannot be read.
    """
    path = Path(path)
    check_plot(kind, path, **options)
    data = options.pop("data", None)
    return _write(run, kind, path, lambda: open_run_data(run, data), tell, options)


def plot_all(
    run: Run,
    *,
    num: int | None = None,
    data: str | Path | None = None,
    column: str | None = None,
    cond: Mapping[str, str] | None = None,
    seed: int | None = None,
    tell: Tell = lambda _: None,
) -> dict[str, dict[str, Any]]:
    """Draw every kind of picture that a run has, as ``RUN/plots/KIND.png``.

    Args:
        run: an autoencoder's or a prior's.
        num: rows, >= 1; None is 8.
        data: other data than the run's own.
        column: labels that colour the scatter; None is the first category, if it has one that the
            encoder is not told.
        cond: what to tell the model for samples and manifold, such as ``{"time": "4:20"}``.
        seed: of which samples, and of what is drawn, >= 0; None is 0.
        tell: called with a remark.

    Returns:
        ``{"plots": {kind: as plot_run}, "missing": {kind: why}}``.

    Raises:
        UsageError, DataError: nothing could be drawn, or nothing that an option is for.
    """
    given = {"num": num, "data": data, "column": column, "cond": cond, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    source, tell_once = cache(lambda: open_run_data(run, data)), cache(tell)
    plots: dict[str, Any] = {}
    failures: dict[str, UsageError | DataError] = {}
    for kind in KINDS:
        options = {
            name: value for name, value in given.items() if name in USES[kind] and name != "data"
        }
        try:
            path = run.path / "plots" / f"{kind}.png"
            plots[kind] = _write(run, kind, path, source, tell_once, options)
        except (UsageError, DataError) as error:
            failures[kind] = error
    for name in (*given, None):  # an option that no picture shows was given in vain
        meant = [kind for kind in KINDS if name is None or name in USES[kind]]
        if not any(kind in plots for kind in meant):
            raise failures[meant[0]]
    return {"plots": plots, "missing": {kind: str(why) for kind, why in failures.items()}}


def _write(
    run: Run,
    kind: str,
    path: Path,
    data: Callable[[], Any],
    tell: Tell,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    wishes = {name: value for name, value in options.items() if value is not None}
    is_film = path.suffix in ANIMATED
    picture = draw(run, kind=kind, data=data, is_film=is_film, tell=tell, **wishes)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_frames(picture.frames, path)
    height, width = picture.frames[0].shape[:2]
    size = {"frames": len(picture.frames), "width": width, "height": height}
    return {"path": str(path), **size, **picture.facts}


def _takers(name: str) -> str:
    kinds = [kind for kind in KINDS if name in USES[kind]]
    return f"; it goes with kind={', '.join(kinds)}" if kinds else ""
