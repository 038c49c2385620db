"""``qvae plot``: pictures of what a run has learned."""

from collections.abc import Sequence
from pathlib import Path

from qvae.cli.common import Parser, Result, add_common, check_output, parse, positive, prepare

__all__ = ["run_plot"]


def run_plot(parser: Parser, words: Sequence[str]) -> Result:
    """Draw one kind of picture and write it as PNG or as a film."""
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--kind",
        required=True,
        metavar="KIND",
        help="reconstructions, traversal, interpolation, samples, manifold, scatter or codes",
    )
    parser.add_argument(
        "-o",
        dest="output",
        required=True,
        metavar="FILE",
        help="a .png; traversal and interpolation also move, as .gif, .webp or .apng",
    )
    parser.add_argument("-n", type=positive, default=8, metavar="N", help="rows (default: 8)")
    parser.add_argument("--data", metavar="PATH", help="other data than the run's own")
    parser.add_argument(
        "--column",
        metavar="COLUMN",
        help="labels that colour a scatter; default: the first category",
    )
    add_common(parser, "device", "threads", "seed")
    args = parse(parser, words)
    from qvae.reports.pictures import kind_for, plot_run

    path = Path(args.output)
    kind_for(args.kind, path)
    check_output(path.parent)
    device = prepare(args)
    from qvae.runs.loading import open_run

    found = plot_run(
        open_run(args.run, device=device),
        kind=args.kind,
        path=path,
        num=args.n,
        data=args.data,
        column=args.column,
        seed=args.seed or 0,
    )
    frames = f", {found['frames']} frames" if found["frames"] > 1 else ""
    text = f"{found['path']}: {found['width']}x{found['height']}{frames}"
    return Result(data={"run": args.run, "kind": args.kind, **found}, text=text)
