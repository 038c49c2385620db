"""What can go wrong, and the exit code the command line gives it.

    QvaeError            1   a bug of ours, when nothing below fits
    |- UsageError        2   an argument or a recipe is wrong
    |- DataError         3   the data cannot be read or breaks a rule
    |- FormatError       4   a model or token file is not what it should be
    |- TrainingStopped   5   training stopped itself (for instance, the loss is not finite)
    `- Interrupted  130, 143 a signal came; a checkpoint was written first

A message is one sentence: the file or argument, its value, the rule.
"""

__all__ = [
    "DataError",
    "FormatError",
    "Interrupted",
    "QvaeError",
    "TrainingStopped",
    "UsageError",
]


class QvaeError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class UsageError(QvaeError, ValueError):
    """An argument or a recipe breaks a rule."""

    exit_code = 2


class DataError(QvaeError, ValueError):
    """The data cannot be read, or breaks a rule."""

    exit_code = 3


class FormatError(QvaeError, ValueError):
    """A model folder, checkpoint or token folder is not what it should be."""

    exit_code = 4


class TrainingStopped(QvaeError):
    """Training stopped itself; the last good state is saved."""

    exit_code = 5


class Interrupted(QvaeError):
    """A signal ended the run after a checkpoint was written.

    Example:
        >>> Interrupted(15).exit_code
        143
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}; the checkpoint is saved")
        self.exit_code = 128 + signal_number
