"""Signs of life between the processes of a run, through the store that they met in."""

import threading
import time
from collections.abc import Callable
from typing import Protocol

BEAT = 0.5
"""Seconds between two signs of life."""
WATCHED = 3.0
"""Seconds without one after which a process counts as gone, where an exchange with it failed."""


class Store(Protocol):
    """Numbers that all processes can add to."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number, 0 at first, and return it."""
        ...


class Pulse:
    """Tells the other processes that this one lives, and which of them do not.

    Args:
        store: For this purpose alone: a call of others that waits would hold up the signs.
        rank: Number of this process.
        ranks: Number of processes.
    """

    def __init__(self, store: Store, rank: int, ranks: int) -> None:
        self._store = store
        self._rank, self._ranks = rank, ranks
        self._meetings = 0
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give no more signs of life."""
        self._end.set()
        self._thread.join(BEAT)

    def silent(self, seconds: float = WATCHED) -> list[int]:
        """Watch for so long; returns the processes that gave no sign of life."""
        before = self._beats()
        time.sleep(seconds)
        return [rank for rank, beat in enumerate(self._beats()) if beat == before[rank]]

    def meet(self, patience: Callable[[], float]) -> list[int]:
        """Wait for all processes to come here, however long that is, while all of them live.

        Args:
            patience: Gives the seconds for which one may give no sign of life.

        Returns:
            Those that gave none for longer; empty: all have come.
        """
        self._meetings += 1
        key, pause, since = f"meeting/{self._meetings}", 0.001, 0.0
        beats, quiet = self._beats(), [0.0] * self._ranks
        self._add(key, 1)
        while self._add(key, 0) < self._ranks:
            time.sleep(pause)
            # Pauses are added up, not told by a clock: a job that was stopped as a whole goes on.
            pause, since = min(1.5 * pause, 0.2), since + pause
            if since < 2 * BEAT:
                continue
            now = self._beats()
            quiet = [quiet[i] + since if now[i] == beats[i] else 0.0 for i in range(self._ranks)]
            beats, since = now, 0.0
            if max(quiet) > (limit := patience()):
                return [rank for rank, seconds in enumerate(quiet) if seconds > limit]
        return []

    def _beats(self) -> list[int]:
        return [self._add(f"beat/{rank}", 0) for rank in range(self._ranks)]

    def _add(self, key: str, amount: int) -> int:
        with self._lock:
            return self._store.add(key, amount)

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            try:
                self._add(f"beat/{self._rank}", 1)
            except RuntimeError:  # whoever held the store is gone
                return
