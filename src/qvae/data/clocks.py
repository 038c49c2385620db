"""Clocks with a given time, rendered on the fly: the toy example of the notes, as data."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qvae.data.base import ArraySplit, DataModule, Split
from qvae.data.clock_renderer import render_clocks
from qvae.data.clock_style import ClockStyle, sample_styles
from qvae.data.clock_times import TRAIN_TIMES
from qvae.data.images import read_pixels, write_image
from qvae.types import Condition, DataSpec

__all__ = ["TIME", "Clocks", "clock_hours", "clocks_of"]

TIME = Condition(name="time", kind="cyclic", period=12.0, unit="h")
"""The condition: hours after twelve, so the period is a turn of the hour hand, a unit of the
minute hand."""

_VALID_STYLES, _TEST_STYLES = 1_000_003, 2_000_003
TEST_STYLES_PER_TIME = 4


def clock_hours(minutes: np.ndarray, *, mirror: bool = False) -> Float[Tensor, "N 1"]:
    """Return the condition rows of times in minutes after twelve.

    ``mirror`` gives the time that a mirror would show: 12:00 - t.

    Example:
        >>> half_past_four = np.array([270.0])
        >>> clock_hours(half_past_four).item(), clock_hours(half_past_four, mirror=True).item()
        (4.5, 7.5)
    """
    minutes = np.asarray(minutes, dtype=np.float64)
    if mirror:
        minutes = (720 - minutes) % 720
    return torch.from_numpy((minutes / 60).astype(np.float32))[:, None]


def clocks_of(split: str, num: int, *, seed: int = 0) -> tuple[np.ndarray, ClockStyle]:
    """Return the times ``[num]`` (minutes) and the styles of a split, without drawing them.

    Args:
        split: train, valid or test.
        num: clocks in the split.
        seed: of the training clocks.

    Example:
        >>> minutes, styles = clocks_of("test", 2880)
        >>> int(minutes[721]), len(styles)
        (1, 2880)
    """
    if split == "test":
        return np.arange(num) % 720, sample_styles(num, seed=_TEST_STYLES)
    seed = _VALID_STYLES if split == "valid" else seed
    minutes = np.random.default_rng([seed, 17]).choice(TRAIN_TIMES, num)
    return minutes, sample_styles(num, seed=seed)


class Clocks(DataModule):
    """Analog clocks, 64x64 RGB, in random styles, with their time as condition.

    Training and validation show the 534 whole-minute times of ``TRAIN_TIMES`` only. The test split
    shows every one of the 720 times in four fresh styles, style after style.

    Args:
        size: number of training clocks, each a style of its own, >= 1.
        valid_size: number of validation clocks, >= 1.
        seed: of the training styles and times. Validation and test are always the same.
        mirror: label each clock with the time its mirror image shows. A model that learned from
            its data must then draw mirrored clocks; one that cheats will not.

    Raises:
        ValueError: if a size is below 1.

    Example:
        >>> batch = Clocks(size=8).train().batch(np.arange(2))
        >>> batch.x.shape, batch.cond.shape
        (torch.Size([2, 3, 64, 64]), torch.Size([2, 1]))
    """

    spec = DataSpec(shape=(3, 64, 64), conditions=(TIME,), levels=256)

    def __init__(
        self, *, size: int = 24_000, valid_size: int = 720, seed: int = 0, mirror: bool = False
    ) -> None:
        if size < 1 or valid_size < 1:
            raise ValueError(f"size={size}, valid_size={valid_size}: must be at least 1")
        self.size, self.valid_size, self.seed, self.mirror = size, valid_size, seed, mirror

    def train(self) -> Split:
        """Return ``size`` clocks at times of ``TRAIN_TIMES``."""
        return self._train

    def valid(self) -> Split:
        """Return fresh styles at times of ``TRAIN_TIMES``: what choices are made on."""
        return self._valid

    def test(self) -> Split:
        """Return the 720 times in four fresh styles each."""
        return self._test

    @cached_property
    def _train(self) -> Split:
        return self._split("train", self.size)

    @cached_property
    def _valid(self) -> Split:
        return self._split("valid", self.valid_size)

    @cached_property
    def _test(self) -> Split:
        return self._split("test", 720 * TEST_STYLES_PER_TIME)

    def _split(self, name: str, num: int) -> ArraySplit:
        minutes, styles = clocks_of(name, num, seed=self.seed)
        pictures = render_clocks(minutes, styles)
        return ArraySplit(
            np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)),
            cond=clock_hours(minutes, mirror=self.mirror).numpy(),
        )

    def read(self, path: str | Path) -> Float[Tensor, "3 64 64"]:
        """Read a picture of a clock, cropped and scaled to 64x64.

        Raises:
            DataError: the file is no image that can be read.
        """
        pixels = read_pixels(path, self.spec.shape)
        return torch.from_numpy(pixels.astype(np.float32) / 255)

    def write(self, x: Float[Tensor, "3 64 64"], path: str | Path) -> None:
        """Write a picture as PNG."""
        write_image(x, path)
