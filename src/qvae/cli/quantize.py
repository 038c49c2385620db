"""``qvae quantize``: codes for a VAE that is trained already."""

import math
from collections.abc import Sequence

from qvae.cli.common import Parser, Result, add_common, check_output, note, parse, positive, prepare

__all__ = ["run_quantize"]


def run_quantize(parser: Parser, words: Sequence[str]) -> Result:
    """Fit a scalar quantizer to a VAE's means, and write a run folder that makes tokens."""
    parser.add_argument("run", metavar="RUN", help="the folder of a run with a gaussian bottleneck")
    parser.add_argument("data", nargs="?", metavar="DATA", help="default: the data of the run")
    parser.add_argument("-o", dest="output", required=True, metavar="DIR", help="a new run folder")
    parser.add_argument(
        "--bits", type=float, default=12.0, metavar="B", help="most bits a grid cell (default: 12)"
    )
    parser.add_argument(
        "-n", type=positive, default=4096, metavar="N", help="samples to fit to (default: 4096)"
    )
    add_common(parser, "device", "threads")
    args = parse(parser, words)
    check_output(args.output)
    device = prepare(args)
    from qvae.bottlenecks.posthoc import MOST_LEVELS
    from qvae.runs.loading import open_run, open_run_data
    from qvae.runs.posthoc import quantize_run

    run = open_run(args.run, device=device)
    data = open_run_data(run, args.data)
    tokenizer = quantize_run(run, data, args.output, bits=args.bits, samples=args.n)
    a_cell = sum(math.log2(size) for size in tokenizer.codebook_sizes)
    if a_cell <= args.bits - 1:  # else there was not enough left for one value more
        note(
            f"--bits {args.bits:g}: more than the codes use; a cell takes {a_cell:.1f}, with at"
            f" most {MOST_LEVELS} values a coordinate, and not more than its means differ in"
        )
    bits = math.prod(tokenizer.grid) * a_cell
    text = (
        f"{args.output}: {bits:.1f} bits and {tokenizer.num_tokens} tokens a sample; "
        f"levels {' x '.join(map(str, tokenizer.codebook_sizes))} a cell"
    )
    return Result(data={"run": args.output, "bits": bits, **tokenizer.facts}, text=text)
