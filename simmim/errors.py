"""The exception tree.

::

    SimmimError          anything that a user can put right; printed without a traceback
    ├── ConfigError      a flag, a config file, or a combination of settings
    ├── DataError        images and labels
    ├── CheckpointError  files of weights, run folders
    ├── ResourceError    memory, disk, devices
    ├── TrainingError    a run that had started and cannot go on
    └── VerificationError    checks that failed

A message says what was asked, what was found, and what to do. ``ConfigError`` does not subclass
``ValueError``: the command-line parser catches that and would hide the message.
"""

from collections.abc import Sequence


class SimmimError(Exception):
    """The root of all errors that simmim raises on purpose.

    ``exit_code`` is the exit status of the command line: 2 when nothing was started, 1 when a run
    that had started failed.
    """

    exit_code = 2


class ConfigError(SimmimError):
    """A setting that is out of range, unknown, or does not fit the others."""


class DataError(SimmimError):
    """Images or labels that are missing or cannot be used."""


class CheckpointError(SimmimError):
    """A run folder or a file of weights that is missing, damaged, or of another kind."""


class ResourceError(SimmimError):
    """Too little memory, disk, or no such device."""


class TrainingError(SimmimError):
    """A run that had started and cannot go on.

    ``again`` are the flags with which a resume gets further, once what the message says is put
    right; None where none does.
    """

    exit_code = 1

    def __init__(self, text: str, again: Sequence[str] | None = ()) -> None:
        super().__init__(text)
        self.again = again


class VerificationError(SimmimError):
    """Checks of ``simmim verify``, or of an export, that failed."""

    exit_code = 1
