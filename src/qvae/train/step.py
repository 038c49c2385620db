"""One optimizer step: everything is computed and checked before anything is committed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qvae.train.average import WeightAverage
from qvae.train.engine import Engine
from qvae.train.optim import Optimizers
from qvae.train.order import noise_seed
from qvae.train.settings import TrainSettings
from qvae.types import Batch, Loss

__all__ = ["ClipState", "StepResult", "Stepper", "call_hook", "loss_values", "total_norm"]

_CLIP_WARMUP = 20
_CLIP_DECAY = 0.98


@dataclass
class ClipState:
    """Running mean of the gradient's norm, to tell an outlier from a large gradient."""

    total: float = 0.0
    weight: float = 0.0
    count: int = 0

    def limit(self, *, clip_norm: float | None, clip_factor: float | None) -> float:
        """Return the largest norm allowed now; infinity if there is no limit."""
        limit = math.inf if clip_norm is None else clip_norm
        if clip_factor is not None and self.count >= _CLIP_WARMUP:
            limit = min(limit, clip_factor * self.total / self.weight)
        return limit

    def update(self, norm: float) -> None:
        """Take in the norm of an accepted step, after clipping."""
        self.total = _CLIP_DECAY * self.total + (1 - _CLIP_DECAY) * norm
        self.weight = _CLIP_DECAY * self.weight + (1 - _CLIP_DECAY)
        self.count += 1


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did."""

    values: dict[str, float]
    """Means over the step's batch: loss, nll, rate, penalty, the model's metrics, grad_norm."""
    is_refused: bool
    """Whether something was not finite, so that nothing was committed."""


def loss_values(loss: Loss) -> dict[str, float]:
    """Read a loss as plain numbers, with one transfer from the device."""
    device = loss.total.device
    tensors = {"loss": loss.total.detach()}
    for name in ("nll", "rate", "penalty"):
        tensors[name] = getattr(loss, name).detach().float().mean()
    tensors |= {n: v for n, v in loss.metrics.items() if n not in tensors}
    if device.type == "cpu":  # nothing to gather: each number is where it is read
        return {name: float(value) for name, value in tensors.items()}
    kind = torch.float32 if device.type == "mps" else torch.float64
    row = torch.stack([torch.as_tensor(t).detach().to(device, kind) for t in tensors.values()])
    return dict(zip(tensors, row.tolist(), strict=True))


def total_norm(gradients: list[Tensor]) -> float:
    """Return the norm of all gradients, which are on one device, as if they were one vector."""
    if not gradients:
        return 0.0
    norms = torch._foreach_norm(gradients)
    return float(torch.linalg.vector_norm(torch.stack(norms)))


class Stepper:
    """Take optimizer steps on a model.

    The order of a step: forward and backward of every micro-batch, each with its own noise seed;
    check the loss and the gradient on all processes; only then optimizer, ``model.after_step()``
    and the averaged weights. A step that is not finite anywhere is refused everywhere: no
    parameter, optimizer state, codebook or running statistic changes.

    Args:
        model: the module; its or its children's ``after_step`` and ``discard_step`` are called.
        engine: device, precision and processes.
        settings: of the run.
        optimizers: over the model's parameters.
        average: of the model's parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        engine: Engine,
        settings: TrainSettings,
        optimizers: Optimizers,
        average: WeightAverage,
    ) -> None:
        self.model = model
        self.engine = engine
        self.settings = settings
        self.optimizers = optimizers
        self.average = average
        self.clip = ClipState()
        self._parameters = list(model.parameters())
        self.num_updates = 0
        forward: Any = torch.compile(model, dynamic=False) if settings.compile else model
        self._wrapped = engine.wrap(forward)
        # A module with after_step keeps its promise that forward only counts. Others, such as
        # batch norm, change their buffers in forward: these are put back when a step is refused,
        # and are the first process's when it is not.
        self._volatile = [
            buffer
            for module in model.modules()
            if not hasattr(module, "after_step")
            for buffer in module.buffers(recurse=False)
        ]

    def close(self) -> None:
        """Let go of what holds the process group, which must not end with it."""
        self._wrapped = self.model

    def run(self, step: int, micro_batches: Sequence[Batch]) -> StepResult:
        """Take a step; ``step`` counts from 0 and keys the noise."""
        before = [buffer.clone() for buffer in self._volatile]
        self.optimizers.zero_grad()
        values = self.engine.mean(self._backward(step, micro_batches))
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = total_norm(gradients)
        values["grad_norm"] = norm
        if not self.engine.all_true(math.isfinite(values["loss"]) and math.isfinite(norm)):
            for buffer, value in zip(self._volatile, before, strict=True):
                buffer.copy_(value)
            call_hook(self.model, "discard_step")
            self.optimizers.zero_grad()
            return StepResult(values=values, is_refused=True)
        self._commit(step, gradients, norm)
        return StepResult(values=values, is_refused=False)

    def _backward(self, step: int, micro_batches: Sequence[Batch]) -> dict[str, float]:
        engine, sums = self.engine, dict[str, float]()
        num_samples = sum(len(batch) for batch in micro_batches)
        for micro, batch in enumerate(micro_batches):
            share = len(batch) / num_samples
            is_last = micro == len(micro_batches) - 1
            engine.seed(noise_seed(self.settings.seed, "step", step, micro, engine.rank))
            with engine.no_sync(self._wrapped, is_last=is_last):
                with engine.autocast():
                    loss = self._wrapped(replace(batch, step=torch.tensor(step)))
                (loss.total.float() * share).backward()
            for name, value in loss_values(loss).items():
                sums[name] = sums.get(name, 0.0) + share * value
        return sums

    def _commit(self, step: int, gradients: list[Tensor], norm: float) -> None:
        settings = self.settings
        limit = self.clip.limit(clip_norm=settings.clip_norm, clip_factor=settings.clip_factor)
        if norm > limit:
            torch._foreach_mul_(gradients, limit / norm)
        self.optimizers.step(settings.lr_at(step))
        self.engine.seed(noise_seed(settings.seed, "commit", step))  # the same on every process
        with torch.no_grad():
            call_hook(self.model, "after_step")
        self.engine.share(self._volatile)
        self.num_updates += 1
        self.average.update(self.num_updates)
        self.clip.update(min(norm, limit))


def call_hook(module: nn.Module, name: str) -> None:
    """Call a module's method, or its children's if it has none; not where it does not train."""
    if not module.training:
        return
    method: Callable[[], None] | None = getattr(module, name, None)
    if method is not None:
        method()
        return
    for child in module.children():
        call_hook(child, name)
