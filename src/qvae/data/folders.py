"""A folder of image files, with an optional metadata.csv: which files, in which order, with what.

Files are found once each, on any machine in the same order (by the bytes of their path relative to
the folder). Hidden names are skipped; a linked folder is entered unless its files were found
already, so loops end.
"""

import csv
import logging
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

from qvae.data.image_files import EXTENSIONS, BadImageError, decode_image
from qvae.data.samples import ImageStack, Samples, printable
from qvae.data.splits import column_parts, folder_parts, part_of
from qvae.errors import DataError

__all__ = ["find_files", "has_extension", "load_folder_images", "refuse_bad"]

logger = logging.getLogger(__name__)

_FILE_COLUMNS = ("file_name", "filename", "file", "path", "image")
_METADATA = "metadata.csv"


def find_files(root: Path) -> list[str]:
    """List the files below a folder as posix paths relative to it, sorted by their bytes.

    Raises:
        DataError: a folder cannot be read.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    starts = [""]
    # Real folders come before linked ones, so that a file is known by its real path.
    while starts:
        links: list[str] = []
        for start in starts:
            _walk(root, start, found, links, seen)
        starts = sorted(links, key=os.fsencode)
    return sorted(found, key=os.fsencode)


def _walk(
    root: Path, start: str, found: list[str], links: list[str], seen: set[tuple[int, int]]
) -> None:
    folders = [start]
    while folders:
        folder = folders.pop()
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = list(os.scandir(root / folder))
        except OSError as error:
            name = printable(str(root / folder))
            raise DataError(f"{name}: cannot be read ({error.strerror})") from None
        for entry in entries:
            path = posixpath.join(folder, entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_symlink() and (root / path).is_dir():
                links.append(path)
            elif (root / path).is_file():
                found.append(path)


def has_extension(path: str) -> bool:
    """Tell whether a file's extension is that of an image format."""
    return posixpath.splitext(path)[1].lower() in EXTENSIONS


def _read_metadata(root: Path, name: str) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """Read a metadata.csv: its columns but the file's, and for each row the file and the cells."""
    where = printable(str(root / name))
    try:
        # File names need not be UTF-8: surrogateescape is how the operating system hands them out.
        with open(root / name, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = [line for line in csv.reader(file, strict=True) if line]
    except (OSError, csv.Error) as error:
        raise DataError(f"{where}: cannot be read ({error})") from None
    header = [title.strip() for title in lines[0]] if lines else []
    column = next((title for title in _FILE_COLUMNS if title in header), None)
    if column is None:
        found = printable(", ".join(header))
        raise DataError(
            f"{where}: no column with the file names; needs one of {', '.join(_FILE_COLUMNS)}, "
            f"its first line says {found[:60] or 'nothing'}"
        )
    if len(set(header)) < len(header):
        raise DataError(f"{where}: two columns have the same name, of {', '.join(header)}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise DataError(
                f"{where}: line {number} has {len(line)} cells, the header has {len(header)}"
            )
        cells = dict(zip(header, line, strict=True))
        told = cells.pop(column).strip()
        # As the operating system would name it, whatever the locale.
        own = os.fsdecode(told.encode("utf-8", "surrogateescape"))
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), own))
        if not told or path.startswith(("/", "../")):
            raise DataError(f"{where}: line {number} names {printable(told)!r}, not a file inside")
        rows.append((path, {_text(title): _text(cell) for title, cell in cells.items()}))
    return [_text(title) for title in header if title != column], rows


def _text(cell: str) -> str:
    """Make text that was not UTF-8 writable as UTF-8."""
    return cell.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _metadata(root: Path, files: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Join every metadata.csv of the tree: all column names, and the cells of each file."""
    titles: dict[str, None] = {}
    table: dict[str, dict[str, str]] = {}
    for name in files:
        if posixpath.basename(name) != _METADATA:
            continue
        header, rows = _read_metadata(root, name)
        titles.update(dict.fromkeys(header))
        where = printable(str(root / name))
        for path, cells in rows:
            if not (root / path).is_file():
                raise DataError(f"{where}: names {printable(path)!r}, there is no such file")
            if path in table:
                raise DataError(f"{where}: names {printable(path)!r} twice")
            table[path] = cells
    return list(titles), table


def load_folder_images(
    root: Path,
    files: Sequence[str],
    *,
    size: int | None,
    channels: int | None,
    max_bad: int,
    needs: Sequence[str] = (),
) -> Samples:
    """Decode the images of a folder, with their columns and parts.

    Columns come from metadata.csv (also one in a sub-folder, for the files beside it); without
    any, "label" is the name of the folder an image lies in.

    Args:
        root: the folder.
        files: what :func:`find_files` found.
        size: side to crop and resize to; None: all images have one size.
        channels: 1, 3 or None (3 if any image has colour).
        max_bad: how many unreadable images are left out before it is an error.
        needs: columns that the caller will use; each image must have a row then.

    Raises:
        DataError: nothing to read, too many bad images, or a metadata.csv that does not fit.
    """
    titles, table = _metadata(root, files)
    images = sorted({path for path in files if has_extension(path)} | set(table), key=os.fsencode)
    if not images:
        raise DataError(f"{root}: holds no images ({', '.join(sorted(EXTENSIONS))})")
    if table and (needs or "split" in titles):
        stray = [path for path in images if path not in table]
        if stray:
            raise DataError(
                f"{root}: {len(stray)} images have no row in {_METADATA}, "
                f"the first is {printable(stray[0])!r}"
            )
    stack = ImageStack(len(images), size=size, channels=channels)
    kept, bad = [], []
    for path in images:
        try:
            image = decode_image(root / path, size_hint=size)
        except BadImageError as error:
            bad.append((printable(path), str(error)))
            continue
        stack.add(image, printable(path))
        kept.append(path)
    refuse_bad(bad, len(images), max_bad, printable(str(root)))
    x = stack.array()
    assert x is not None
    columns = {
        title: [table.get(path, {}).get(title, "") for path in kept] for title in titles
    } or _labels(kept)
    names = [printable(path) for path in kept]
    return Samples(
        x=x,
        keys=[os.fsencode(path) for path in kept],
        names=names,
        told=column_parts(columns, str(root), names) or folder_parts(kept),
        columns=columns,
        bad=bad,
    )


def _labels(paths: Sequence[str]) -> dict[str, list[str]]:
    """Take the folder that each image lies in for its label; no column where one lies in none."""
    parents = [posixpath.dirname(path) for path in paths]
    if not all(parents) or any("/" not in parent and part_of(parent) for parent in parents):
        return {}
    return {"label": [printable(posixpath.basename(parent)) for parent in parents]}


def refuse_bad(bad: Sequence[tuple[str, str]], num: int, max_bad: int, where: str) -> None:
    """Stop when more images were unreadable than are tolerated, or all of them; else name them.

    Raises:
        DataError: with the count, the first five and their reasons.
    """
    first = "; ".join(f"{name} ({reason})" for name, reason in bad[:5])
    more = "; ..." if len(bad) > 5 else ""
    if len(bad) <= max_bad and len(bad) < num:
        if bad:
            text = "%s: %d of %d images cannot be read and are left out: %s%s"
            logger.warning(text, where, len(bad), num, first, more)
        return
    way = f"; --data.max_bad {len(bad)} leaves them out" if len(bad) < num else ""
    raise DataError(
        f"{where}: {len(bad)} of {num} images cannot be read, {max_bad} may be: {first}{more}{way}"
    )
