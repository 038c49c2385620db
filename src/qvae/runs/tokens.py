"""From data to a folder of tokens, and from tokens to files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from qvae.data.base import DataModule, Split
from qvae.data.image_files import write_png
from qvae.data.tokens import TokenData, TokenWriter
from qvae.tokenizer import Tokenizer
from qvae.types import Batch

__all__ = ["batches_of", "cut", "decode_tokens", "encode_data", "save_samples", "token_bar"]

_BATCH = 256


def batches_of(split: Split, *, label: str, most: int | None = None) -> Iterator[Batch]:
    """Go through a split in order, with a progress bar on a terminal.

    Args:
        split: what to read.
        label: text of the bar.
        most: stop after this many samples; None is all.
    """
    num = len(split) if most is None else min(most, len(split))
    with tqdm(total=num, desc=label, unit="sample", disable=None, dynamic_ncols=True) as bar:
        for start in range(0, num, _BATCH):
            batch = split.batch(np.arange(start, min(start + _BATCH, num)))
            yield batch
            bar.update(len(batch))


@contextmanager
def token_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal; what comes is an ``on_step`` of a draw.

    Args:
        label: text of the bar.
    """
    with tqdm(desc=label, unit="token", disable=None, dynamic_ncols=True) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


def encode_data(tokenizer: Tokenizer, data: DataModule, path: str | Path) -> dict[str, int]:
    """Write the tokens of every split, and the tokenizer itself, to a new folder.

    Returns:
        How many samples each split has.

    Raises:
        UsageError: the folder is in use.
    """
    splits = {"train": data.train(), "valid": data.valid(), "test": data.test()}
    writer = TokenWriter(
        path,
        grid=tokenizer.grid,
        codebook_sizes=tokenizer.codebook_sizes,
        tokenizer_hash=tokenizer.hash,
        conditions=tokenizer.spec.conditions,
    )
    with writer:
        for name, split in splits.items():
            for batch in batches_of(split, label=f"encode {name}"):
                writer.write(name, tokenizer.encode(batch.x, batch.cond), batch.cond)
        tokenizer.save_pretrained(writer.folder / "tokenizer")
    return {name: len(split) for name, split in splits.items()}


def decode_tokens(
    tokenizer: Tokenizer,
    tokens: TokenData,
    path: str | Path,
    *,
    splits: tuple[str, ...] | None = None,
    most: int | None = None,
    num_levels: int | None = None,
) -> dict[str, int]:
    """Write every sample's reconstruction to ``path/<split>/<index>.png``.

    Args:
        tokenizer: whose tokens they are.
        tokens: opened with this tokenizer's hash.
        path: folder to write to.
        splits: which splits; None is all there are.
        most: samples of each split; None is all.
        num_levels: read the first levels of a ``residual`` only; None is all.

    Returns:
        How many samples of each split were written.

    Raises:
        DataError: there is no such split.
        FormatError: a token outside the vocabulary.
    """
    written = {}
    for name in splits or tuple(tokens.splits):
        split = getattr(tokens, name)()
        done = 0
        for batch in batches_of(split, label=f"decode {name}", most=most):
            x = tokenizer.decode(batch.x, batch.cond, num_levels=num_levels)
            for sample in [x] if batch.lengths is None else _cut(x, batch.lengths, tokens):
                save_samples(sample, Path(path) / name, start=done)
                done += len(sample)
        written[name] = done
    return written


def _cut(
    x: Float[Tensor, "B C S"], lengths: Int[Tensor, " B"], tokens: TokenData
) -> Iterator[Float[Tensor, "1 C _"]]:
    """Leave out of each sample what its padding was decoded to."""
    for row, length in enumerate(lengths.tolist()):
        yield cut(x[row : row + 1], length, tokens.num_tokens)


def cut(x: Float[Tensor, "B C S"], length: int, num_tokens: int) -> Float[Tensor, "B C _"]:
    """Keep what ``length`` of a sample's ``num_tokens`` tokens were decoded to."""
    return x[..., : x.shape[-1] * length // num_tokens]


def save_samples(x: Float[Tensor, "B *CS"], folder: str | Path, *, start: int = 0) -> list[Path]:
    """Write samples as files named by their index: PNG for images, .npy for anything else.

    Images are ``[B, 1 or 3, H, W]`` in [0, 1]; they are rounded to 8 bits, what lies outside is
    clipped.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    is_image = x.ndim == 4 and x.shape[1] in (1, 3)
    files = []
    for index, sample in enumerate(x.detach().cpu(), start):
        path = folder / f"{index:06d}.{'png' if is_image else 'npy'}"
        if is_image:
            write_png((sample.clamp(0, 1) * 255).round().to(torch.uint8).numpy(), path)
        else:
            np.save(path, sample.numpy(), allow_pickle=False)
        files.append(path)
    return files
