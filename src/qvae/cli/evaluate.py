"""``qvae eval``: the scores of a run on its test data."""

from collections.abc import Sequence
from typing import Any

from qvae.cli.common import Parser, Result, add_common, autocast, parse, positive, prepare

__all__ = ["run_eval"]


def run_eval(parser: Parser, words: Sequence[str]) -> Result:
    """Print each score with its unit, N and split; or run the clock protocol."""
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("--data", metavar="PATH", help="other data than the run's own")
    parser.add_argument(
        "--clocks", action="store_true", help="draw the 720 times, read them back, score"
    )
    parser.add_argument(
        "--likelihood",
        type=positive,
        metavar="K",
        help="-log p(x) by K importance samples instead (5000 in most papers); a VAE's only",
    )
    parser.add_argument(
        "--hmc", action="store_true", help="-log p(x) by HMC, a check for few latents; a VAE's only"
    )
    parser.add_argument("--most", type=positive, metavar="N", help="only the first N test samples")
    add_common(parser, "device", "precision", "threads", "seed")
    args = parse(parser, words)
    if args.clocks and args.data is not None:
        parser.error("--clocks: takes no --data, the protocol has its own times and styles")
    if args.most is not None and not (args.likelihood or args.hmc):
        parser.error("--most: goes with --likelihood or --hmc")
    device = prepare(args)
    if args.clocks:
        from qvae.reports.clocks import evaluate, table

        found = evaluate(args.run, seed=args.seed or 0, device=str(device))
        return Result(data={"run": args.run, "clocks": found}, text=table(found))
    from qvae.runs.loading import open_run, open_run_data
    from qvae.runs.scores import evaluate_run

    run = open_run(args.run, device=device)
    with autocast(args, device):
        data = open_run_data(run, args.data)
        if args.likelihood or args.hmc:
            scores = _likelihood(run.model, data.test(), args)
        else:
            scores = evaluate_run(run, data, seed=args.seed or 0)
    lines = [
        f"{name:<24}{_digits(row['value']):>10}{_error(row)}  {row['unit']}  "
        f"({row['split']}, N={row['n']})"
        for name, row in scores.items()
    ]
    return Result(data={"run": args.run, "scores": scores}, text="\n".join(lines))


def _likelihood(model: Any, split: Any, args: Any) -> dict[str, Any]:
    from qvae.runs.likelihood import score_hmc, score_likelihood

    seed, scores = args.seed or 0, dict[str, Any]()
    if args.likelihood:
        options = {"num_draws": args.likelihood, "most": args.most, "seed": seed}
        scores |= score_likelihood(model, split, **options)
    if args.hmc:
        scores |= score_hmc(model, split, most=args.most, seed=seed)
    return scores


def _digits(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{item:.3g}" for item in value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _error(row: Any) -> str:
    """Both standard errors, where a row has them: over the data, and by the draws."""
    if "error" not in row:
        return ""
    return f" +- {row['error']:.3g} (data) +- {row['draws_error']:.2g} (draws)"
