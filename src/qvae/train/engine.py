"""Device, precision and processes. The only file of training that knows torch.distributed."""

import contextlib
import functools
import gc
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qvae.errors import TrainingStopped, UsageError
from qvae.train.memory import keep_freed_memory

__all__ = ["Engine", "own_random_numbers", "resolve_device", "resolve_precision", "running_engine"]

T = TypeVar("T")


def resolve_device(device: str, *, local_rank: int = 0) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``mps`` into a device that is there.

    Raises:
        UsageError: an unknown name, or a device that this machine or this torch lacks.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        device = "mps" if device == "cpu" and torch.backends.mps.is_available() else device
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device={device!r}: must be auto, cpu, cuda or mps") from None
    is_there = (
        found.type == "cpu"
        or (found.type == "cuda" and torch.cuda.is_available())
        or (found.type == "mps" and torch.backends.mps.is_available())
    )
    if not is_there:
        raise UsageError(f"device={device!r}: this machine or this torch has none")
    if found.type == "cuda" and found.index is None:
        found = torch.device("cuda", local_rank)
    return found


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn ``auto`` into ``bf16`` where that is faster, else ``float32``."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type != "cpu":
        return "float32"
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    pays = any(getattr(torch.cpu, name, lambda: False)() for name in checks)
    return "bf16" if pays else "float32"


@contextlib.contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Seed torch's generators at will, and give the caller's state back.

    ``torch.manual_seed`` seeds the generators of all devices, so the one in use is kept as well.

    Example:
        >>> before = torch.get_rng_state()
        >>> with own_random_numbers(torch.device("cpu")):
        ...     _ = torch.manual_seed(0)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One process of a run: its device, its precision, and how it agrees with the others.

    Every method with a reduction in it is a collective: all processes call it, in one order.
    """

    rank: int
    world: int
    device: torch.device
    precision: str

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, and its convolutions to channels-last under bf16.

        All processes take the first one's parameters and buffers.
        """
        if self.precision == "bf16":
            # Torch's own annotations leave this overload out.
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.to(device=self.device)
        self.share([*model.parameters(), *model.buffers()])
        return model

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's values, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def place_input(self, x: Tensor) -> Tensor:
        """Give images the memory layout of the convolutions."""
        if self.precision == "bf16" and x.ndim == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def wrap(self, model: nn.Module) -> nn.Module:
        """Average gradients over the processes; buffers stay each process's own.

        Quantizers agree on their codebooks in ``after_step``; broadcasting the first process's
        buffers would throw the others' counts away.
        """
        if self.world == 1:
            return model
        ids = [self.device] if self.device.type == "cuda" else None
        known = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {name: False}
        return DistributedDataParallel(model, device_ids=ids, **options)

    def seed(self, number: int) -> None:
        """Seed the generator of the processor, and of this device.

        ``torch.manual_seed`` does the same, but where CUDA is not in use it files the call for
        later, with a stack trace: a millisecond and a little memory at every step.
        """
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)
        elif self.device.type == "mps":
            torch.mps.manual_seed(number)

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in bf16 where that is the run's precision; not within itself."""
        return self._autocast

    @functools.cached_property
    def _autocast(self) -> AbstractContextManager[None]:
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def no_sync(self, wrapped: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
        """Keep gradients local, but for the last micro-batch of a step."""
        if isinstance(wrapped, DistributedDataParallel) and not is_last:
            return wrapped.no_sync()
        return contextlib.nullcontext()

    def all_true(self, flag: bool) -> bool:
        """Return whether the flag is true on every process."""
        return not self.largest(int(not flag))

    def any_true(self, flag: bool) -> bool:
        """Return whether the flag is true on any process."""
        return bool(self.largest(int(flag)))

    def largest(self, value: int) -> int:
        """Return the largest of the processes' integers."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def total(self, values: dict[str, float]) -> dict[str, float]:
        """Sum each value over the processes, which must hold the same names."""
        if self.world == 1 or not values:
            return values
        names = sorted(values)
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        tensor = torch.tensor([values[n] for n in names], dtype=kind, device=self.device)
        dist.all_reduce(tensor)
        summed = dict(zip(names, tensor.tolist(), strict=True))
        return {name: summed[name] for name in values}

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Average each value over the processes, which must hold the same names."""
        if self.world == 1:
            return values
        return {name: value / self.world for name, value in self.total(values).items()}

    def barrier(self) -> None:
        """Wait for the other processes."""
        self.largest(0)

    def on_main(self, action: Callable[[], T]) -> T | None:
        """Run something on the first process only; if it fails there, all processes stop.

        Returns:
            What the action returned on the first process, None on the others.
        """
        result, failure = None, None
        if self.is_main:
            try:
                result = action()
            except BaseException as error:  # handed on below, after the others know
                failure = error
        failed = self.any_true(failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise TrainingStopped("the first process failed; its message says why")
        return result


def _repeatable(device: torch.device) -> AbstractContextManager[None]:
    """Have cuDNN give the same bits each time, and let float32 be float32.

    By itself it may sum gradients in any order, choose its algorithm by a race, and round what
    goes into a convolution to TF32.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    options: Any = {"enabled": True, "deterministic": True, "benchmark": False}
    found: AbstractContextManager[None] = torch.backends.cudnn.flags(**options, allow_tf32=False)
    return found


@contextlib.contextmanager
def running_engine(*, device: str, precision: str) -> Iterator[Engine]:
    """Start this process's engine; under torchrun, join the others and leave them at the end.

    Raises:
        UsageError: a device that is not there.
    """
    keep_freed_memory()
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    found = resolve_device(device, local_rank=int(os.environ.get("LOCAL_RANK", 0)))
    joins = world > 1 and not dist.is_initialized()
    kind = resolve_precision(precision, found)
    if joins:
        # Without it about one restart in five fails to connect its full mesh.
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
        if found.type == "cuda":
            torch.cuda.set_device(found)
        dist.init_process_group("nccl" if found.type == "cuda" else "gloo")
    try:
        with _repeatable(found):
            yield Engine(rank=rank, world=world, device=found, precision=kind)
    finally:
        if joins:
            # The gradient reducer has to go first: when it is the last to hold the group, its
            # destructor waits for gloo's threads under Python's lock, which one of them wants.
            gc.collect()
            dist.destroy_process_group()
