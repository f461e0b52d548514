"""Stopping on a signal: at once, or in training after the step that is being made."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from simmim.data.signals import SIGNALS
from simmim.errors import Stopped

_AGAIN = 0.5
"""Seconds after which a signal that was lost is raised once more."""


class StopSignal:
    """Remembers that a signal asked to stop.

    Attributes:
        number: The signal, or None.
        waits: Whether somebody asks ``number`` now and then; else the signal raises where it comes.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.waits = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; a second one ends the process at once."""
        self.number = number
        signal.signal(number, signal.SIG_DFL)
        if not self.waits:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)
            self._check_outside_imports(frame)

    def again(self, _number: int, frame: FrameType | None) -> None:
        """Raise once more what got lost, or came in an import."""
        error = sys.exception()
        while error is not None:
            if isinstance(error, (Stopped, KeyboardInterrupt)):
                return  # it is on its way, and what it passes is being put in order
            error = error.__context__
        self._check_outside_imports(frame)

    def _check_outside_imports(self, frame: FrameType | None) -> None:
        """Raise it, but not in an import, which may clear it or take it for a fault of its own."""
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return
            frame = frame.f_back
        self.check()

    def check(self) -> None:
        """Raise what a signal asked for, if there was one.

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
        before = self.waits
        if not before:
            self.check()
        self.waits = True
        yield
        self.waits = before


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
    before = {number: signal.getsignal(number) for number in (signal.SIGALRM, *SIGNALS)}
    tell = sys.unraisablehook

    def tell_others(lost: "sys.UnraisableHookArgs") -> None:
        # What a signal raises in a callback gets lost, and is raised once more: see ``again``.
        if not isinstance(lost.exc_value, (Stopped, KeyboardInterrupt)):
            tell(lost)

    caught = [number for number in SIGNALS if before[number] != signal.SIG_IGN]
    sys.unraisablehook = tell_others
    try:
        signal.signal(signal.SIGALRM, stop.again)
        for number in caught:
            signal.signal(number, stop)
        yield stop
    finally:
        sys.unraisablehook = tell
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (*caught, signal.SIGALRM):
            signal.signal(number, before[number] or signal.SIG_DFL)
        _listening = None
