"""``qvae plot``: pictures of what a run has learned."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvae.cli.common import Parser, Result, add_common, check_output, note, parse, positive, prepare
from qvae.cli.sample import conditions

__all__ = ["run_plot"]


def run_plot(parser: Parser, words: Sequence[str]) -> Result:
    """Draw one kind of picture as PNG or as a film, or every kind that the model has."""
    args = _parse(parser, words)
    from qvae.reports.plots import check_plot, plot_all, plot_run

    options: dict[str, Any] = {
        "num": args.n,
        "data": args.data,
        "column": args.column,
        "cond": conditions(args.cond or ()) or None,
        "seed": args.seed,
    }
    path = Path(args.output or Path(args.run, "plots", f"{args.kind}.png"))
    if args.kind is not None:
        check_plot(args.kind, path, **options)
    check_output(path.parent)
    device = prepare(args)
    from qvae.runs.loading import open_run

    run = open_run(args.run, device=device)
    if args.kind is None:
        found = plot_all(run, tell=note, **options)
        lines = [_line(row) for row in found["plots"].values()]
        lines += [f"no {kind}: {why}" for kind, why in found["missing"].items()]
        return Result(data={"run": args.run, **found}, text="\n".join(lines))
    row = plot_run(run, kind=args.kind, path=path, tell=note, **options)
    return Result(data={"run": args.run, "kind": args.kind, **row}, text=_line(row))


def _parse(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--kind",
        metavar="KIND",
        help="reconstructions, traversal, interpolation, codes, samples, manifold or scatter; "
        "default: all that the model has, to RUN/plots",
    )
    parser.add_argument(
        "-o",
        dest="output",
        metavar="FILE",
        help="a .png; traversal and interpolation also move, as .gif, .webp or .apng; "
        "default: RUN/plots/KIND.png",
    )
    parser.add_argument("-n", type=positive, metavar="N", help="num, of rows (default: 8)")
    parser.add_argument("--data", metavar="PATH", help="other data than the run's own")
    parser.add_argument(
        "--column",
        metavar="COLUMN",
        help="labels that colour a scatter; default: the first category",
    )
    parser.add_argument(
        "--cond",
        action="extend",
        nargs="+",
        metavar="NAME=VALUE",
        help="what to tell the model for samples and manifold, such as time=4:20",
    )
    add_common(parser, "device", "threads", "seed")
    args = parse(parser, words)
    if args.output is not None and args.kind is None:
        parser.error("-o: goes with --kind; without it every kind is written to RUN/plots")
    return args


def _line(row: dict[str, Any]) -> str:
    frames = f", {row['frames']} frames" if row["frames"] > 1 else ""
    dims = ", ".join(f"{item['dim']} ({item['kl']:.2f})" for item in row.get("dims", ()))
    rows = f"; rows from above, by KL in nats: {dims}" if dims else ""
    return f"{row['path']}: {row['width']}x{row['height']}{frames}{rows}"
