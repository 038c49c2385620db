"""``qvae read``: the time that pictures of clocks show, by geometry and without a network."""

from collections.abc import Sequence
from pathlib import Path

from qvae.cli.common import Parser, Result, add_common, parse
from qvae.errors import DataError

__all__ = ["run_read"]

_CONTRAST_FLOOR = 0.5


def run_read(parser: Parser, words: Sequence[str]) -> Result:
    """Print one line a picture: the file, the time, and whether the hand is too pale to count."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, or a folder of PNGs")
    add_common(parser)
    args = parse(parser, words)
    import numpy as np

    from qvae.data.clock_times import format_time
    from qvae.metrics.clock_reader import load_clock_image, read_clocks

    files = [file for name in args.images for file in _files(Path(name))]
    pictures = []
    for file in files:
        try:
            pictures.append(load_clock_image(file))
        except ValueError as error:
            raise DataError(str(error)) from None
    reading = read_clocks(np.stack(pictures))
    rows, lines = [], []
    for file, minutes, contrast in zip(files, reading.minutes, reading.contrast, strict=True):
        is_clear = bool(contrast >= _CONTRAST_FLOOR)
        rows.append(
            {
                "file": str(file),
                "time": format_time(float(minutes)),
                "minutes": round(float(minutes), 3),
                "contrast": round(float(contrast), 3),
                "is_clear": is_clear,
            }
        )
        remark = "" if is_clear else f"\tpale: hand contrast {contrast:.2f} is below .5"
        lines.append(f"{file}\t{rows[-1]['time']}{remark}")
    return Result(data={"readings": rows}, text="\n".join(lines))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".png")
    if not files:
        raise DataError(f"{path}: the folder holds no PNG file")
    return files
