"""Train a model in a run folder: the one function that users call."""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvae import store
from qvae.errors import TrainingStopped, UsageError
from qvae.train.average import WeightAverage
from qvae.train.checkpoint import Checkpoint, latest_checkpoint, open_checkpoint, saved_steps
from qvae.train.engine import Engine, own_random_numbers, running_engine
from qvae.train.folder import fill_folder, open_folder
from qvae.train.frozen import find_parts, frozen
from qvae.train.interrupt import StopFlag
from qvae.train.log import describe_machine, open_bar
from qvae.train.loop import Loop
from qvae.train.optim import build_optimizers
from qvae.train.settings import TrainSettings, changed_leaves, changed_settings
from qvae.train.sources import Feed, as_pair, open_feed
from qvae.train.state import load_model_state
from qvae.train.step import Stepper
from qvae.train.values import check_values, who_needs_unit

__all__ = ["TrainResult", "fit"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to."""

    run: Path
    """The run folder."""
    step: int
    """Optimizer steps done."""
    metrics: dict[str, Any]
    """The last row of ``metrics.jsonl``: the evaluation, if there is a valid split."""


def fit(
    model: nn.Module,
    data: Any,
    *,
    run: str | Path,
    resume: bool = False,
    init: str | Path | None = None,
    recipe: Mapping[str, Any] | None = None,
    subject: Mapping[str, Any] | None = None,
    export: Callable[[nn.Module, Path], None] | None = None,
    progress: bool | str = True,
    tell: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> TrainResult:
    """Train a model, and leave it in eval mode with the weights that were saved.

    Killed at any moment and called again with ``resume=True``, it ends with the same bits as if
    nothing had happened. SIGINT and SIGTERM end it after the current step, with a checkpoint.

    Args:
        model: a module with ``forward(Batch) -> Loss``. ``after_step()``, its own or its
            children's, is called after each step and ``discard_step()`` after a refused one.
        data: a data module, a pair of splits, an array, a sequence or an iterable; see
            :func:`qvae.train.sources.as_pair`.
        run: folder to write to; made if missing. An error before anything was logged or saved
            leaves it as it was.
        resume: go on from the newest whole checkpoint; from the start if there is none.
        init: a model folder (or a run folder) to take the first weights from.
        recipe: written to ``recipe.yaml``.
        subject: JSON values that say what is trained, beyond the shapes of its weights. They are
            kept in checkpoints, and a resume with others is refused.
        export: writes ``model/`` at the end, given the model with its averaged weights and the
            path; None writes the ``state_dict`` as safetensors.
        progress: show a bar on a terminal, a line each half minute elsewhere; ``force`` draws
            the bar anywhere, False shows nothing.
        tell: called with a sentence once the folder is held and training begins.
        **settings: the arguments of :class:`~qvae.train.TrainSettings`.

    Raises:
        UsageError: a wrong setting, or a run folder in use or already trained in.
        DataError: data that is empty or ends too early; an array that is constant, not finite, or
            outside the [0, 1] that the model declares. Nothing is written then.
        FormatError: checkpoints or initial weights that are damaged or of another model.
        TrainingStopped: the loss stayed non-finite, memory ran out, or a checkpoint could not be
            written.
        Interrupted: a signal came; a checkpoint is written.

    Example:
        >>> fit(model, images, run="runs/mine", steps=1000)  # doctest: +SKIP
    """
    options = TrainSettings.from_options(**settings)
    train, valid = as_pair(data)
    parts = find_parts(model, options.frozen)
    check_values(data, unit_for=who_needs_unit(model))
    run = Path(run)
    with ExitStack() as stack:
        engine = stack.enter_context(
            running_engine(device=options.device, precision=options.precision)
        )
        _check_processes(options, engine)
        stop = stack.enter_context(StopFlag())
        engine.on_main(lambda: stack.enter_context(open_folder(run, resume=resume)))
        stack.enter_context(own_random_numbers(engine.device))
        checkpoint = _find_checkpoint(run / "state", engine)
        start = 0 if checkpoint is None else checkpoint.step
        feed = open_feed(train, settings=options, engine=engine, start=start)
        stack.callback(feed.close)
        if checkpoint is not None:
            _check_same_run(checkpoint, options, feed, engine, subject)
        elif init is not None:
            _load_weights(model, Path(init))
        machine = describe_machine(engine, seed=options.seed)
        engine.on_main(lambda: fill_folder(run, step=start, recipe=recipe, machine=machine))
        if engine.is_main:
            _announce(run, tell, starts_over=resume and checkpoint is None)
        model.train()
        stack.enter_context(frozen(parts))
        stepper = _build_stepper(model, engine, options)
        stack.callback(stepper.close)
        loop = Loop(
            stepper, feed=feed, valid=valid, run=run, stop=stop, start=start, subject=subject
        )
        if checkpoint is not None:
            loop.restore(checkpoint)
        shown = progress if engine.is_main else False
        with open_bar(shown, steps=options.steps, start=start) as bar, _explain_memory(options):
            loop.run(bar)
        stepper.average.swap()
        model.eval()
        write = export or _export_plain
        engine.on_main(lambda: write(model, run / "model"))
        return TrainResult(run=run, step=loop.step, metrics=loop.last_row)


def _check_processes(settings: TrainSettings, engine: Engine) -> None:
    parts = settings.accumulate * engine.world
    if settings.batch_size % parts:
        raise UsageError(
            f"batch_size={settings.batch_size}: must be a multiple of accumulate="
            f"{settings.accumulate} times {engine.world} processes"
        )
    has_compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))
    if settings.compile and engine.device.type == "cpu" and not has_compiler:
        raise UsageError("compile=True: needs a C++ compiler, and this machine has none")


def _announce(run: Path, tell: Callable[[str], None], *, starts_over: bool) -> None:
    if starts_over:
        tell(f"{run}: no checkpoint to go on from, so training starts at the beginning")
    tell(f"run folder {run}")


def _find_checkpoint(state: Path, engine: Engine) -> Checkpoint | None:
    found = engine.on_main(lambda: latest_checkpoint(state))
    step = engine.largest(-1 if found is None else found.step)
    if step < 0 or engine.is_main:
        return found
    return open_checkpoint(dict(saved_steps(state))[step])


def _check_same_run(
    checkpoint: Checkpoint,
    settings: TrainSettings,
    feed: Feed,
    engine: Engine,
    subject: Mapping[str, Any] | None,
) -> None:
    """Refuse to go on with other settings or with something else; say what makes it inexact."""
    facts = checkpoint.facts
    changed = changed_settings(facts["settings"], dataclasses.asdict(settings))
    if subject is not None and facts.get("subject") is not None:  # an older release kept none
        differing = changed_leaves(facts["subject"], subject)
        changed += [
            f"{key} was {was!r} and is now {now!r}" for key, (was, now) in differing.items()
        ]
    if facts["num_samples"] != feed.num_samples:
        changed.append(f"num_samples was {facts['num_samples']} and is now {feed.num_samples}")
    if changed:
        raise UsageError(f"cannot resume {checkpoint.path}: {'; '.join(changed)}")
    if settings.steps < checkpoint.step:
        raise UsageError(f"steps={settings.steps}: {checkpoint.path} is further already")
    machine = describe_machine(engine, seed=settings.seed)
    for name in ("torch", "cpu_capability", "num_threads", "device", "precision", "num_processes"):
        before, now = facts["machine"][name], machine[name]
        if before != now:
            logger.warning("not bit-exact from here on: %s was %r, is %r", name, before, now)


def _load_weights(model: nn.Module, init: Path) -> None:
    folder = init / "model" if (init / "model").is_dir() else init
    tensors, _ = store.load_folder(folder)
    # A state_dict names tied weights once for each name; the model holds them once.
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    tied = set(model.state_dict()) - set(own)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in tied}
    load_model_state(model, tensors, source=folder)


def _build_stepper(model: nn.Module, engine: Engine, settings: TrainSettings) -> Stepper:
    engine.place(model)
    optimizers = build_optimizers(model, settings, device=engine.device, precision=engine.precision)
    return Stepper(
        model,
        engine=engine,
        settings=settings,
        optimizers=optimizers,
        average=WeightAverage(model, decay=settings.weight_ema),
    )


@contextlib.contextmanager
def _explain_memory(settings: TrainSettings) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = (MemoryError, torch.OutOfMemoryError)
        if not isinstance(error, known) and "can't allocate memory" not in str(error):
            raise
        raise TrainingStopped(
            f"out of memory with batch_size={settings.batch_size} in {settings.accumulate} "
            "parts: raise accumulate or lower batch_size; checkpoints are untouched"
        ) from error


def _export_plain(model: nn.Module, path: Path) -> None:
    store.save_folder(path, model.state_dict(), {"kind": "custom"})
