"""The training loop. It knows no model: anything with ``forward(Batch) -> Loss`` will do.

A run folder holds ``recipe.yaml``, ``env.json``, ``metrics.jsonl``, ``state/step_N/`` and, at the
end, ``model/``. Order and noise are functions of (seed, step), so a run that is killed anywhere
and resumed gives the same bits: on one machine, with equal threads and processes.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qvae.errors import Interrupted, TrainingStopped
from qvae.train.checkpoint import Checkpoint, prune, save_checkpoint, saved_steps
from qvae.train.engine import Engine
from qvae.train.evaluate import evaluate
from qvae.train.interrupt import StopFlag
from qvae.train.log import MetricsLog, Window, describe_machine
from qvae.train.settings import TrainSettings
from qvae.train.sources import Feed, Split, place, select
from qvae.train.state import load_model_state, model_state
from qvae.train.step import ClipState, Stepper, StepResult
from qvae.types import Batch

__all__ = ["Loop"]

logger = logging.getLogger(__name__)


class Loop:
    """Take a model from a step to the last one, with evaluations, checkpoints and a log.

    Args:
        stepper: takes the optimizer steps.
        feed: gives the batch of a step.
        valid: to evaluate on; None is no evaluation.
        run: the run folder.
        stop: asked at every step boundary and between evaluation batches.
        start: steps done already.
        subject: what is trained, for the checkpoints.
    """

    def __init__(
        self,
        stepper: Stepper,
        *,
        feed: Feed,
        valid: Split | None,
        run: Path,
        stop: StopFlag,
        start: int,
        subject: Mapping[str, Any] | None = None,
    ) -> None:
        self.subject = subject
        self.stepper = stepper
        self.feed = feed
        self.valid = valid
        self.run_folder = run
        self.stop = stop
        self.step = start
        self.last_row: dict[str, Any] = {}
        self._num_skipped = 0
        self._window = Window()
        self._seconds_before, self._began = 0.0, time.perf_counter()
        self._logged_at, self._samples = self._began, 0
        self._log = MetricsLog(run / "metrics.jsonl") if self.engine.is_main else None

    @property
    def engine(self) -> Engine:
        """Device, precision and processes."""
        return self.stepper.engine

    @property
    def settings(self) -> TrainSettings:
        """Of the run."""
        return self.stepper.settings

    def run(self, bar: "tqdm[Any]") -> None:
        """Train to the last step.

        Raises:
            Interrupted: a signal came; the state is saved.
            TrainingStopped: too many steps in a row were not finite; the last good one is saved.
            CheckpointError: the disk refused a checkpoint.
        """
        settings = self.settings
        if self.step:
            # A checkpoint of step N is written before N is evaluated, so this comes again.
            self._evaluate_if_due()
        while self.step < settings.steps:
            self._take_step()
            self._show(bar)
            is_last = self.step == settings.steps
            self._stop_if_told()
            if self.step % settings.save_every == 0 or is_last:
                self.save()
            self._evaluate_if_due()

    def _take_step(self) -> None:
        batch = self.feed.batch(self.step)
        result = self.stepper.run(self.step, self._micro_batches(batch))
        self.step += 1
        self._samples += len(batch) * self.engine.world
        if result.is_refused:
            self._num_skipped += 1
            self._note_refusal(result)
            if self._num_skipped >= self.settings.max_skipped:
                self._give_up()
            return
        self._num_skipped = 0
        self._window.add(result.values)
        if self.step % self.settings.log_every == 0 or self.step == self.settings.steps:
            self._write_train_row()

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        count = self.settings.accumulate
        if len(batch) < count:  # an iterable may give any size
            count = len(batch)
        if count == 1:
            return [place(batch, self.engine)]
        bounds = [i * len(batch) // count for i in range(count + 1)]
        parts = [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
        return [place(select(batch, part), self.engine) for part in parts]

    def _evaluate_if_due(self) -> None:
        is_due = self.step % self.settings.eval_every == 0 or self.step == self.settings.steps
        if self.valid is None or not is_due:
            return
        began = time.perf_counter()
        with self.stepper.average.applied():
            values = evaluate(
                self.stepper.model,
                self.valid,
                engine=self.engine,
                settings=self.settings,
                should_stop=lambda: self._signal() != 0,
            )
        self._logged_at += time.perf_counter() - began
        if values is None:
            self._stop_if_told()
            return
        self._append({"step": self.step, "split": "valid", **values, "seconds": self._seconds()})

    def _write_train_row(self) -> None:
        now = time.perf_counter()
        rate = self._samples / max(now - self._logged_at, 1e-9)
        self._logged_at, self._samples = now, 0
        means = self._window.take()
        norm = means.pop("grad_norm")
        row = {"step": self.step, "split": "train", **means}
        row |= {"lr": self.settings.lr_at(self.step - 1), "grad_norm": norm}
        self._append(row | {"seconds": self._seconds(), "samples_per_second": rate})

    def _append(self, row: dict[str, Any]) -> None:
        self.last_row = row
        if self._log is not None:
            self._log.append(row)

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._began

    def _show(self, bar: "tqdm[Any]") -> None:
        if bar.disable:
            return
        shown, row = ("loss", "nll", "rate"), self.last_row
        words = [f"{n} {row[n]:.4g}" for n in shown if isinstance(row.get(n), float)]
        bar.set_postfix_str(" ".join(words), refresh=False)
        bar.update(1)

    def _signal(self) -> int:
        return self.engine.largest(self.stop.number)

    def _stop_if_told(self) -> None:
        number = self._signal()
        if number:
            self.save()
            raise Interrupted(number)

    def _note_refusal(self, result: StepResult) -> None:
        ids = self.feed.ids(self.step - 1)
        loss, norm = result.values["loss"], result.values["grad_norm"]
        logger.warning(
            "step %d refused: loss %g, gradient norm %g; samples %s", self.step, loss, norm, ids
        )
        row = {"step": self.step, "split": "train", "is_refused": True, "loss": loss}
        self._append(row | {"grad_norm": norm, "ids": ids, "seconds": self._seconds()})

    def _give_up(self) -> None:
        ids = self.feed.ids(self.step - 1)
        refused, good = self._num_skipped, self.step - self._num_skipped
        newest = max((step for step, _ in saved_steps(self.run_folder / "state")), default=0)
        if good > newest:
            self.step, self._num_skipped = good, 0
            self.save()
        kept = f"the state after step {good} is saved" if good else "no step was good"
        raise TrainingStopped(
            f"loss or gradient was not finite in {refused} steps in a row, {good + 1} to "
            f"{good + refused} (samples of the last: {ids[:16]}); {kept}; a lower lr or "
            "precision=float32 may help"
        )

    def save(self) -> None:
        """Write a checkpoint and remove the oldest ones; a collective."""
        self.engine.on_main(self._save_on_main)

    def _save_on_main(self) -> None:
        assert self._log is not None
        self._log.sync()
        stepper, state = self.stepper, self.run_folder / "state"
        parts = {
            "model": model_state(stepper.model),
            "optimizer": stepper.optimizers.state(),
            "average": stepper.average.state(),
        }
        save_checkpoint(state, step=self.step, parts=parts, facts=self._facts())
        prune(state, keep=self.settings.keep)

    def _facts(self) -> dict[str, Any]:
        stepper, clip = self.stepper, self.stepper.clip
        return {
            "settings": dataclasses.asdict(self.settings),
            "num_samples": self.feed.num_samples,
            "subject": self.subject,
            "machine": describe_machine(self.engine, seed=self.settings.seed),
            "num_updates": stepper.num_updates,
            "num_skipped": self._num_skipped,
            "clip": dataclasses.asdict(clip),
            # Hexadecimal, because a metric may be infinite and JSON has no word for it.
            "window_sums": {name: value.hex() for name, value in self._window.sums.items()},
            "window_counts": self._window.counts,
            "seconds": self._seconds(),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint.

        Raises:
            FormatError: it is of another model.
        """
        facts, stepper = checkpoint.facts, self.stepper
        load_model_state(stepper.model, checkpoint.tensors("model"), source=checkpoint.path)
        stepper.optimizers.load_state(checkpoint.tensors("optimizer"))
        stepper.average.load_state(checkpoint.tensors("average"))
        stepper.num_updates = facts["num_updates"]
        stepper.clip = ClipState(**facts["clip"])
        self._num_skipped = facts["num_skipped"]
        self._window.counts = dict(facts["window_counts"])
        self._window.sums = {n: float.fromhex(v) for n, v in facts["window_sums"].items()}
        self._seconds_before = facts["seconds"]
