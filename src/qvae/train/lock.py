"""One writer for a run folder: a lock file that names its owner's host, process and boot."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qvae.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: two takeovers in the same millisecond are not told apart there
    fcntl = None  # type: ignore[assignment]

__all__ = ["run_lock"]

_NAME = ".lock"


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold a run folder while the ``with`` block runs.

    The lock of an owner that died is taken over. The kernel's lock on the folder itself guards
    only the moment of looking and taking, so that of two that find a dead owner one wins.

    Raises:
        UsageError: a living process holds the folder, or one on a host we cannot ask.
    """
    path, own = run / _NAME, _whoami()
    with _guard(run):
        _remove_dead(path, run)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            os.write(handle, json.dumps(own).encode())
        finally:
            os.close(handle)
    try:
        yield
    finally:
        with _guard(run):
            if _read(path) == own:
                path.unlink()


@contextlib.contextmanager
def _guard(run: Path) -> Iterator[None]:
    handle = os.open(run, os.O_RDONLY) if fcntl is not None else -1
    try:
        if handle >= 0:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def _remove_dead(path: Path, run: Path) -> None:
    if not path.exists():
        return
    owner = _read(path)
    # An unreadable lock is one whose writer died between creating and filling it.
    if owner is None or _is_dead(owner):
        path.unlink()
        return
    raise UsageError(
        f"run={str(run)!r} is in use by process {owner.get('pid')} on host {owner.get('host')}; "
        f"choose another --run (or, if that host is gone, delete {path})"
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) else None


def _is_dead(owner: dict[str, Any]) -> bool:
    if owner.get("host") != socket.gethostname():
        return False
    if owner.get("boot") != _boot():
        return True
    pid = owner.get("pid")
    if not isinstance(pid, int) or pid < 1:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return owner.get("started") != _started(pid)  # the number was given to another process


def _whoami() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "boot": _boot(), "started": _started(pid)}


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return a process's start, in ticks since boot: no clock that anyone can set."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
