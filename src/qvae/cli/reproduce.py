"""``qvae reproduce``: a paper's experiments, and its table beside ours."""

from collections.abc import Sequence

from qvae.cli.common import Parser, Result, add_common, check_output, note, parse, positive, prepare

__all__ = ["run_reproduce"]


def run_reproduce(parser: Parser, words: Sequence[str]) -> Result:
    """Train what a paper trained, and print its table; stopped, it goes on where it stood."""
    papers = "aevb (arXiv:1312.6114), iwae (1509.00519), beta-vae (openreview Sy2fzU9gl)"
    parser.add_argument("paper", metavar="PAPER", help=papers)
    parser.add_argument(
        "--data", metavar="PATH", help="pictures, as for qvae train; beta-vae makes its own"
    )
    parser.add_argument("--run", metavar="DIR", help="default: runs/reproduce-PAPER")
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="of each training (default: the recipe's)"
    )
    parser.add_argument("--quick", action="store_true", help="every step in small, for a look")
    add_common(parser, "device", "threads", "seed")
    args = parse(parser, words)
    folder = args.run or f"runs/reproduce-{args.paper}{'-quick' if args.quick else ''}"
    check_output(folder)
    prepare(args)
    from qvae.reports.reproduce import reproduce_paper

    found = reproduce_paper(
        args.paper,
        folder,
        data=args.data,
        is_quick=args.quick,
        seed=args.seed or 0,
        steps=args.steps,
        device=args.device,
        tell=note,
    )
    return Result(data={"run": folder, **found}, text=found["table"])
