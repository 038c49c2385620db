"""``qvae sample``: new data from a run."""

import argparse
import math
from collections.abc import Sequence

from qvae.cli.common import (
    Parser,
    Result,
    add_common,
    autocast,
    check_output,
    note,
    output_folder,
    parse,
    positive,
    prepare,
)
from qvae.errors import UsageError

__all__ = ["conditions", "number", "run_sample"]


def run_sample(parser: Parser, words: Sequence[str]) -> Result:
    """Draw samples and write them as ``DIR/<index>.png``."""
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("-o", dest="output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("-n", type=positive, default=1, metavar="N", help="samples (default: 1)")
    parser.add_argument(
        "--cond",
        action="extend",
        nargs="+",
        metavar="NAME=VALUE",
        help="what to tell the model, such as time=4:20; may be repeated",
    )
    parser.add_argument(
        "--length",
        type=positive,
        metavar="N",
        help="tokens of each sample, on a grid of one axis (default: all)",
    )
    _add_sampler(parser)
    _add_inpainting(parser)
    add_common(parser, "device", "precision", "threads", "seed")
    args = parse(parser, words)
    if (args.inpaint is None) != (args.region is None and args.keep is None) or (
        args.region is not None and args.keep is not None
    ):
        parser.error("--inpaint: goes with one of --region and --keep")
    cond = conditions(args.cond or ())
    check_output(args.output)
    device = prepare(args)
    from qvae.runs.loading import open_run
    from qvae.runs.sampling import InPaint, sample_run
    from qvae.runs.tokens import save_samples

    names = ("temperature", "top_k", "top_p", "min_p", "guidance")
    settings = {name: value for name in names if (value := getattr(args, name)) is not None}
    run = open_run(args.run, device=device)
    inpaint = None
    if args.inpaint is not None:
        inpaint = InPaint(file=args.inpaint, region=args.region, mask=args.keep)
    with autocast(args, device):
        x = sample_run(
            run,
            num=args.n,
            cond=cond,
            seed=args.seed or 0,
            settings=settings,
            inpaint=inpaint,
            length=args.length,
            tell=note,
        )
    files = save_samples(x, output_folder(args.output))
    data = {"folder": args.output, "files": [str(file) for file in files], "cond": cond}
    return Result(data=data, text=f"{args.output}: {len(files)} samples")


def _add_sampler(parser: Parser) -> None:
    own = "; default: the sample section of the run's recipe"
    parser.add_argument("--temperature", type=number, metavar="T", help=f">= 0{own}")
    parser.add_argument("--top-k", type=positive, metavar="K", help=f"keep the K likeliest{own}")
    parser.add_argument("--top-p", type=number, metavar="P", help=f"in (0, 1]{own}")
    parser.add_argument("--min-p", type=number, metavar="P", help=f"in (0, 1]{own}")
    parser.add_argument("--guidance", type=number, metavar="G", help=f"1 is plain sampling{own}")


def _add_inpainting(parser: Parser) -> None:
    parser.add_argument("--inpaint", metavar="FILE", help="a sample to draw a part of anew")
    parser.add_argument(
        "--region", metavar="RANGES", help="the part, rows and columns, such as 0:32,16:48"
    )
    parser.add_argument("--keep", metavar="MASK", help="instead, a picture: what is white stays")


def conditions(words: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` words; several may be in one, with semicolons between them."""
    found: dict[str, str] = {}
    for word in (part.strip() for text in words for part in text.split(";")):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageError(f"--cond {word!r}: must be NAME=VALUE, such as time=4:20")
        if name in found:
            raise UsageError(f"--cond {word!r}: {name} is told twice")
        found[name] = value
    return found


def number(text: str) -> float:
    """Read a finite number, for ``type=``."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} must be a finite number")
    return value
