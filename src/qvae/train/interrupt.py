"""Ctrl-C and SIGTERM: the handler sets a flag, the loop looks at it between steps."""

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["StopFlag"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """Note the first SIGINT or SIGTERM while the ``with`` block runs; leave at once on a second.

    Handlers exist in the main thread only and are restored at the end; in another thread this
    does nothing.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
