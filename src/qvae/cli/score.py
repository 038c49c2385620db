"""``qvae score``: how probable given files are; an unusual one has a high score."""

import json
from collections.abc import Sequence

from qvae.cli.common import Parser, Result, add_common, autocast, note, parse, prepare
from qvae.cli.sample import conditions

__all__ = ["run_score"]


def run_score(parser: Parser, words: Sequence[str]) -> Result:
    """Print one JSON object a line, in the order of the files: file, score, unit, nats."""
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("files", nargs="+", metavar="FILE", help="pictures or .npy arrays")
    parser.add_argument(
        "--cond", action="extend", nargs="+", metavar="NAME=VALUE", help="told for all files"
    )
    add_common(parser, "device", "precision", "threads")
    args = parse(parser, words)
    told = conditions(args.cond or ())
    device = prepare(args)
    from qvae.runs.bits import score_files
    from qvae.runs.loading import open_run

    run = open_run(args.run, device=device)
    with autocast(args, device):
        rows = score_files(run, args.files, cond=told, tell=note)
    return Result(data={"scores": rows}, text="\n".join(json.dumps(row) for row in rows))
