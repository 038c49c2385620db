"""What can be trained on, made into one thing: the batch of a step."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from qvae.errors import DataError, UsageError
from qvae.train.engine import Engine
from qvae.train.order import noise_seed, step_indices
from qvae.train.settings import TrainSettings
from qvae.types import Batch

__all__ = [
    "Feed",
    "Split",
    "SplitFeed",
    "StreamFeed",
    "as_pair",
    "open_feed",
    "place",
    "select",
]


@runtime_checkable
class Split(Protocol):
    """Samples with random access; the same indices give the same batch, always."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> Batch:
        """Return the samples at int64 ``[B]`` positions."""
        ...


def as_pair(data: Any) -> tuple[Any, Split | None]:
    """Adapt data to something to train on and a split to evaluate on.

    Args:
        data: one of

            - a data module: an object with methods ``train()`` and ``valid()`` that give splits;
            - a tuple (train, valid): each a split, an array or a sequence as below, valid
              perhaps None;
            - a tensor or array ``[N, ...]``, or a list (any map-style sequence) of tensors: a
              fixed tenth, chosen by a shuffle that no seed changes, is the valid split;
            - any other iterable, of :class:`~qvae.types.Batch` or tensors: each item is one
              step's batch whatever its size, there is no evaluation, and a resumed run reads
              and drops the items of the steps it has done. It starts again when it ends.

            uint8 becomes float32 in [0, 1], other integers int64 tokens, floats float32. A list
            or tuple of one tensor is that tensor: a ``TensorDataset`` or a ``DataLoader`` gives it.

    Returns:
        A split or an iterable, and a split or None.

    Raises:
        UsageError: none of these.
        DataError: an empty split.
    """
    train, valid = _pair(data)
    if valid is not None and len(valid) == 0:
        valid = None
    if train is None or (isinstance(train, Split) and len(train) == 0):
        raise DataError("the train split is empty: needs at least one sample")
    return train, valid


def place(batch: Batch, engine: Engine) -> Batch:
    """Move a batch to the engine's device and memory layout."""
    batch = batch.to(engine.device)
    return replace(batch, x=engine.place_input(batch.x))


_TRIES, _QUICK = 3, 3e-4


class SplitFeed:
    """Read the samples that (seed, step) names; the next step's are read while this one runs.

    The first few batches are read in step. Where the best of them took less than 0.3 ms, as from
    an array in memory, handing the work to a thread and back costs more: then all are.
    """

    num_samples: int
    """Samples in an epoch."""

    def __init__(self, split: Split, *, settings: TrainSettings, engine: Engine) -> None:
        self._split = split
        self._settings = settings
        self._engine = engine
        self._ahead: tuple[int, Future[Batch]] | None = None
        self._tries, self._seconds = 0, math.inf
        # Reading a user's own sequence may draw from torch's generator, so it stays in step.
        may_read_ahead = not isinstance(split, _Sequence)
        self._pool = ThreadPoolExecutor(1, "qvae-read") if may_read_ahead else None
        self.num_samples = len(split)

    def batch(self, step: int) -> Batch:
        """Return this process's share of a step's batch."""
        if self._pool is None:
            self._engine.seed(noise_seed(self._settings.seed, "read", step, self._engine.rank))
            return self._read(step)
        ahead, self._ahead = self._ahead, None
        batch = ahead[1].result() if ahead and ahead[0] == step else self._timed_read(step)
        is_slow = self._tries >= _TRIES and self._seconds > _QUICK
        if is_slow and step + 1 < self._settings.steps:
            self._ahead = (step + 1, self._pool.submit(self._read, step + 1))
        return batch

    def ids(self, step: int) -> list[int]:
        """Return the indices of a step."""
        return [int(i) for i in self._indices(step)]

    def close(self) -> None:
        """Stop reading ahead."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _indices(self, step: int) -> np.ndarray:
        return step_indices(
            seed=self._settings.seed,
            step=step,
            batch_size=self._settings.batch_size,
            num_samples=self.num_samples,
        )

    def _timed_read(self, step: int) -> Batch:
        began = time.perf_counter()
        batch = self._read(step)
        self._tries += 1
        self._seconds = min(self._seconds, time.perf_counter() - began)
        return batch

    def _read(self, step: int) -> Batch:
        mine = self._indices(step)[self._engine.rank :: self._engine.world]
        if not getattr(self._split, "redraws", False):
            return self._split.batch(mine)
        key = noise_seed(self._settings.seed, "data", step, self._engine.rank)
        return self._split.batch(mine, draw=key)  # type: ignore[call-arg]


class StreamFeed:
    """Read an iterable in its order, from the start again when it ends."""

    num_samples = None
    """Nobody knows."""

    def __init__(self, stream: Iterable[Any], *, engine: Engine, start: int) -> None:
        self._stream = stream
        self._engine = engine
        self._items: Iterator[Any] = iter(stream)
        self._next, self._last_ids = 0, list[int]()
        for _ in range(start):
            self._advance()

    def batch(self, step: int) -> Batch:
        """Return this process's share of the next item."""
        assert step == self._next, "a stream is read in order"
        item = self._advance()
        batch = item if isinstance(item, Batch) else Batch(x=_to_tensor(item))
        self._last_ids = [] if batch.ids is None else batch.ids.tolist()
        share = slice(self._engine.rank, None, self._engine.world)
        return select(batch, share)

    def ids(self, step: int) -> list[int]:
        """Return the ids that the step's batch carried, if it is the newest and carried any."""
        return self._last_ids if step == self._next - 1 else []

    def close(self) -> None:
        """Do nothing."""

    def _advance(self) -> Any:
        try:
            item = next(self._items)
        except StopIteration:
            self._items = iter(self._stream)
            item = next(self._items, None)
            if item is None:
                raise DataError(
                    f"the data ended after {self._next} batches and cannot be read again: give "
                    "an iterable that starts anew, or fewer steps"
                ) from None
        self._next += 1
        return item


Feed = SplitFeed | StreamFeed
"""The batch of every step."""


def open_feed(train: Any, *, settings: TrainSettings, engine: Engine, start: int) -> Feed:
    """Serve the batches of steps ``start`` and later.

    Args:
        train: a split or an iterable, from :func:`as_pair`.
        settings: ``seed``, ``batch_size`` and ``steps`` matter.
        engine: whose share of each batch to take.
        start: the first step that will be asked for.
    """
    if isinstance(train, Split):
        return SplitFeed(train, settings=settings, engine=engine)
    return StreamFeed(train, engine=engine, start=start)


def select(batch: Batch, part: slice) -> Batch:
    """Take a slice of the samples."""
    return Batch(
        x=batch.x[part],
        cond=None if batch.cond is None else batch.cond[part],
        ids=None if batch.ids is None else batch.ids[part],
        lengths=None if batch.lengths is None else batch.lengths[part],
    )


class _Array:
    """Rows of a tensor or array as a split."""

    def __init__(self, rows: Any, indices: np.ndarray | None = None) -> None:
        self._rows = rows
        self._indices = np.arange(len(rows)) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, indices: np.ndarray) -> Batch:
        chosen = self._indices[indices]
        return Batch(x=self._take(chosen), ids=torch.from_numpy(chosen))

    def _take(self, chosen: np.ndarray) -> Tensor:
        rows = self._rows
        if isinstance(rows, Tensor):
            return _to_tensor(rows.index_select(0, torch.from_numpy(chosen).to(rows.device)))
        return _to_tensor(rows[chosen])


class _Sequence(_Array):
    """Items of a map-style sequence as a split."""

    def _take(self, chosen: np.ndarray) -> Tensor:
        return torch.stack([_to_tensor(self._rows[int(i)]) for i in chosen])


def _pair(data: Any) -> tuple[Any, Split | None]:
    methods = [getattr(data, name, None) for name in ("train", "valid")]
    if all(callable(method) for method in methods):
        return data.train(), data.valid()
    if isinstance(data, tuple):
        if len(data) != 2:
            raise UsageError(f"data: a tuple of {len(data)}; needs the pair (train, valid)")
        train, valid = (_as_split(part) for part in data)
        if valid is not None and not isinstance(valid, Split):
            raise UsageError("data: the valid split must have random access, not be a stream")
        return train, valid
    whole = _as_split(data)
    if not isinstance(whole, _Array):
        return whole, None
    shuffled = np.argsort(np.random.Philox(key=0).random_raw(len(whole)), kind="stable")
    num_valid = max(1, len(whole) // 10) if len(whole) > 1 else 0
    build: Callable[..., _Array] = type(whole)
    rows = whole._rows
    return build(rows, np.sort(shuffled[num_valid:])), build(rows, np.sort(shuffled[:num_valid]))


def _as_split(data: Any) -> Any:
    if data is None or isinstance(data, Split):
        return data
    if isinstance(data, Tensor | np.ndarray):
        return _Array(data)
    if isinstance(data, Sequence) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return _Sequence(data)
    if isinstance(data, Iterable):
        return data
    raise UsageError(
        f"data: a {type(data).__name__}; needs a data module, a pair of splits, an array, a "
        "sequence of tensors or an iterable of batches"
    )


def _to_tensor(values: Any) -> Tensor:
    if isinstance(values, list | tuple) and len(values) == 1 and isinstance(values[0], Tensor):
        values = values[0]  # what a TensorDataset of one tensor, and a DataLoader of it, give
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(
            f"data: an item is a {type(values).__name__} and no array; give tensors, or where "
            "there is more to tell an iterable of qvae.types.Batch(x=..., cond=...)"
        ) from None
    if tensor.dtype == torch.uint8:
        return tensor.to(torch.float32).div_(255)
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor.to(torch.int64)
