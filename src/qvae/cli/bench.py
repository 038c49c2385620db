"""``qvae bench``: the nearest-code search and the quantizers, timed beside their peers."""

from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qvae.cli.common import (
    Parser,
    Result,
    add_common,
    check_output,
    note,
    parse,
    positive,
    prepare,
)

__all__ = ["run_bench"]

_BENCHES = ("nearest", "quantizer")


def run_bench(parser: Parser, words: Sequence[str]) -> Result:
    """Measure ``nearest`` or ``quantizer``, and print ratios; ``-o`` keeps and draws them."""
    parser.add_argument("what", choices=_BENCHES, help="the search alone, or a training step")
    parser.add_argument(
        "--shape",
        action="append",
        type=_shape,
        metavar="N,K,D",
        help="vectors, codes and width, in place of the usual ones; may be repeated",
    )
    parser.add_argument("--rounds", type=positive, default=15, metavar="N", help="turns of each")
    parser.add_argument(
        "--no-memory", action="store_true", help="skip the processes that measure peak memory"
    )
    parser.add_argument(
        "-o",
        dest="output",
        metavar="FILE",
        help="write the result as JSON, and a picture beside it",
    )
    add_common(parser, "threads")
    args = parse(parser, words)
    if args.output is not None:
        if Path(args.output).suffix == ".png":
            parser.error(f"-o {args.output}: is the JSON's name; the .png beside it is the picture")
        check_output(Path(args.output).parent)
    args.threads = args.threads or 1
    prepare(args)
    from qvae.reports.bench import bench
    from qvae.reports.bench_figure import draw
    from qvae.store import write_json

    data = bench(
        args.what,
        rounds=args.rounds,
        shapes=args.shape,
        has_memory=not args.no_memory,
        progress=note,
    )
    lines = _lines(data)
    if args.output is not None:
        write_json(Path(args.output), data)
        picture = Path(args.output).with_suffix(".png")
        is_drawn = draw(data, picture)
        lines.append(f"picture {picture}" if is_drawn else "no picture: needs matplotlib")
    return Result(data=data, text="\n".join(lines))


def _shape(text: str) -> tuple[int, int, int]:
    sizes = [int(word) if word.isdigit() else 0 for word in text.split(",")]
    if len(sizes) != 3 or min(sizes) < 1:
        raise ArgumentTypeError(f"{text!r} must be three whole numbers >= 1, such as 4096,8192,64")
    n, k, d = sizes
    return n, k, d


def _lines(data: Mapping[str, Any]) -> list[str]:
    """A block for each shape: milliseconds, memory, and how many times the fastest."""
    lines = [f"{data['machine']['cpu']}: {data['machine']['kernels']}; {data['clock']}"]
    for row in data["rows"]:
        lines.append("N={} K={} D={}".format(*row["shape"]))
        ran = {name: it for name, it in row["contestants"].items() if not isinstance(it, str)}
        fastest = min(it["median_ms"] for it in ran.values())
        for name, it in row["contestants"].items():
            if isinstance(it, str):
                lines.append(f"  {name:<24}{it}")
                continue
            memory = f"{it['megabytes']:9.1f} MB" if it.get("megabytes") is not None else ""
            times = f"{it['median_ms']:12.2f} ms {it['median_ms'] / fastest:8.1f}x"
            lines.append(f"  {name:<24}{times} {memory}")
    return lines
