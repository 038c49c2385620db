"""A study's curves as a picture: a line for each run, by the training samples it has seen."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qvae.reports.bench_figure import fingerprint

__all__ = ["draw_curves"]


def draw_curves(report: Mapping[str, Any], path: str | Path) -> bool:
    """Draw what a study's ``results.json`` holds under ``curves`` as a PNG, with matplotlib.

    Args:
        report: with ``title`` and ``curves``: name -> rows of two numbers, x then y.
        path: file to write; a hash of the curves is its description.

    Returns:
        Whether there are curves and matplotlib is installed.
    """
    curves = report["curves"]
    if not curves or find_spec("matplotlib") is None:
        return False
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    panel = figure.subplots()
    colours = colormaps["viridis"]
    for place, (name, rows) in enumerate(curves.items()):
        x, y = (list(part) for part in zip(*(row.values() for row in rows), strict=True))
        shade = colours(0.92 * place / max(1, len(curves) - 1))
        panel.plot(x, y, color=shade, linewidth=1.5, label=name)
    names = list(next(iter(curves.values()))[0])
    panel.set_xlabel(names[0], fontsize=9)
    panel.set_ylabel(names[1], fontsize=9)
    panel.set_title(report["title"], loc="left", fontsize=9)
    panel.set_xscale("log")
    panel.tick_params(labelsize=8)
    panel.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Description": fingerprint(curves)})
    return True
