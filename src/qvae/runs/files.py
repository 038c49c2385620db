"""One sample in a file, to and from the tensor that a model takes."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qvae.coding import Compressed, compress, decompress, uniform_prior
from qvae.data.arrays import checked_range, open_npy
from qvae.data.image_files import BadImageError, decode_image, image_to_array, to_channels
from qvae.data.images import write_image
from qvae.errors import DataError, FormatError, UsageError
from qvae.priors.base import Prior
from qvae.runs.loading import Run
from qvae.store import fsync_path
from qvae.types import DataSpec

__all__ = ["compress_file", "decompress_file", "read_sample", "write_sample"]


def read_sample(path: str | Path, spec: DataSpec) -> Float[Tensor, "*CS"]:
    """Read a picture, or an .npy array, of exactly the shape of ``spec``; pictures in [0, 1].

    Nothing is resized: a sample of another size is another sample. In an array uint8 is 0..255 and
    bool 0 and 1; floats are taken as they are.

    Raises:
        DataError: the file cannot be read, or has another shape, or holds what the model's data
            cannot: NaN, infinity, and where they have levels anything outside [0, 1].
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix == ".npy":
        return torch.from_numpy(_checked_array(np.asarray(open_npy(path)), path, spec))
    if len(spec.shape) != 3 or spec.shape[0] not in (1, 3):
        raise DataError(f"{path}: the model takes arrays of shape {spec.shape}, give an .npy file")
    try:
        image = decode_image(path)
    except BadImageError as error:
        raise DataError(f"{path}: {error}") from None
    channels, height, width = spec.shape
    if image.size != (width, height):
        raise DataError(
            f"{path}: {image.size[0]} x {image.size[1]} pixels, the model takes {width} x {height}"
        )
    pixels = to_channels(image_to_array(image), channels)
    return torch.from_numpy(pixels.astype(np.float32)).div_(255)


def _checked_array(array: np.ndarray, path: Path, spec: DataSpec) -> Float[np.ndarray, "*CS"]:
    if array.shape != spec.shape or array.dtype.kind not in "fub":
        raise DataError(
            f"{path}: {array.dtype} of shape {array.shape}, the model takes floats, uint8 or bool"
            f" of {spec.shape}"
        )
    x = array.astype(np.float32)
    if array.dtype == np.uint8:
        x /= 255
    low, high = checked_range([x], str(path), can_be_constant=True)
    if spec.levels is not None and not (low >= 0 and high <= 1):
        raise DataError(
            f"{path}: {array.dtype} values from {low:g} to {high:g}, the model takes [0, 1]"
            " (or 0..255 as uint8)"
        )
    return x


def write_sample(x: Float[Tensor, "*CS"], path: str | Path) -> None:
    """Write a sample to a .png, rounded to 8 bits, or to an .npy file as it is.

    Raises:
        UsageError: another ending, or a .png for what is no picture.
    """
    _check_ending(path, tuple(x.shape))
    if Path(path).suffix.lower() == ".png":
        write_image(x, path)
        return
    with open(path, "wb") as file:
        np.save(file, x.cpu().numpy(), allow_pickle=False)


def _check_ending(path: str | Path, shape: Sequence[int]) -> None:
    """Refuse a name that would lie about what is in the file.

    Raises:
        UsageError: as in :func:`write_sample`.
    """
    is_picture = len(shape) == 3 and shape[0] in (1, 3)
    endings = (".png", ".npy") if is_picture else (".npy",)
    if Path(path).suffix.lower() not in endings:
        raise UsageError(f"{path}: a sample of shape {shape} is written to {' or '.join(endings)}")


def compress_file(
    run: Run, file: str | Path, output: str | Path, *, cond: Float[Tensor, " M"] | None = None
) -> Compressed:
    """Compress a sample's file with a run's tokenizer and, if it is a prior's run, its prior.

    Args:
        run: of a prior, or of a quantizer, whose codes then all cost the same.
        file: a picture or an .npy array of the model's shape.
        output: the file to write, whole or not at all.
        cond: raw numbers of what the file shows, as :func:`~qvae.runs.loading.told_row` makes
            them; they are kept in the bytes. A conditional model that is told nothing needs more
            bytes, and may decode to another picture.

    Raises:
        DataError: the file cannot be read, or has another shape.
        UsageError: the run has no codes, or constriction is not installed.
    """
    tokenizer = run.require_tokenizer()
    x = read_sample(file, tokenizer.spec)
    found = compress(x, tokenizer=tokenizer, prior=_prior(run), cond=cond)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(output).with_name(f".{Path(output).name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(found.data)
        fsync_path(temporary)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return found


def decompress_file(run: Run, file: str | Path, output: str | Path) -> Compressed:
    """Undo :func:`compress_file`.

    Raises:
        DataError: there is no such file.
        FormatError: it is damaged, or of another tokenizer or prior.
        UsageError: as in :func:`write_sample`.
    """
    tokenizer = run.require_tokenizer()
    _check_ending(output, tokenizer.spec.shape)
    if not Path(file).is_file():
        raise DataError(f"{file}: no such file")
    try:
        found = decompress(Path(file).read_bytes(), tokenizer=tokenizer, prior=_prior(run))
    except FormatError as error:
        raise FormatError(f"{file}: {error}") from None
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    write_sample(found.recon, output)
    return found


def _prior(run: Run) -> Prior:
    return run.model if isinstance(run.model, Prior) else uniform_prior(run.require_tokenizer())
