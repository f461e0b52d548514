"""What steps returned: read while a GPU goes on, judged, and told, in the order of the steps."""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from simmim.training.health import Health
from simmim.training.saves import Saves
from simmim.training.step import StepValues


class Watcher(Protocol):
    """What is told of a run while it goes on: the terminal, the log."""

    def update(self, row: dict[str, float]) -> None:
        """A row of metrics; ``step`` counts finished steps, from 1."""
        ...

    def note(self, text: str) -> None:
        """A line that a person should read."""
        ...


class Readings:
    """Values of steps, from the device to the rows of metrics.

    Args:
        health: Judges each step.
        saves: Says what there is to go on from.
        watchers: Told of each row.
        ahead: So many steps may be begun before the values of one are read; None: one on a GPU.
    """

    def __init__(
        self, health: Health, saves: Saves, watchers: Sequence[Watcher], ahead: int | None
    ) -> None:
        self._health, self._saves, self._watchers = health, saves, watchers
        on_gpu = health.world.device.type == "cuda"
        self._ahead = int(on_gpu) if ahead is None else ahead
        self._queue: deque[tuple[int, StepValues, dict[str, float] | None]] = deque()
        self._rows: list[dict[str, float]] = []
        self._skipped = 0.0
        self.loss = float("nan")
        """Of the last step that was read."""

    def put(self, step: int, values: StepValues, row: dict[str, float] | None) -> None:
        """Take what a step returned, with the row that it gives, if any, and read older ones."""
        self._queue.append((step, values, row))
        self._read(self._ahead)

    def read(self) -> None:
        """Wait for all steps.

        Raises:
            DivergedError: Many steps in a row are far off their course.
        """
        self._read(0)

    def add(self, values: dict[str, float]) -> None:
        """Add to the newest row."""
        self._rows[-1] |= values

    def tell(self) -> None:
        """Tell the watchers of the rows that were read."""
        for row in self._rows:
            for watcher in self._watchers:
                watcher.update(row)
        self._rows = []

    def rescue(self, done: int) -> None:
        """Tell and save what was trained before the images went."""
        self.read()
        self.tell()
        self._saves.rescue(done)

    def _read(self, left: int) -> None:
        while len(self._queue) > left:
            step, reading, row = self._queue.popleft()
            values = reading.read()
            self.loss = values["loss"]
            self._skipped += values["skipped"]
            if not self._health.after_step(values):
                self._health.world.fail(self._health.error(step, self.loss, self._saves.kept))
            if row is not None:
                self._rows.append(row | values | {"skipped": self._skipped})
                self._skipped = 0.0
