"""``qvae demo``: the whole way on the embedded clocks, from pixels to tokens to new clocks."""

from collections.abc import Sequence

from qvae.cli.common import Parser, Result, add_common, check_output, note, parse, prepare

__all__ = ["run_demo"]


def run_demo(parser: Parser, words: Sequence[str]) -> Result:
    """Train tokenizer and prior, draw the 720 times, read them back, print the scores."""
    parser.add_argument("--quick", action="store_true", help="two minutes, for a look")
    parser.add_argument("--run", default="runs/demo", metavar="DIR", help="default: runs/demo")
    add_common(parser, "device", "threads", "seed")
    args = parse(parser, words)
    check_output(args.run)
    prepare(args)
    from qvae.reports.clocks import table
    from qvae.reports.demo import run_demo

    found = run_demo(
        args.run, is_quick=args.quick, device=args.device, seed=args.seed or 0, tell=note
    )
    return Result(data=found, text=f"{table(found)}\npicture                {args.run}/clocks.png")
