"""What a run writes about itself: metrics.jsonl and TensorBoard events."""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path

from simmim.training.files import write_text


def read_metrics(path: Path) -> list[dict]:
    """The whole rows of a metrics.jsonl; a last line that was cut off is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class Metrics:
    """Appends rows to metrics.jsonl and TensorBoard; a failing log never stops training.

    Args:
        run: The run folder.
        step: The step that the run goes on from; later rows of an earlier attempt are dropped.
        tensorboard: Whether to write events too.
        warn: Told, once, when a log cannot be written.
    """

    def __init__(
        self, run: Path, *, step: int, tensorboard: bool, warn: Callable[[str], None]
    ) -> None:
        self.path = run / "metrics.jsonl"
        self.warn = warn
        self._warned = False
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._events = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._events = SummaryWriter(str(run), purge_step=step + 1 if step else None)

    def update(self, row: dict[str, float]) -> None:
        """Append a row; values that are not finite become null."""
        clean = {k: v if math.isfinite(v) else None for k, v in row.items()}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(clean) + "\n")
            if self._events is not None:
                for name, value in row.items():
                    if name != "step":
                        self._events.add_scalar(name, value, int(row["step"]))
        except OSError as error:
            if not self._warned:
                self.warn(f"metrics could not be written ({error}); training goes on.")
                self._warned = True

    def note(self, text: str) -> None:
        """Not kept: metrics are numbers."""

    def close(self) -> None:
        """Write out what is buffered."""
        if self._events is not None:
            with contextlib.suppress(OSError):  # a full disk was told of before
                self._events.close()
