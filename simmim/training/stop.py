"""Stopping on a signal: finish the step, save, leave."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):  # noqa: N818  (not an error)
    """A run that a signal stopped, after a checkpoint.

    ``exit_code`` is 130 for Ctrl-C and 75 for the rest: start again with ``--resume``.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}; a checkpoint was saved."
        )
        self.exit_code = 130 if number == signal.SIGINT else 75


class StopSignal:
    """Remembers that a signal asked to stop."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal; a second one ends the process at once."""
        self.number = number
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def listen() -> Iterator[StopSignal]:
    """Catch SIGTERM, SIGINT and SIGUSR1 while inside; only the main thread can."""
    stop = StopSignal()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {}
    try:
        for number in numbers:
            before[number] = signal.signal(number, stop)
    except ValueError:  # not in the main thread: the caller's handlers stay
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
