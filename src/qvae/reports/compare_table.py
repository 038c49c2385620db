"""The table and the picture of a comparison of quantizers, with confidence intervals."""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["draw", "interval", "summarise", "table"]

_COLUMNS = {
    "psnr": ("PSNR dB", 2),
    "usage": ("usage", 3),
    "perplexity": ("perplexity", 0),
    "bits": ("bits", 0),
    "entropy_bits": ("entropy", 1),
    "unigram_bits": ("unigram", 1),
    "seconds": ("seconds", 0),
    "peak_mb": ("peak MB", 0),
}
# Student's t at 97.5 %, for 1 to 30 degrees of freedom; beyond, the normal's 1.96.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean, and half the width of its 95 % confidence interval by Student's t.

    Example:
        >>> mean, half = interval([1.0, 2.0, 3.0])
        >>> mean, round(half, 3)
        (2.0, 2.484)
        >>> interval([1.0])
        (1.0, None)
    """
    num = len(values)
    mean = sum(values) / num
    if num < 2:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (num - 1)
    t = _T[num - 2] if num - 2 < len(_T) else 1.96
    return mean, t * math.sqrt(variance / num)


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average the rows of each quantizer over its seeds, the highest PSNR first.

    A row whose training failed counts in ``failed`` and nowhere else.
    """
    names = list(dict.fromkeys(row["quantizer"] for row in rows))
    found = []
    for name in names:
        own = [row for row in rows if row["quantizer"] == name]
        good = [row for row in own if "error" not in row]
        line: dict[str, Any] = {"quantizer": name, "n": len(good), "failed": len(own) - len(good)}
        for key in good[0] if good else ():
            if isinstance(good[0][key], int | float) and key not in ("seed", "steps"):
                mean, half = interval([row[key] for row in good])
                line[key] = {"mean": mean, "half_width": half}
        found.append(line)
    return sorted(found, key=lambda line: -_mean(line, "psnr"))


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """Write a summary as text: a row a quantizer, ``mean ± half width``."""
    heads = ["quantizer", "n", *(title for title, _ in _COLUMNS.values())]
    lines = [heads]
    for line in summary:
        cells = [line["quantizer"], str(line["n"])]
        cells += [_cell(line.get(key), digits) for key, (_, digits) in _COLUMNS.items()]
        lines.append(cells)
    widths = [max(len(row[i]) for row in lines) for i in range(len(heads))]
    text = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in lines
    ]
    failed = [f"{line['quantizer']}: {line['failed']} failed" for line in summary if line["failed"]]
    return "\n".join([*text, *failed, "bits, entropy, unigram: a sample; ±: 95 % confidence"])


def draw(summary: Sequence[Mapping[str, Any]], path: str | Path) -> bool:
    """Draw PSNR against what codes cost, and usage, if matplotlib is installed.

    Returns:
        Whether it is.
    """
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    rate, use = figure.subplots(1, 2)
    good = [line for line in summary if line["n"]]
    for line in good:
        x, y = line["unigram_bits"], line["psnr"]
        rate.errorbar(
            x["mean"], y["mean"], xerr=x["half_width"], yerr=y["half_width"], marker="o", capsize=2
        )
        rate.annotate(
            line["quantizer"], (x["mean"], y["mean"]), xytext=(4, 4), textcoords="offset points"
        )
    rate.set(xlabel="bits a sample, unigram price", ylabel="PSNR, dB")
    names = [line["quantizer"] for line in good]
    halves = [line["usage"]["half_width"] or 0.0 for line in good]
    use.barh(names, [line["usage"]["mean"] for line in good], xerr=halves)
    use.set(xlabel="share of codes used", xlim=(0, 1.05))
    figure.savefig(path, dpi=150)
    return True


def _mean(line: Mapping[str, Any], key: str) -> float:
    return line[key]["mean"] if key in line else -math.inf


def _cell(value: Mapping[str, Any] | None, digits: int) -> str:
    if value is None:
        return "-"
    half = value["half_width"]
    spread = "" if half is None else f" ±{half:.{digits}f}"
    return f"{value['mean']:.{digits}f}{spread}"
