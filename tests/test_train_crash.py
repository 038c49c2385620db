"""Killed, refused or full at any call of the system, a checkpoint is old or new, never half."""

import errno
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest

from qvae.errors import TrainingStopped
from qvae.train.checkpoint import (
    CheckpointError,
    clear_leftovers,
    open_checkpoint,
    save_checkpoint,
    saved_steps,
)
from train_toy import fork, forked, loads, parts, save, wait

CALLS = ("open", "write", "fsync", "mkdir", "rename", "unlink", "rmdir")


@pytest.mark.parametrize("how", ["half of it", "after it"])
def test_a_crash_at_any_call_of_the_system_leaves_the_old_or_the_new(tmp_path, monkeypatch, how):
    """With three checkpoints there, so that pruning runs as well."""

    def run(state: Path, dies_at: int) -> int:
        count = 0

        def instrument(name):
            real = getattr(os, name)

            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count == dies_at:
                    try:
                        if how == "after it":
                            real(*args, **kwargs)
                        elif name == "write":
                            real(args[0], args[1][: len(args[1]) // 2])
                    finally:
                        os._exit(7)
                return real(*args, **kwargs)

            monkeypatch.setattr(os, name, call)

        for name in CALLS:
            instrument(name)
        save(state, 12)
        return count

    outcomes = []
    for step in (9, 10, 11):
        save_checkpoint(tmp_path / "0", step=step, parts=parts(step), facts={"step": step})
    for dies_at in range(1, 200):
        state = tmp_path / str(dies_at)
        shutil.copytree(tmp_path / "0", state)
        code = forked(lambda state=state, dies_at=dies_at: run(state, dies_at))
        outcomes.append((code, loads(state)))
        for _, path in saved_steps(state):
            open_checkpoint(path)  # half a removal does not look like a checkpoint either
        clear_leftovers(state)
        assert all(path.name.startswith("step_") for path in state.iterdir())
        if code == 0:
            break
    codes, steps = zip(*outcomes, strict=True)
    assert codes == (7,) * (len(codes) - 1) + (0,)
    assert len(codes) >= 25
    assert steps == tuple(sorted(steps)) and set(steps) == {11, 12}
    assert [step for step, _ in saved_steps(state)] == [12, 11]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_an_error_at_any_call_keeps_the_old_and_leaves_nothing(tmp_path, monkeypatch, number):
    save(tmp_path, 1)
    num_failures = 0
    for fails_at in range(1, 40):
        count = 0
        with monkeypatch.context() as patch:
            for name in ("open", "write", "fsync", "mkdir", "rename"):
                real = getattr(os, name)

                def call(*args, real=real, fails_at=fails_at, **kwargs):
                    nonlocal count
                    count += 1
                    if count == fails_at:
                        raise OSError(number, os.strerror(number))
                    return real(*args, **kwargs)

                patch.setattr(os, name, call)
            try:
                save_checkpoint(tmp_path, step=2, parts=parts(2), facts={"step": 2})
                break
            except CheckpointError as error:
                num_failures += 1
                assert error.errno == number and error.exit_code == 5
                assert isinstance(error, OSError | TrainingStopped)
                assert os.strerror(number) in str(error)
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left in (["step_00000001"], ["step_00000001", "step_00000002"])
        assert loads(tmp_path) == len(left)
        shutil.rmtree(tmp_path / "step_00000002", ignore_errors=True)
    assert num_failures >= 10


def test_a_full_disk(tmp_path):
    """RLIMIT_FSIZE stands for it: writes fail where the file would grow beyond."""
    save(tmp_path, 1)
    messages = tmp_path / "messages"

    def child(limit: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            save(tmp_path, 2, num=100_000)
        except CheckpointError as error:
            messages.write_text(str(error))
            raise

    for limit in (300, 1000, 4096, 10_000, 50_000, 100_000, 200_000, 300_000, 399_000, 400_000):
        assert forked(lambda limit=limit: child(limit)) == 5
        assert "it needs 0.4 MB" in messages.read_text()
        assert "step 1 is kept" in messages.read_text()
        assert [path.name for path in tmp_path.glob("*step*")] == ["step_00000001"]
        assert loads(tmp_path) == 1


def test_kills_at_random_times(tmp_path):
    """A child saves without end; whatever it said it had saved is there."""
    last = 0
    for kill in range(12):
        read, write = os.pipe()

        def child(write=write, last=last):
            for step in range(last + 1, 10_000):
                save(tmp_path, step, num=1000)
                os.write(write, b".")

        pid = fork(child)
        os.close(write)
        acknowledged = len(os.read(read, 1))
        for _ in range(kill * 7 % 23):
            acknowledged += len(os.read(read, 1))
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        while more := os.read(read, 1000):
            acknowledged += len(more)
        os.close(read)
        found = loads(tmp_path)
        assert found in (last + acknowledged, last + acknowledged + 1)
        clear_leftovers(tmp_path)
        last = found
