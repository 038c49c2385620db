"""``qvae compare``: quantizers side by side on the user's own data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvae.cli.common import Parser, Result, add_common, check_output, note, parse, positive
from qvae.cli.train import split_overrides

__all__ = ["run_compare"]

_EPILOG = """\
every quantizer gets the same network, data, steps and bits; any key of the recipe can be set, as in
qvae train: --train.batch_size 128 --encoder.hidden 64; and one quantizer's argument behind its
name: --bsq.gamma 100. Started again, it goes on.
"""


def run_compare(parser: Parser, words: Sequence[str]) -> Result:
    """Train each quantizer with each seed, and print the table."""
    parser.epilog = _EPILOG
    parser.usage = "qvae compare DATA -o DIR [options] [--any.key value]"
    parser.add_argument("data", metavar="DATA", help="pictures, as for qvae train --data")
    parser.add_argument("-o", dest="output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--quantizers", metavar="A,B,...", help="names (default: nine of them); see qvae list"
    )
    parser.add_argument(
        "--bits", type=positive, default=10, metavar="B", help="of a grid cell (default: 10)"
    )
    parser.add_argument(
        "--dim", type=positive, default=16, metavar="D", help="width of a row (default: 16)"
    )
    parser.add_argument("--steps", type=positive, metavar="N", help="short for --train.steps")
    parser.add_argument(
        "--seeds", type=positive, default=3, metavar="N", help="trainings of each (default: 3)"
    )
    parser.add_argument("--recipe", default="vqvae", metavar="RECIPE", help="default: vqvae")
    add_common(parser, "device", "threads")
    rest, overrides = split_overrides(words)
    args = parse(parser, rest)
    check_output(args.output)
    changes: list[tuple[str, Any]] = [("data.path", args.data), *overrides]
    if args.steps is not None:
        changes.append(("train.steps", args.steps))
    from qvae.reports.compare import QUANTIZERS, compare
    from qvae.reports.compare_table import draw, table

    names = QUANTIZERS if args.quantizers is None else tuple(args.quantizers.split(","))
    report = compare(
        args.output,
        recipe=args.recipe,
        quantizers=names,
        bits=args.bits,
        dim=args.dim,
        seeds=args.seeds,
        overrides=changes,
        device=args.device,
        threads=args.threads,
        tell=note,
    )
    picture = Path(args.output) / "compare.png"
    drawn = (
        f"picture {picture}" if draw(report["summary"], picture) else "no picture: needs matplotlib"
    )
    return Result(data=report, text=f"{table(report['summary'])}\n{drawn}")
