"""``qvae clock``: the model in the package draws clocks; to files or to the terminal."""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qvae.cli.common import (
    Parser,
    Result,
    add_common,
    check_output,
    output_folder,
    parse,
    positive,
    prepare,
)
from qvae.errors import UsageError

__all__ = ["run_clock"]

_HALF = "\N{UPPER HALF BLOCK}"


def run_clock(parser: Parser, words: Sequence[str]) -> Result:
    """Draw each time ``-n`` times; ``-o`` is one PNG (a row for each time) or a folder."""
    parser.add_argument("times", nargs="+", metavar="TIME", help="such as 4:20, 16:20 or 4h20")
    parser.add_argument(
        "-n", type=positive, metavar="N", help="clocks of each time (default: 4; in a FILE.png 1)"
    )
    parser.add_argument(
        "--scale", type=positive, metavar="N", help="pixels for one, in files (default: 1)"
    )
    parser.add_argument(
        "-o",
        dest="output",
        metavar="PATH",
        help="FILE.png, or a folder for files HH-MM_i.png; without it the terminal shows them",
    )
    add_common(parser, "threads", "seed")
    args = parse(parser, words)
    from qvae.data.clock_times import format_time, parse_time

    minutes = [parse_time(text) for text in args.times]
    if args.output is None and args.json:
        raise UsageError("--json: needs -o PATH, a picture in the terminal is no JSON")
    if args.output is None and args.scale is not None:
        raise UsageError(f"--scale {args.scale}: needs -o PATH, the terminal has its own size")
    is_file = _is_file(args.output) if args.output is not None else False
    if args.output is not None:
        check_output(Path(args.output).parent if is_file else args.output)
    prepare(args)
    from qvae.clock import draw_clocks

    num = args.n or (1 if is_file else 4)
    pictures = np.asarray(draw_clocks(minutes, num=num, seed=args.seed or 0))
    if args.output is None:
        return Result(text="\n\n".join(_terminal(row) for row in pictures))
    scale = args.scale or 1
    pictures = pictures.repeat(scale, axis=2).repeat(scale, axis=3)
    files = _save_sheet if is_file else _save_folder
    written = files(pictures, Path(args.output), args.times)
    times = [format_time(value) for value in minutes]
    data = {"files": [str(path) for path in written], "times": times, "n": num}
    return Result(data=data, text="\n".join(map(str, written)))


def _is_file(output: str) -> bool:
    """Whether ``-o`` names a file; a name with another ending than .png is refused."""
    path = Path(output)
    if path.is_dir() or output.endswith("/") or not path.suffix:
        return False
    if path.suffix.lower() != ".png":
        raise UsageError(f"-o {output}: a file must end in .png, a folder has no ending")
    return True


def _save_sheet(pictures: np.ndarray, path: Path, times: Sequence[str]) -> list[Path]:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [np.concatenate(list(row), axis=1) for row in pictures]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)
    return [path]


def _save_folder(pictures: np.ndarray, path: Path, times: Sequence[str]) -> list[Path]:
    from PIL import Image

    folder = output_folder(path)
    written = []
    for row, text in zip(pictures, times, strict=True):
        stem = "-".join(f"{int(part):02d}" for part in re.split("[:h]", text.strip()))
        for i, picture in enumerate(row):
            written.append(folder / f"{stem}_{i}.png")
            Image.fromarray(picture).save(written[-1])
    return list(dict.fromkeys(written))


def _terminal(row: np.ndarray) -> str:
    """Draw a row of pictures ``[n, H, W, 3]``, two pixels above each other in one character."""
    columns = max(2, shutil.get_terminal_size().columns)
    step = 1 if columns >= row.shape[2] else 2
    fits = max(1, columns * step // row.shape[2])
    picture = np.concatenate(list(row[:fits]), axis=1)[::step, ::step]
    cell = _halves if _can_show(_HALF) else _mean
    lines = []
    for top, bottom in zip(picture[::2], picture[1::2], strict=True):
        cells = [cell(a, b) for a, b in zip(top.tolist(), bottom.tolist(), strict=True)]
        lines.append("".join(cells) + "\033[0m")
    return "\n".join(lines)


def _halves(top: Sequence[int], bottom: Sequence[int]) -> str:
    return f"{_colour(38, top)}{_colour(48, bottom)}{_HALF}"


def _mean(top: Sequence[int], bottom: Sequence[int]) -> str:
    """Show two pixels where there is no half block: a space on the mean of both."""
    return f"{_colour(48, [(a + b) // 2 for a, b in zip(top, bottom, strict=True)])} "


def _colour(ground: int, rgb: Sequence[int]) -> str:
    return "\033[{};2;{};{};{}m".format(ground, *rgb)


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
