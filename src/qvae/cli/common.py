"""What the commands share: the parser, the common options, and how a result is handed back."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from qvae.errors import UsageError

__all__ = [
    "Parser",
    "Result",
    "add_common",
    "autocast",
    "check_output",
    "note",
    "output_folder",
    "parse",
    "positive",
    "precision",
    "prepare",
]

_PRECISIONS = {"auto": "auto", "float32": "float32", "bfloat16": "bf16", "bf16": "bf16"}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command found out: as data for ``--json``, as text for a person."""

    data: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    exit_code: int = 0
    """Not 0 where a part of the work could not be done, and the result is of the rest."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UsageErrors of one sentence."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False, exit_on_error=True)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UsageError(f"{message}; see {self.prog} --help")


def parse(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    """Parse all words; an unknown option or an empty word is an error that says so."""
    args, unknown = parser.parse_known_args(words)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        close = get_close_matches(unknown[0].split("=")[0], known, n=1, cutoff=0.75)
        hint = f", did you mean {close[0]}?" if close else ""
        parser.error(f"{unknown[0]}: unknown option or one word too many{hint}")
    for action in parser._actions:
        if getattr(args, action.dest, None) == "":  # an unset shell variable, never "here"
            parser.error(f"{'/'.join(action.option_strings) or action.metavar}: is empty")
    if getattr(args, "output", None) == "-":  # elsewhere a pipe; here it became a folder
        parser.error("-o -: results are files, not a stream; give a path")
    return args


def add_common(parser: Parser, *names: str) -> None:
    """Add ``--json`` and those common options that the command obeys, by name."""
    group = parser.add_argument_group("common options")
    for name in names:
        options: dict[str, Any] = _COMMON[name]
        group.add_argument(f"--{name}", **options)
    group.add_argument("--json", action="store_true", help="print the result as one JSON object")


def positive(text: str) -> int:
    """Read a whole number >= 1, for ``type=``."""
    return _natural(text, least=1)


def _natural(text: str, least: int = 0) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number >= {least}")
    return int(text)


_COMMON: dict[str, dict[str, Any]] = {
    "device": {
        "default": "auto",
        "choices": ("auto", "cpu", "cuda", "mps"),
        "help": "where to run (default: auto)",
    },
    "precision": {
        "choices": tuple(_PRECISIONS),
        "help": "bfloat16 (or bf16) is autocast; auto takes it to train where it is faster",
    },
    "threads": {"type": positive, "metavar": "N", "help": "CPU threads of torch"},
    "seed": {"type": _natural, "metavar": "N", "help": "of everything random"},
}


def prepare(args: argparse.Namespace) -> Any:
    """Set torch's threads and return the device, a ``torch.device``.

    Raises:
        UsageError: this machine lacks the device.
    """
    import torch

    from qvae.train.engine import resolve_device

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, on every device
    return resolve_device(getattr(args, "device", "cpu"))


def precision(args: argparse.Namespace) -> str | None:
    """Return the precision asked for in the library's word, or None."""
    return _PRECISIONS[args.precision] if args.precision else None


def autocast(args: argparse.Namespace, device: Any) -> Any:
    """Return a context for inference: float32 unless bfloat16 was asked for by name.

    Scores and tokens must not depend on what a machine is fast at, so ``auto`` is float32 here.
    """
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=precision(args) == "bf16")


def note(text: str) -> None:
    """Tell the person something that is not the result."""
    print(text, file=sys.stderr, flush=True)


def check_output(path: str | Path) -> None:
    """Refuse a folder that could not be made or written to, before any work; make nothing.

    Raises:
        UsageError: a file is in the way, or it is not ours to write.
    """
    folder = Path(path)
    places = (folder, *folder.absolute().parents)
    nearest = next(place for place in places if os.path.lexists(place))
    if not nearest.is_dir():
        raise UsageError(f"{nearest}: is a file, must be a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{folder}: cannot be written to (Permission denied)")


def output_folder(path: str | Path) -> Path:
    """Make and return a folder to write results to; say so where older files lie in it.

    Raises:
        UsageError: as for :func:`check_output`.
    """
    check_output(path)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        note(f"{folder}: is not empty; files of the same name are replaced, others stay")
    return folder
