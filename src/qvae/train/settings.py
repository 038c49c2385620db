"""The knobs of training. The constructor's signature is the schema; there is no other."""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qvae.errors import UsageError

__all__ = ["TrainSettings", "changed_leaves", "changed_settings"]

_COUNTS = (
    "steps",
    "batch_size",
    "accumulate",
    "eval_every",
    "save_every",
    "keep",
    "log_every",
    "max_skipped",
)
_MAY_CHANGE = {*_COUNTS, "eval_samples", "device"} - {"batch_size", "accumulate"}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Say how long, how fast and how carefully to train.

    Gradients are those of the loss in nats a sample, so their size grows with the data's; that is
    why clipping is by default relative to the gradients seen so far, and not to a fixed number.

    Args:
        steps: optimizer steps in all; >= 1. A resumed run may ask for more.
        batch_size: samples in one optimizer step, over all processes and micro-batches; >= 1.
        accumulate: micro-batches that a step's batch is cut into; divides ``batch_size``.
        optimizer: ``adamw``, or ``muon`` for the hidden matrices and AdamW for the rest.
        lr: peak learning rate, > 0. Both optimizers take the same one.
        weight_decay: decoupled, >= 0; never on biases, norms, embeddings and codebooks.
        betas: AdamW's two decays, each in [0, 1).
        warmup_steps: steps of linear rise; None is a tenth of ``steps``, at most 200.
        decay: the shape of the fall after the hold: ``cosine``, ``linear`` or ``none``.
        hold: share of the steps after the warm-up that keeps the peak rate, in [0, 1].
        final_lr: where the fall ends, as a fraction of ``lr``, in [0, 1].
        clip_norm: largest norm of the gradient, nats a sample; None is no such limit.
        clip_factor: largest norm as a multiple of the running mean of norms, once 20 steps
            are seen; > 1, or None for no such limit.
        weight_ema: decay of the averaged weights that are evaluated and saved in ``model/``,
            in [0, 1); 0 is off. It is warmed up: ``min(weight_ema, (1 + n) / (10 + n))``.
        eval_every: steps between evaluations on the valid split; >= 1. The last step has one.
        eval_samples: valid samples to evaluate on, evenly spread; None is all of them.
        save_every: steps between checkpoints; >= 1. The last step has one.
        keep: newest checkpoints to keep; >= 1.
        log_every: steps between train rows of ``metrics.jsonl``; >= 1. A row is their mean.
        frozen: parts of the model, by name, that stay as ``init`` gave them, in eval mode; such as
            ``[encoder, bottleneck]``, for a better decoder of the same tokens.
        max_skipped: refused steps in a row after which training stops itself; >= 1.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``float32``; ``bf16`` = bf16 autocast with float32 weights and channels-last
            convolutions; ``auto`` = bf16 where the processor multiplies it faster.
        compile: whether the model goes through ``torch.compile``.
        seed: of order, noise and dropout; >= 0.

    Raises:
        UsageError: a value outside its range, by name.

    Example:
        >>> TrainSettings(steps=10, batch_size=4).effective_warmup
        1
    """

    steps: int = 10_000
    batch_size: int = 64
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int | None = None
    decay: Literal["cosine", "linear", "none"] = "cosine"
    hold: float = 0.0
    final_lr: float = 0.0
    clip_norm: float | None = None
    clip_factor: float | None = 4.0
    weight_ema: float = 0.0
    eval_every: int = 500
    eval_samples: int | None = 2048
    save_every: int = 500
    keep: int = 2
    log_every: int = 50
    frozen: Sequence[str] = ()
    max_skipped: int = 10
    device: str = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _COUNTS:
            _check_int(name, getattr(self, name), 1)
        _check_int("seed", self.seed, 0)
        if self.eval_samples is not None:
            _check_int("eval_samples", self.eval_samples, 1)
        if self.warmup_steps is not None:
            _check_int("warmup_steps", self.warmup_steps, 0)
        self._check_choices()
        self._check_numbers()
        names = self.frozen
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise UsageError(f"frozen={names!r}: must be a list of names")
        object.__setattr__(self, "frozen", tuple(names))  # a YAML file gives a list
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"accumulate={self.accumulate}: must divide batch_size={self.batch_size}"
            )
        if self.warmup_steps is not None and self.warmup_steps > self.steps:
            raise UsageError(
                f"warmup_steps={self.warmup_steps}: must be at most steps={self.steps}"
            )

    def _check_choices(self) -> None:
        _check_choice("optimizer", self.optimizer, ("adamw", "muon"))
        _check_choice("decay", self.decay, ("cosine", "linear", "none"))
        _check_choice("precision", self.precision, ("auto", "float32", "bf16"))
        _check_choice("compile", self.compile, (True, False))

    def _check_numbers(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))  # a YAML file gives a list
        if len(self.betas) != 2:
            raise UsageError(f"betas={self.betas}: must be two numbers")
        for beta in self.betas:
            _check_number("betas", beta, beta >= 0 and beta < 1, "each in [0, 1)")
        _check_number("lr", self.lr, self.lr > 0, "> 0")
        _check_number("weight_decay", self.weight_decay, self.weight_decay >= 0, ">= 0")
        _check_number("weight_ema", self.weight_ema, 0 <= self.weight_ema < 1, "in [0, 1)")
        _check_number("hold", self.hold, 0 <= self.hold <= 1, "in [0, 1]")
        _check_number("final_lr", self.final_lr, 0 <= self.final_lr <= 1, "in [0, 1]")
        if self.clip_norm is not None:
            _check_number("clip_norm", self.clip_norm, self.clip_norm > 0, "> 0, or null")
        if self.clip_factor is not None:
            _check_number("clip_factor", self.clip_factor, self.clip_factor > 1, "> 1, or null")

    @classmethod
    def from_options(cls, **options: Any) -> "TrainSettings":
        """Build from keywords, and say what an unknown one may have meant."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise UsageError(f"{name!r} is not a training setting; {hint}")
        return cls(**options)

    @property
    def effective_warmup(self) -> int:
        """Steps of linear rise."""
        return min(200, self.steps // 10) if self.warmup_steps is None else self.warmup_steps

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step; ``step`` counts from 0.

        Example:
            >>> TrainSettings(steps=4, warmup_steps=0, lr=1.0, decay="linear").lr_at(2)
            0.5
        """
        warmup = self.effective_warmup
        if step < warmup:
            return self.lr * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        if progress <= self.hold or self.decay == "none":
            return self.lr
        fall = min(1.0, (progress - self.hold) / (1.0 - self.hold))
        shape = 1 - fall if self.decay == "linear" else (1 + math.cos(math.pi * fall)) / 2
        return self.lr * (self.final_lr + (1 - self.final_lr) * shape)


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Name what differs between a saved run and this one and would change its course."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainSettings)}
    before = {**defaults, **old}  # an older release may not know a setting yet
    for name in ("betas", "frozen"):
        before[name] = tuple(before[name])
    return [
        f"{name} was {before[name]!r} and is now {new[name]!r}"
        for name in new
        if name not in _MAY_CHANGE and before[name] != new[name]
    ]


def changed_leaves(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the leaves of nested dicts that differ: dotted key -> what it was, what it is.

    Example:
        >>> changed_leaves({"model": {"beta": 1.0, "name": "vae"}}, {"model": {"beta": 4.0}})
        {'model.beta': (1.0, 4.0), 'model.name': ('vae', None)}
    """
    before, now = _leaves(old), _leaves(new)
    pairs = {key: (before.get(key), now.get(key)) for key in sorted({*before, *now})}
    return {key: (was, is_now) for key, (was, is_now) in pairs.items() if was != is_now}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    named: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        named |= _leaves(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return named


def _check_int(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name}={value!r}: must be a whole number >= {least}")


def _check_number(name: str, value: Any, is_right: bool, rule: str) -> None:
    if isinstance(value, bool) or not math.isfinite(value) or not is_right:
        raise UsageError(f"{name}={value!r}: must be {rule}")


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name}={value!r}: must be one of {', '.join(map(str, choices))}")
