"""``qvae read``: the time that pictures of clocks show, by geometry and without a network."""

from collections.abc import Sequence
from pathlib import Path

from qvae.cli.common import Parser, Result, add_common, parse
from qvae.errors import DataError

__all__ = ["run_read"]

_CONTRAST_FLOOR = 0.5
_GHOST_CEILING = 0.2  # a double exposure is above it, and a sheet of clocks far above


def run_read(parser: Parser, words: Sequence[str]) -> Result:
    """Print one line a picture: the file, the time, and why it should not be believed, if so."""
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
    values = zip(files, reading.minutes, reading.contrast, reading.ghost, strict=True)
    for file, minutes, contrast, ghost in values:
        remark = _remark(float(contrast), float(ghost))
        rows.append(
            {
                "file": str(file),
                "time": format_time(float(minutes)),
                "minutes": round(float(minutes), 3),
                "contrast": round(float(contrast), 3),
                "ghost": round(float(ghost), 3),
                "is_clear": not remark,
            }
        )
        lines.append("\t".join([str(file), format_time(float(minutes)), *remark]))
    return Result(data={"readings": rows}, text="\n".join(lines))


def _remark(contrast: float, ghost: float) -> list[str]:
    """Say what speaks against a reading: nothing, or one sentence."""
    if contrast < _CONTRAST_FLOOR:
        return [f"pale: hand contrast {contrast:.2f} is below .5"]
    if ghost > _GHOST_CEILING:
        return [f"not one clock: {ghost:.1f} times the hand's ink lies elsewhere in its ring"]
    return []


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".png")
    if not files:
        raise DataError(f"{path}: the folder holds no PNG file")
    return files
