"""Stopping on a signal: at once, or in training after the step that is being made."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from simmim.data.signals import SIGNALS


class Stopped(BaseException):
    """What a signal stopped; like ``KeyboardInterrupt``, no ``except Exception`` keeps it.

    ``exit_code`` is 130 for Ctrl-C and 75 for the rest: start again.

    Args:
        number: The signal.
        how: What became of it, after "stopped by SIGTERM".
    """

    def __init__(self, number: int, how: str = "before it was done: start it again.") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {how}")
        self.number = number
        self.exit_code = 130 if number == signal.SIGINT else 75


class StopSignal:
    """Remembers that a signal asked to stop.

    Attributes:
        number: The signal, or None.
        waits: Whether somebody asks ``number`` now and then; else the signal raises where it comes.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.waits = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal; a second one ends the process at once."""
        self.number = number
        signal.signal(number, signal.SIG_DFL)
        if not self.waits:
            self.check()

    def check(self) -> None:
        """Raise what a signal asked for, where what it raised before got lost on its way.

        Raises:
            Stopped: SIGTERM or SIGUSR1 came.
            KeyboardInterrupt: SIGINT came.
        """
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            raise Stopped(self.number)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let signals wait to be asked for while inside, and after an error until it is told."""
        self.check()
        self.waits = True
        yield
        self.waits = False


_listening: StopSignal | None = None


@contextmanager
def listen() -> Iterator[StopSignal]:
    """Catch SIGTERM, SIGINT and SIGUSR1 while inside, but those that the process ignores.

    Only the main thread can. Inside another ``listen`` it gives what that one gave.
    """
    global _listening
    if threading.current_thread() is not threading.main_thread():
        yield StopSignal()
        return
    if _listening is not None:
        yield _listening
        return
    _listening = stop = StopSignal()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    caught = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    try:
        for number in caught:
            signal.signal(number, stop)
        yield stop
    finally:
        for number in caught:
            signal.signal(number, before[number] or signal.SIG_DFL)
        _listening = None
