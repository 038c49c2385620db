"""One sample in a file, to and from the tensor that a model takes."""

import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qvae.coding import Compressed, compress, decompress, uniform_prior
from qvae.data.arrays import open_npy
from qvae.data.image_files import BadImageError, decode_image, image_to_array, to_channels
from qvae.data.images import write_image
from qvae.errors import DataError, FormatError
from qvae.priors.base import Prior
from qvae.runs.loading import Run
from qvae.store import fsync_path
from qvae.types import DataSpec

__all__ = ["compress_file", "decompress_file", "read_sample", "write_sample"]


def read_sample(path: str | Path, spec: DataSpec) -> Float[Tensor, "*CS"]:
    """Read a picture, or an .npy array, of exactly the shape of ``spec``; pictures in [0, 1].

    Nothing is resized: a sample of another size is another sample.

    Raises:
        DataError: the file cannot be read, or has another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix == ".npy":
        array = np.asarray(open_npy(path))
        if array.shape != spec.shape or array.dtype.kind not in "fu":
            raise DataError(
                f"{path}: {array.dtype} of shape {array.shape}, the model takes {spec.shape}"
            )
        x = torch.from_numpy(array.astype(np.float32))
        return x / 255 if array.dtype == np.uint8 else x
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


def write_sample(x: Float[Tensor, "*CS"], path: str | Path) -> None:
    """Write a sample as PNG, or as .npy where it is no picture."""
    if x.ndim == 3 and len(x) in (1, 3):
        write_image(x, path)
        return
    with open(path, "wb") as file:
        np.save(file, x.cpu().numpy(), allow_pickle=False)


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
    """
    if not Path(file).is_file():
        raise DataError(f"{file}: no such file")
    try:
        found = decompress(
            Path(file).read_bytes(), tokenizer=run.require_tokenizer(), prior=_prior(run)
        )
    except FormatError as error:
        raise FormatError(f"{file}: {error}") from None
    write_sample(found.recon, output)
    return found


def _prior(run: Run) -> Prior:
    return run.model if isinstance(run.model, Prior) else uniform_prior(run.require_tokenizer())
