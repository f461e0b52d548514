"""The exception tree.

::

    SimmimError          anything that a user can put right; printed without a traceback
    ├── ConfigError      a flag, a config file, or a combination of settings
    ├── DataError        images and labels
    ├── CheckpointError  files of weights, run folders
    ├── ResourceError    memory, disk, devices
    ├── TrainingError    a training that cannot go on
    ├── ReportedError    what another process of the run has told
    └── VerificationError    checks that failed

A message says what was asked, what was found, and what to do. ``ConfigError`` does not subclass
``ValueError``: whoever reads a value catches that, and would hide the message.
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum


class ExitStatus(IntEnum):
    """What a command ends with."""

    DONE = 0
    FAILED = 1
    """A run that had started failed, or checks did."""
    NOT_STARTED = 2
    STOPPED = 75
    """By a signal other than Ctrl-C: start it again."""
    INTERRUPTED = 130
    """By Ctrl-C."""
    READER_LEFT = 141
    """Whoever read the output has gone, as in ``simmim models | head``."""


class SimmimError(Exception):
    """The root of all errors that simmim raises on purpose.

    ``started`` tells whether something had been started when it failed; the exit status of the
    command line follows from that alone.
    """

    started = False


@contextmanager
def running() -> Iterator[None]:
    """Let errors from inside tell that a run had started."""
    try:
        yield
    except SimmimError as error:
        error.started = True
        raise


class ConfigError(SimmimError):
    """A setting that is out of range, unknown, or does not fit the others."""


class DataError(SimmimError):
    """Images or labels that are missing or cannot be used."""


class CheckpointError(SimmimError):
    """A run folder or a file of weights that is missing, damaged, or of another kind."""


class ResourceError(SimmimError):
    """Too little memory, disk, or no such device."""


class TrainingError(SimmimError):
    """A training that cannot go on.

    ``again`` are the flags with which a resume gets further, once what the message says is put
    right; None where none does.
    """

    def __init__(self, text: str, again: Sequence[str] | None = ()) -> None:
        super().__init__(text)
        self.again = again


class VerificationError(SimmimError):
    """Checks of ``simmim verify``, or of an export, that failed."""

    started = True


class ReportedError(SimmimError):
    """What another process of the run tells in words: this one ends without any."""


class Stopped(BaseException):
    """What a signal stopped; like ``KeyboardInterrupt``, no ``except Exception`` keeps it.

    Args:
        number: The signal.
        how: What became of it, after "stopped by SIGTERM"; None: it is not known here.
    """

    def __init__(self, number: int, how: str | None = None) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} {how or 'before it was done: start it again.'}")
        self.number, self.how = number, how
        interrupted = number == signal.SIGINT
        self.status = ExitStatus.INTERRUPTED if interrupted else ExitStatus.STOPPED
