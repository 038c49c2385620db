"""The entry point: which command, what it returned, and what exit code an error gets.

    0 ok   1 a bug of ours   2 usage   3 data   4 model or format   5 training stopped itself
    130/143 interrupted

Standard output holds the result and nothing else: text, or with ``--json`` one JSON object.
Progress and remarks go to standard error. An error is one sentence there, after ``qvae:``; with
``--json`` standard output holds ``{"error": ..., "exit_code": ...}`` as well. Nothing here
imports torch; a command does so when it starts to work.
"""

import json
import logging
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from qvae.cli.common import Parser, Result
from qvae.errors import QvaeError, UsageError
from qvae.registry import did_you_mean

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "demo": ("demo", "train on clocks, draw the 720 times, read them back, print the scores"),
    "clock": ("clock", "draw a clock that shows the time you ask for"),
    "train": ("train", "train a recipe on your data"),
    "eval": ("evaluate", "score a run on its test data"),
    "reproduce": ("reproduce", "run a paper's experiments, print its table beside ours"),
    "plot": ("plot", "draw what a run has learned"),
    "encode": ("tokens", "turn data into tokens"),
    "decode": ("tokens", "turn tokens back into data"),
    "quantize": ("quantize", "give a trained VAE codes, without training"),
    "sample": ("sample", "make new data"),
    "compare": ("compare", "train quantizers side by side on your data"),
    "score": ("score", "say how probable given files are"),
    "compress": ("compress", "write a sample as few bytes, by a prior's probabilities"),
    "decompress": ("compress", "get a sample back from its bytes"),
    "read": ("read", "read the time off pictures of clocks"),
    "bench": ("bench", "time the nearest-code search or a quantizer beside other libraries"),
    "llm": ("llm", "draw a clock from a sentence, read a clock into a sentence"),
    "info": ("info", "say what this machine and this installation are"),
    "list": ("listing", "list recipes and components, or one component's arguments"),
}
"""Command -> its module in this package and one line of help."""

_REPORT = "this is a bug of qvae; please report it with the lines above"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    Args:
        argv: the words after ``qvae``; None takes them from the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    wants_json = "--json" in words
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logging.getLogger("qvae").addHandler(handler)
    try:
        with _sigterm_raises():
            result = _dispatch(words)
            _write(result, wants_json)
        return result.exit_code
    except SystemExit as leaving:  # argparse has printed a command's help
        return int(leaving.code or 0)
    except BrokenPipeError:  # whoever read our output has seen enough
        _drop_output()
        return 0
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        return _fail("interrupted", 128 + number, wants_json)
    except Exception as error:  # the outermost frame: every error ends here
        code, text = _explain(error)
        return _fail(text, code, wants_json)
    finally:
        logging.getLogger("qvae").removeHandler(handler)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that what is half written is taken away."""

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _dispatch(words: list[str]) -> Result:
    name = next((word for word in words if not word.startswith("-")), None)
    if name is None or words[0] != name:
        return _top(words)
    if name not in COMMANDS:
        hint = did_you_mean(name, list(COMMANDS)) or f"; commands: {', '.join(COMMANDS)}"
        raise UsageError(f"{name!r}: no such command{hint}")
    module, summary = COMMANDS[name]
    command = import_module(f"qvae.cli.{module}")
    parser = Parser(prog=f"qvae {name}", description=f"{summary[0].upper()}{summary[1:]}.")
    result: Result = getattr(command, f"run_{name}")(parser, words[1:])
    return result


def _top(words: list[str]) -> Result:
    """Answer ``qvae``, ``qvae --help`` and ``qvae --version``."""
    if words[:1] == ["--version"]:
        from qvae import __version__

        return Result(data={"version": __version__}, text=f"qvae {__version__}")
    if words and words[0] not in ("-h", "--help"):
        raise UsageError(f"{words[0]}: a command comes first; see qvae --help")
    lines = ["usage: qvae COMMAND [options]", "", "From your data to tokens to new data.", ""]
    lines += [f"  {name:<12}{summary}" for name, (_, summary) in COMMANDS.items()]
    lines += ["", "qvae COMMAND --help says more; qvae --version says which release this is."]
    commands = {name: summary for name, (_, summary) in COMMANDS.items()}
    return Result(data={"commands": commands}, text="\n".join(lines))


def _write(result: Result, wants_json: bool) -> None:
    if wants_json:
        print(json.dumps(_finite(result.data), ensure_ascii=False))
    elif result.text:
        print(result.text)
    sys.stdout.flush()


def _drop_output() -> None:
    """Send what is left to say nowhere, so that Python's own last flush does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _finite(value: Any) -> Any:
    """Replace what JSON cannot say, NaN and infinity, by null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fail(text: str, code: int, wants_json: bool) -> int:
    print(f"qvae: {text}", file=sys.stderr)
    if wants_json:
        print(json.dumps({"error": text, "exit_code": code}, ensure_ascii=False))
    return code


def _explain(error: Exception) -> tuple[int, str]:
    """Return the exit code and the sentence of an error."""
    text = " ".join(str(error).split())
    if isinstance(error, QvaeError) and error.exit_code != 1:
        return error.exit_code, text
    if isinstance(error, OSError) and error.filename is not None:
        return 3, f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError) and _is_ours(error):
        return 2, text
    traceback.print_exception(error)
    return 1, f"{type(error).__name__}: {text}; {_REPORT}"


def _is_ours(error: Exception) -> bool:
    """Whether our own code raised it: a ValueError of ours speaks to the user."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    name = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return str(name).split(".")[0] == "qvae"
