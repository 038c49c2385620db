"""The committed results, and a table's form in the documents."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NONE_YET = "_No results are committed yet._"


def result(name):
    """A committed result, or None."""
    path = ROOT / "benchmarks" / "results" / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def rows_of(heads, rows):
    """A Markdown table, as lines; the heads may be one string, ``a|b|c``."""
    heads = heads.split("|") if isinstance(heads, str) else heads
    head, *body = ["| " + " | ".join(map(str, line)) + " |" for line in [heads, *rows]]
    return [head, "|" + "---|" * len(heads), *body]


def minutes(seconds):
    """Sum of a report's seconds, in minutes of its machine's threads."""
    return f"{sum(seconds.values()) / 60:.0f} minutes"


def machine_of(report):
    """Processor, threads and precision of an ``env.json``."""
    env = report["machine"]
    return f"{env['processor']}, {env['num_threads']} thread(s), {env['precision']}"
