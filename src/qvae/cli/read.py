"""``qvae read``: the time that pictures of clocks show, by geometry and without a network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvae.cli.common import Parser, Result, add_common, note, parse
from qvae.errors import DataError

__all__ = ["run_read"]

_CONTRAST_FLOOR = 0.5
_GHOST_CEILING = 0.2  # a double exposure is above it, and a sheet of clocks far above


def run_read(parser: Parser, words: Sequence[str]) -> Result:
    """Print one line a picture: the file, the time, and why it should not be believed, if so.

    What cannot be read is named on standard error, and the exit code is then 3.
    """
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, or a folder of PNGs")
    add_common(parser)
    args = parse(parser, words)
    pictures, bad = _load(args.images)
    if not pictures and len(bad) == 1:
        raise DataError(bad[0]["error"])
    for row in bad:
        note(f"qvae: {row['error']}")
    rows, lines = _read(pictures) if pictures else ([], [])
    code = DataError.exit_code if bad else 0
    return Result(data={"readings": rows, "bad": bad}, text="\n".join(lines), exit_code=code)


def _load(names: Sequence[str]) -> tuple[list[tuple[Path, Any]], list[dict[str, str]]]:
    """Open what can be opened, ``[64, 64, 3]`` each; of the rest say why not."""
    from qvae.metrics.clock_reader import load_clock_image

    pictures, bad = [], []
    waiting = [Path(name) for name in names]
    while waiting:
        path = waiting.pop(0)
        try:
            if path.is_dir():
                waiting = _pngs(path) + waiting
            else:
                pictures.append((path, load_clock_image(path)))
        except OSError as error:
            bad.append({"file": str(path), "error": f"{path}: {error.strerror}"})
        except ValueError as error:
            bad.append({"file": str(path), "error": str(error)})
    return pictures, bad


def _pngs(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png")
    files = [path for path in found if not path.is_dir()]
    if not files:
        raise DataError(f"{folder}: the folder holds no PNG file")
    return files


def _read(pictures: Sequence[tuple[Path, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row and a line for each picture."""
    import numpy as np

    from qvae.data.clock_times import format_time
    from qvae.metrics.clock_reader import read_clocks

    reading = read_clocks(np.stack([picture for _, picture in pictures]))
    columns = (reading.minutes.tolist(), reading.contrast.tolist(), reading.ghost.tolist())
    rows, lines = [], []
    for (file, _), minutes, contrast, ghost in zip(pictures, *columns, strict=True):
        remark = _remark(contrast, ghost)
        rows.append(
            {
                "file": str(file),
                "time": format_time(minutes),
                "minutes": round(minutes, 3),
                "contrast": round(contrast, 3),
                "ghost": round(ghost, 3),
                "is_clear": not remark,
            }
        )
        lines.append("\t".join([str(file), format_time(minutes), *remark]))
    return rows, lines


def _remark(contrast: float, ghost: float) -> list[str]:
    """Say what speaks against a reading: nothing, or one sentence."""
    if contrast < _CONTRAST_FLOOR:
        return [f"pale: hand contrast {contrast:.2f} is below .5"]
    if ghost > _GHOST_CEILING:
        return [f"not one clock: {ghost:.1f} times the hand's ink lies elsewhere in its ring"]
    return []
