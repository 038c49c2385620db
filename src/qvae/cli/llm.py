"""``qvae llm``: draw a clock from a sentence, read a clock into a sentence."""

import re
from collections.abc import Sequence
from pathlib import Path

from qvae.cli.common import (
    Parser,
    Result,
    add_common,
    check_output,
    note,
    parse,
    positive,
    prepare,
)
from qvae.cli.sample import number
from qvae.errors import DataError, UsageError

__all__ = ["run_llm"]

_USAGE = """\
usage: qvae llm draw SENTENCE [SENTENCE ...] -o PATH [options]
       qvae llm read IMAGE [IMAGE ...] [options]

  draw    draw a clock from a sentence: "ten past ten", "22:10, on a green face"
  read    read a clock into a sentence

qvae llm draw --help and qvae llm read --help say more. Train one: qvae train llm_clock."""


def run_llm(parser: Parser, words: Sequence[str]) -> Result:
    """Run ``draw`` or ``read``."""
    if not words or words[0] in ("-h", "--help"):
        return Result(text=_USAGE)
    verbs = {"draw": _draw, "read": _read}
    if words[0] not in verbs:
        raise UsageError(f"{words[0]!r}: qvae llm takes draw or read; see qvae llm --help")
    parser = Parser(prog=f"{parser.prog} {words[0]}", description=parser.description)
    return verbs[words[0]](parser, words[1:])


def _draw(parser: Parser, words: Sequence[str]) -> Result:
    """Write one PNG a sentence: a file for one, a folder for several."""
    parser.add_argument("sentences", nargs="+", metavar="SENTENCE", help="in quotes")
    parser.add_argument(
        "-o", dest="output", required=True, metavar="PATH", help="FILE.png, or a folder"
    )
    _add_run(parser)
    own = "; default: the sample section of the run's recipe"
    parser.add_argument("--temperature", type=number, metavar="T", help=f">= 0{own}")
    parser.add_argument("--top-k", type=positive, metavar="K", help=f"keep the K likeliest{own}")
    parser.add_argument("--top-p", type=number, metavar="P", help=f"in (0, 1]{own}")
    parser.add_argument("--min-p", type=number, metavar="P", help=f"in (0, 1]{own}")
    parser.add_argument("--guidance", type=number, metavar="G", help=f"1 is plain sampling{own}")
    add_common(parser, "threads", "seed")
    args = parse(parser, words)
    is_file = Path(args.output).suffix.lower() == ".png"
    if is_file and len(args.sentences) > 1:
        raise UsageError(f"-o {args.output}: a file holds one clock, give a folder for several")
    check_output(Path(args.output).parent if is_file else args.output)
    run = _run_folder(args.run)
    prepare(args)
    from qvae.data.images import write_image
    from qvae.llm.clock_llm import open_clock_llm
    from qvae.runs.tokens import save_samples, token_bar

    names = ("temperature", "top_k", "top_p", "min_p", "guidance")
    settings = {name: value for name in names if (value := getattr(args, name)) is not None}
    llm = open_clock_llm(run)
    with token_bar("draw") as report:
        pictures, times = llm.draw(args.sentences, seed=args.seed or 0, on_step=report, **settings)
    if is_file:
        files = [Path(args.output)]
        files[0].parent.mkdir(parents=True, exist_ok=True)
        write_image(pictures[0], files[0])
    else:
        files = save_samples(pictures, args.output)
    rows = [
        {"file": str(file), "sentence": sentence, "understood": time}
        for file, sentence, time in zip(files, args.sentences, times, strict=True)
    ]
    lines = [f"{row['file']}\t{row['understood']}\t{row['sentence']}" for row in rows]
    return Result(data={"run": str(run), "drawings": rows}, text="\n".join(lines))


def _read(parser: Parser, words: Sequence[str]) -> Result:
    """Print one line a picture: the file, the time, the sentence.

    What cannot be read is named on standard error, and the exit code is then 3.
    """
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures of clocks")
    _add_run(parser)
    add_common(parser, "threads")
    args = parse(parser, words)
    run = _run_folder(args.run)
    prepare(args)
    import numpy as np
    import torch

    from qvae.data.images import read_pixels
    from qvae.llm.clock_llm import open_clock_llm

    llm = open_clock_llm(run)
    files, pictures, rows, bad = [], [], [], []
    for path in args.images:
        try:
            pictures.append(read_pixels(path, llm.tokenizer.spec.shape))
            files.append(path)
        except DataError as error:
            bad.append({"file": path, "error": str(error)})
            note(f"qvae: {error}")
    if pictures:
        answers = llm.read(torch.from_numpy(np.stack(pictures)).float() / 255)
        for path, answer in zip(files, answers, strict=True):
            time, _, sentence = answer.partition(" = ")
            rows.append({"file": path, "time": time, "sentence": sentence})
    return Result(
        data={"run": str(run), "readings": rows, "bad": bad},
        text="\n".join("\t".join(row.values()) for row in rows),
        exit_code=DataError.exit_code if bad else 0,
    )


def _add_run(parser: Parser) -> None:
    parser.add_argument(
        "--run", metavar="DIR", help="a run of llm_clock (default: the newest runs/llm_clock-N)"
    )


def _run_folder(given: str | None) -> Path:
    if given is not None:
        return Path(given)
    found = {
        int(match[1]): path
        for path in Path("runs").glob("llm_clock-*")
        if (match := re.fullmatch(r"llm_clock-(\d+)", path.name))
    }
    if not found:
        raise UsageError("--run: needs the folder of a run; train one with qvae train llm_clock")
    return found[max(found)]
