"""``qvae encode`` and ``qvae decode``: data to tokens, tokens to data."""

from collections.abc import Sequence
from pathlib import Path

from qvae.cli.common import (
    Parser,
    Result,
    add_common,
    autocast,
    check_output,
    output_folder,
    parse,
    positive,
    prepare,
)
from qvae.errors import UsageError

__all__ = ["run_decode", "run_encode"]


def run_encode(parser: Parser, words: Sequence[str]) -> Result:
    """Write the tokens of every split, and the tokenizer, to a new folder."""
    parser.add_argument("run", metavar="RUN", help="the folder of a run with a quantizer")
    parser.add_argument("data", nargs="?", metavar="DATA", help="default: the data of the run")
    parser.add_argument("-o", dest="output", required=True, metavar="TOKENS", help="a new folder")
    add_common(parser, "device", "precision", "threads")
    args = parse(parser, words)
    check_output(Path(args.output).parent)
    device = prepare(args)
    from qvae.runs.loading import open_run, open_run_data
    from qvae.runs.tokens import encode_data

    run = open_run(args.run, device=device)
    tokenizer = run.require_tokenizer()
    if run.model is not tokenizer.model:
        raise UsageError(
            f"{args.run}: is the run of a prior, which was trained on tokens; encode with the run "
            "that made them"
        )
    with autocast(args, device):
        counts = encode_data(tokenizer, open_run_data(run, args.data), args.output)
    data = {"tokens": args.output, "splits": counts, **tokenizer.facts, "hash": tokenizer.hash}
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    return Result(data=data, text=f"{args.output}: {told}; {tokenizer.num_tokens} tokens a sample")


def run_decode(parser: Parser, words: Sequence[str]) -> Result:
    """Write the reconstruction of every sample as ``DIR/<split>/<index>.png``."""
    parser.add_argument("run", metavar="RUN", help="the run that made the tokens, or its prior's")
    parser.add_argument("tokens", metavar="TOKENS", help="a folder of qvae encode")
    parser.add_argument("-o", dest="output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--split", choices=("train", "valid", "test"), help="default: all")
    parser.add_argument("-n", type=positive, metavar="N", help="at most N samples of each split")
    text = "read the first N levels of a residual's codes only"
    parser.add_argument("--levels", type=positive, metavar="N", help=text)
    add_common(parser, "device", "precision", "threads")
    args = parse(parser, words)
    check_output(args.output)
    device = prepare(args)
    from qvae.data.tokens import TokenData
    from qvae.runs.loading import open_run
    from qvae.runs.tokens import decode_tokens

    tokenizer = open_run(args.run, device=device).require_tokenizer()
    tokenizer.check_levels(args.levels)
    tokens = TokenData(args.tokens, expected_hash=tokenizer.hash)
    splits = (args.split,) if args.split else None
    with autocast(args, device):
        folder = output_folder(args.output)
        counts = decode_tokens(
            tokenizer, tokens, folder, splits=splits, most=args.n, num_levels=args.levels
        )
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    return Result(data={"folder": str(folder), "splits": counts}, text=f"{folder}: {told}")
