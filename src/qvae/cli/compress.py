"""``qvae compress`` and ``qvae decompress``: a sample as few bytes, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvae.cli.common import Parser, Result, add_common, check_output, note, parse
from qvae.cli.sample import conditions
from qvae.errors import UsageError

__all__ = ["run_compress", "run_decompress"]


def run_compress(parser: Parser, words: Sequence[str]) -> Result:
    """Write the coded tokens of a file, decode them to be sure, and compare with PNG and others."""
    parser.add_argument(
        "--cond",
        action="extend",
        nargs="+",
        metavar="NAME=VALUE",
        help="what the file shows, such as time=4:20; kept in the bytes; may be repeated",
    )
    args = _parse(parser, words, "a picture or an .npy array of the model's shape")
    told = conditions(args.cond or ())
    from qvae.data.codecs import bytes_at_psnr
    from qvae.runs.files import compress_file, read_sample
    from qvae.runs.loading import open_run, told_row

    run = open_run(args.run)
    row = told_row(run, told, tell=note)
    # Told nothing, the bytes need not say so.
    found = compress_file(run, args.file, args.output, cond=row if told else None)
    size = len(found.data)
    data: dict[str, Any] = {
        "file": args.output,
        "bytes": size,
        "header_bytes": size - found.payload,
        "psnr": found.psnr,
        "tokens": len(found.tokens),
        "cond": told,
    }
    lines = [
        f"{args.output}: {size} bytes ({found.payload} of tokens), {found.psnr:.2f} dB; decodes to "
        "the same tokens"
    ]
    x = read_sample(args.file, run.require_tokenizer().spec)
    if x.ndim == 3 and len(x) in (1, 3):
        data["others"] = bytes_at_psnr((x * 255).round().byte().numpy(), found.psnr)
        for codec, row in data["others"].items():
            bytes_, quality = row["bytes"], "lossless" if row["psnr"] is None else row["psnr"]
            reached = "cannot reach this PSNR" if bytes_ is None else f"{bytes_} bytes, {quality}"
            lines.append(f"  {codec:<5} {reached}{' dB' if row['psnr'] is not None else ''}")
    return Result(data=data, text="\n".join(lines))


def run_decompress(parser: Parser, words: Sequence[str]) -> Result:
    """Write the sample that compressed bytes decode to; refuse those of another run."""
    args = _parse(parser, words, "a file of qvae compress")
    from qvae.runs.files import decompress_file
    from qvae.runs.loading import open_run

    found = decompress_file(open_run(args.run), args.file, args.output)
    data = {"file": args.output, "psnr": found.psnr, "tokens": len(found.tokens)}
    text = f"{args.output}: {len(found.tokens)} tokens from {len(found.data)} bytes"
    return Result(data=data, text=text)


def _parse(parser: Parser, words: Sequence[str], file_help: str) -> Any:
    parser.add_argument("run", metavar="RUN", help="the run of a prior, or of a quantizer")
    parser.add_argument("file", metavar="FILE", help=file_help)
    parser.add_argument("-o", dest="output", required=True, metavar="OUT", help="file to write")
    add_common(parser)
    args = parse(parser, words)
    check_output(Path(args.output).absolute().parent)
    if Path(args.output).is_dir():
        raise UsageError(f"{args.output}: is a folder, must be a file")
    return args
