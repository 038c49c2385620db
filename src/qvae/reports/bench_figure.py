"""A benchmark's result as a picture: a panel for each shape, a dot for each contestant."""

import hashlib
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["draw", "fingerprint"]

_PEERS_COLOUR, _OURS_COLOUR, _YARDSTICK_COLOUR = "#b4533c", "#1f5fa8", "#8a8a8a"
_COLUMNS = 2
_YARDSTICKS = ("product", "product in tiles", "cdist")


def fingerprint(data: Mapping[str, Any]) -> str:
    """Return a hash of the numbers, which a picture of them carries as its description."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def draw(data: Mapping[str, Any], path: str | Path) -> bool:
    """Draw what :func:`qvae.reports.bench.bench` returned as a PNG, if matplotlib is installed.

    A panel for each shape, a dot for each contestant that ran: blue is ours, red a peer, grey a
    yardstick (a matrix product, ``torch.cdist``).

    Returns:
        Whether it is.
    """
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    rows = data["rows"]
    lines = -(-len(rows) // _COLUMNS)
    figure = Figure(figsize=(5 * _COLUMNS, 0.5 + 2.6 * lines), layout="constrained")
    panels = figure.subplots(lines, _COLUMNS, sharex=True, squeeze=False).flatten()
    for panel, row in zip(panels[: len(rows)], rows, strict=True):
        _draw_row(panel, row, data["peers"])
    for panel in panels[len(rows) :]:
        panel.remove()
    figure.supxlabel(f"milliseconds, {data['clock']}, median; logarithmic", fontsize=9)
    figure.savefig(path, dpi=120, metadata={"Description": fingerprint(data)})
    return True


def _draw_row(panel: Any, row: Mapping[str, Any], peers: Mapping[str, str]) -> None:
    """Draw one shape, the quickest above."""
    ran = _ran(row)
    names = sorted(ran, key=ran.__getitem__, reverse=True)
    for place, name in enumerate(names):
        time, colour = ran[name], _colour(name, peers)
        panel.plot(time, place, "o", color=colour, markersize=5)
        text = f"{time:,.0f}" if time >= 100 else f"{time:.3g}"
        panel.annotate(
            text,
            (time, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour,
        )
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set_title("N={:,}  K={:,}  D={:,}".format(*row["shape"]), loc="left", fontsize=9)
    panel.set_xscale("log")
    panel.margins(x=0.16)
    panel.grid(axis="y", color="0.9")
    panel.tick_params(axis="x", labelsize=8, labelbottom=True)
    panel.spines[["top", "right"]].set_visible(False)


def _ran(row: Mapping[str, Any]) -> dict[str, float]:
    found = {name: it for name, it in row["contestants"].items() if not isinstance(it, str)}
    return {name: it["median_ms"] for name, it in found.items()}


def _colour(name: str, peers: Mapping[str, str]) -> str:
    if name in peers:
        return _PEERS_COLOUR
    return _YARDSTICK_COLOUR if name in _YARDSTICKS else _OURS_COLOUR
