"""``qvae eval``: the scores of a run on its test data."""

import argparse
import math
from collections.abc import Sequence
from typing import Any

from qvae.cli.common import Parser, Result, add_common, autocast, parse, positive, prepare

__all__ = ["run_eval"]

_MOST_LOW = 0.05
"""Share of samples with few effective draws above which the output says what that means."""


def run_eval(parser: Parser, words: Sequence[str]) -> Result:
    """Print each score with its unit, N and split; or run one of the protocols."""
    args = _parse(parser, words)
    device = prepare(args)
    if args.clocks:
        from qvae.reports.clocks import evaluate, table

        found = evaluate(args.run, seed=args.seed or 0, device=str(device))
        return Result(data={"run": args.run, "clocks": found}, text=table(found))
    from qvae.runs.bits import total_bits
    from qvae.runs.loading import open_run, open_run_data
    from qvae.runs.scores import evaluate_run

    run = open_run(args.run, device=device)
    if args.stage1 is None:
        data = open_run_data(run, args.data)
    if args.disentanglement:
        return _disentanglement(run, data, args)
    if args.probe is not None:
        return _probe(run, data, args)
    with autocast(args, device):
        if args.stage1 is not None:
            first = open_run(args.stage1, device=device)
            scores = total_bits(run, first, open_run_data(first, args.data))
        elif args.likelihood or args.hmc:
            scores = _likelihood(run.model, data.test(), args)
        else:
            scores = evaluate_run(run, data, seed=args.seed or 0)
    lines = [
        f"{name:<24}{_digits(row['value']):>10}{_error(row)}  {row['unit']}  "
        f"({row['split']}, N={row['n']})"
        for name, row in scores.items()
    ]
    if any(row.get("ess_low", 0) > _MOST_LOW for row in scores.values()):
        lines.append(
            "note: many samples have few effective draws, so their log p(x) is likely higher than "
            "this; more draws or another --widen tells"
        )
    return Result(data={"run": args.run, "scores": scores}, text="\n".join(lines))


def _parse(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("--data", metavar="PATH", help="other data than the run's own")
    parser.add_argument(
        "--clocks", action="store_true", help="draw the 720 times, read them back, score"
    )
    parser.add_argument(
        "--disentanglement",
        action="store_true",
        help="hold the codes against the factors of the data, by six metrics",
    )
    parser.add_argument(
        "--points", type=positive, metavar="N", help="points of each of them (default: 10000)"
    )
    parser.add_argument(
        "--probe", metavar="COLUMN", help="tell a column from the codes by logistic regression"
    )
    parser.add_argument(
        "--stage1",
        metavar="RUN",
        help="of a prior: the run of its tokens; print the total on its data",
    )
    parser.add_argument(
        "--likelihood",
        type=positive,
        metavar="K",
        help="-log p(x) by K importance samples (5000 in most papers); a VAE's only",
    )
    parser.add_argument(
        "--widen",
        type=float,
        metavar="S",
        help="draw half of them from q(z|x) with S times its width; 1: all from q, as most papers "
        "do (default: 5 for at most 8 latents, else 1)",
    )
    parser.add_argument(
        "--hmc", action="store_true", help="-log p(x) by HMC, a check for few latents; a VAE's only"
    )
    parser.add_argument("--most", type=positive, metavar="N", help="only the first N test samples")
    add_common(parser, "device", "precision", "threads", "seed")
    args = parse(parser, words)
    _check(parser, args)
    return args


def _check(parser: Parser, args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    chosen = [
        name
        for name in ("clocks", "stage1", "disentanglement", "probe", "likelihood")
        if getattr(args, name) not in (None, False)
    ]
    if len(chosen) > 1:
        parser.error(f"--{chosen[0]}, --{chosen[1]}: one at a time")
    if args.clocks and args.data is not None:
        parser.error("--clocks: takes no --data, the protocol has its own times and styles")
    if args.points is not None and not args.disentanglement:
        parser.error("--points: goes with --disentanglement")
    if args.widen is not None and not args.likelihood:
        parser.error("--widen: goes with --likelihood")
    if args.most is not None and not (args.likelihood or args.hmc):
        parser.error("--most: goes with --likelihood or --hmc")


def _disentanglement(run: Any, data: Any, args: argparse.Namespace) -> Result:
    from qvae.reports.disentanglement import disentanglement_table, evaluate_disentanglement

    scores = evaluate_disentanglement(run, data, points=args.points or 10_000, seed=args.seed or 0)
    text = disentanglement_table(scores)
    return Result(data={"run": args.run, "disentanglement": scores}, text=text)


def _probe(run: Any, data: Any, args: argparse.Namespace) -> Result:
    from qvae.reports.probe import probe_run, probe_table

    found = probe_run(run, data, column=args.probe, seed=args.seed or 0)
    return Result(data={"run": args.run, "probe": found}, text=probe_table(found))


def _digits(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{item:.3g}" for item in value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _error(row: Any) -> str:
    """Both standard errors, where a row has them: over the data, and by the draws."""
    if "error" not in row:
        return ""
    errors = ""
    for key, digits, of in (("error", 3, "data"), ("draws_error", 2, "draws")):
        if not math.isnan(row[key]):  # of a single sample, draw or bound there is none to tell
            errors += f" +- {row[key]:.{digits}g} ({of})"
    if row.get("left_out"):
        return f"{errors} {row['left_out']} left out: no draw near the chains' first half"
    if "ess" not in row:
        return errors
    from qvae.runs.likelihood import FEW_DRAWS

    return f"{errors} ESS {row['ess']:.0f} ({row['ess_low']:.1%} below {FEW_DRAWS})"


def _likelihood(model: Any, split: Any, args: Any) -> dict[str, Any]:
    from qvae.runs.likelihood import score_hmc, score_likelihood

    seed, scores = args.seed or 0, dict[str, Any]()
    if args.likelihood:
        options = {"num_draws": args.likelihood, "most": args.most, "widen": args.widen}
        scores |= score_likelihood(model, split, seed=seed, **options)
    if args.hmc:
        scores |= score_hmc(model, split, most=args.most, seed=seed)
    return scores
