"""Images in Parquet files, as data sets on the Hugging Face Hub store them.

The image column holds encoded files: ``struct<bytes, path>`` (the layout of
``datasets.Image``) or plain binary. Other columns of numbers and texts are conditions' columns; the
integers of a ``ClassLabel`` become its names. A file called train-*, validation-* or test-* is
that part.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvae.data.folders import refuse_bad
from qvae.data.image_files import BadImageError, decode_image
from qvae.data.samples import ImageStack, Samples, printable
from qvae.data.splits import column_parts, part_of
from qvae.errors import DataError, UsageError

__all__ = ["load_parquet"]

_NAMES = ("image", "img", "images", "x")
_ROWS = 64  # decoded together; bounds the memory that encoded images take


def _open(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UsageError(f"{path}: reading Parquet needs pyarrow: pip install qvae[data]") from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{path}: not a sound Parquet file ({reason})") from None


def _image_column(schema: Any, path: Path) -> str:
    import pyarrow as pa

    def holds_files(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else pa.null()
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    names = [field.name for field in schema if holds_files(field.type)]
    for name in (*_NAMES, *names):
        if name in names:
            return name
    raise DataError(
        f"{path}: no column of encoded images (binary, or struct with bytes) among "
        f"{', '.join(schema.names) or 'none'}"
    )


def _text_columns(schema: Any) -> dict[str, list[str] | None]:
    """Name the columns that are plain values, each with its class names if it has some."""
    import pyarrow as pa

    plain = (
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_boolean,
        pa.types.is_string,
        pa.types.is_large_string,
    )
    try:
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = stored["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        features = {}
    columns: dict[str, list[str] | None] = {}
    for field in schema:
        if any(test(field.type) for test in plain):
            feature = features.get(field.name) if isinstance(features, dict) else None
            names = feature.get("names") if isinstance(feature, dict) else None
            sound = isinstance(names, list) and all(isinstance(name, str) for name in names)
            columns[field.name] = names if sound and pa.types.is_integer(field.type) else None
    return columns


def _text(value: Any, names: list[str] | None) -> str:
    if value is None:
        return ""
    if names is not None and 0 <= value < len(names):
        return names[value]
    return str(value)


class _Reader:
    """Collects the rows of several files into one stack."""

    def __init__(self, num: int, *, size: int | None, channels: int | None) -> None:
        self.stack = ImageStack(num, size=size, channels=channels)
        self.size = size
        self.names: list[str] = []
        self.columns: dict[str, list[str]] = {}
        self.bad: list[tuple[str, str]] = []

    def read(self, file: Any, path: Path, label: str) -> None:
        image = _image_column(file.schema_arrow, path)
        texts = _text_columns(file.schema_arrow)
        if self.names and self.columns.keys() != texts.keys():
            raise DataError(
                f"{path}: columns {', '.join(texts)}, the files before it have "
                f"{', '.join(self.columns)}"
            )
        row = 0
        for batch in file.iter_batches(batch_size=_ROWS, columns=[image, *texts]):
            for record in batch.to_pylist():
                self._add(record, image, texts, f"{label}:{row}")
                row += 1

    def _add(
        self, record: dict[str, Any], image: str, texts: dict[str, list[str] | None], name: str
    ) -> None:
        content = record[image]
        content = content.get("bytes") if isinstance(content, dict) else content
        try:
            if not content:
                raise BadImageError("no bytes in the row")
            pixels = decode_image(content, size_hint=self.size)
        except BadImageError as error:
            self.bad.append((name, str(error)))
            return
        self.stack.add(pixels, name)
        self.names.append(name)
        for title, classes in texts.items():
            self.columns.setdefault(title, []).append(_text(record[title], classes))


def load_parquet(
    root: Path,
    files: Sequence[str],
    *,
    size: int | None,
    channels: int | None,
    max_bad: int,
) -> Samples:
    """Decode the images of Parquet files below a folder, in the order given.

    Raises:
        UsageError: pyarrow is not installed.
        DataError: a damaged file, no column of images, or too many bad images.
    """
    opened = [(name, _open(root / name)) for name in files]
    num = sum(file.metadata.num_rows for _, file in opened)
    if num == 0:
        raise DataError(f"{root}: the Parquet files have no rows")
    reader = _Reader(num, size=size, channels=channels)
    for name, file in opened:
        try:
            reader.read(file, root / name, printable(name))
        except OSError as error:
            reason = str(error).strip().split("\n")[0]
            raise DataError(f"{root / name}: not a sound Parquet file ({reason})") from None
    refuse_bad(reader.bad, num, max_bad, str(root))
    x = reader.stack.array()
    assert x is not None
    told = column_parts(reader.columns, str(root)) or _named_parts(reader.names)
    return Samples(
        x=x,
        keys=[name.encode() for name in reader.names],
        names=reader.names,
        told=told,
        columns=reader.columns,
        bad=reader.bad,
    )


def _named_parts(names: Sequence[str]) -> list[str] | None:
    """Read the parts from file names such as data/train-00000-of-00001.parquet."""
    words = [re.split(r"[-_.]", name.rsplit("/", 1)[-1], maxsplit=1)[0] for name in names]
    told = [part for word in words if (part := part_of(word)) is not None]
    return told if len(told) == len(words) else None
