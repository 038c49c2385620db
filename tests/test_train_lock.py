"""One writer for a run folder."""

import json
import os
import signal
import time

import pytest

from qvae.errors import UsageError
from qvae.train import lock
from qvae.train.lock import run_lock
from train_toy import die, fork, forked, wait


def hold(run, seconds=0.0):
    with run_lock(run):
        time.sleep(seconds)


def die_holding(run):
    with run_lock(run):
        die()


def slow_down(lock):
    """Give others time between looking at the lock and taking it."""
    look = lock._read

    def slow_look(path):
        owner = look(path)
        time.sleep(0.01)
        return owner

    lock._read = slow_look


def wait_for(path):
    for _ in range(500):
        if path.exists() and path.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not appear")


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    pid = fork(lambda: hold(tmp_path, 30))
    try:
        wait_for(tmp_path / ".lock")
        with pytest.raises(
            UsageError, match=f"in use by process {pid} on host {os.uname().nodename}"
        ):
            hold(tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    hold(tmp_path)  # a dead owner's lock is taken over
    assert not (tmp_path / ".lock").exists()


def test_the_lock_goes_when_its_block_fails(tmp_path):
    with pytest.raises(KeyError), run_lock(tmp_path):
        raise KeyError
    hold(tmp_path)


@pytest.mark.parametrize("left", ["dead owner", "empty file", "nothing"])
def test_of_many_that_come_at_once_one_wins(tmp_path, left):
    """The winner holds on until all have tried, so every other must be refused."""
    for trial in range(6):
        run = tmp_path / str(trial)
        run.mkdir()
        if left == "dead owner":
            assert forked(lambda run=run: die_holding(run)) == -signal.SIGKILL
            assert (run / ".lock").exists()
        elif left == "empty file":
            (run / ".lock").touch()
        read, write = os.pipe()

        def contend(run=run, read=read, write=write):
            slow_down(lock)
            signal.alarm(10)  # two winners would wait for each other
            try:
                with run_lock(run):
                    os.close(write)
                    os.read(read, 1)  # returns when the parent closed its end
            except UsageError:
                os._exit(2)

        pids = [fork(contend) for _ in range(5)]
        os.close(read)
        codes = []
        while len(codes) < 4:
            pid, status = os.wait()
            pids.remove(pid)
            codes.append(os.waitstatus_to_exitcode(status))
        os.close(write)
        assert codes == [2, 2, 2, 2]
        assert wait(pids[0]) == 0


@pytest.mark.parametrize(
    ("change", "is_dead"),
    [
        ({}, False),
        ({"pid": 2**22 + 5}, True),
        ({"boot": "another"}, True),
        ({"started": "12"}, True),
        ({"host": "elsewhere"}, False),
        ({"host": "elsewhere", "boot": "another", "pid": 2**22 + 5}, False),
    ],
)
def test_whose_lock_is_dead(tmp_path, change, is_dead):
    with run_lock(tmp_path):
        own = json.loads((tmp_path / ".lock").read_text())
    (tmp_path / ".lock").write_text(json.dumps(own | change))
    if is_dead:
        hold(tmp_path)
    else:
        with pytest.raises(UsageError, match="in use"):
            hold(tmp_path)
        assert json.loads((tmp_path / ".lock").read_text()) == own | change


def test_a_lock_that_was_replaced_is_left_alone(tmp_path):
    with run_lock(tmp_path):
        (tmp_path / ".lock").write_text('{"host": "elsewhere"}')
    assert (tmp_path / ".lock").exists()
