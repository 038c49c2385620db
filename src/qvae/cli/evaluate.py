"""``qvae eval``: the scores of a run on its test data."""

from collections.abc import Sequence
from typing import Any

from qvae.cli.common import Parser, Result, add_common, autocast, parse, prepare

__all__ = ["run_eval"]


def run_eval(parser: Parser, words: Sequence[str]) -> Result:
    """Print each score with its unit, N and split; or run the clock protocol."""
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("--data", metavar="PATH", help="other data than the run's own")
    parser.add_argument(
        "--clocks", action="store_true", help="draw the 720 times, read them back, score"
    )
    parser.add_argument(
        "--stage1",
        metavar="RUN",
        help="of a prior: the run of its tokens; print the total on its data",
    )
    add_common(parser, "device", "precision", "threads", "seed")
    args = parse(parser, words)
    if args.clocks and (args.data is not None or args.stage1 is not None):
        parser.error("--clocks: takes no --data or --stage1, the protocol has its own times")
    device = prepare(args)
    if args.clocks:
        from qvae.reports.clocks import evaluate, table

        found = evaluate(args.run, seed=args.seed or 0, device=str(device))
        return Result(data={"run": args.run, "clocks": found}, text=table(found))
    from qvae.runs.likelihood import total_bits
    from qvae.runs.loading import open_run, open_run_data
    from qvae.runs.scores import evaluate_run

    run = open_run(args.run, device=device)
    with autocast(args, device):
        if args.stage1 is not None:
            first = open_run(args.stage1, device=device)
            scores = total_bits(run, first, open_run_data(first, args.data))
        else:
            scores = evaluate_run(run, open_run_data(run, args.data), seed=args.seed or 0)
    lines = [
        f"{name:<24}{_digits(row['value']):>10}  {row['unit']}  ({row['split']}, N={row['n']})"
        for name, row in scores.items()
    ]
    return Result(data={"run": args.run, "scores": scores}, text="\n".join(lines))


def _digits(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
