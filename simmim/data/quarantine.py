"""Images that could not be read: remembered, written down, and no more than a few."""

import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from simmim.errors import TrainingError

JUDGED_FROM = 200
"""Distinct images that must have been tried before their share of bad ones counts."""

log = logging.getLogger(__name__)


class Quarantine:
    """The unreadable images of a run, and the rule of ``--max-bad``."""

    def __init__(self, file: Path | None, max_bad: float, images: int) -> None:
        """Begin, or go on where ``file`` exists.

        Args:
            file: JSON lines with `path` and `reason`; None keeps them in memory only.
            max_bad: Largest share of unreadable images among those tried, 0 to 1.
            images: Images of the training set.
        """
        self.file = file
        self.max_bad = max_bad
        self._tried = np.zeros(images, bool)
        self._tried_count = 0
        self._known: dict[str, str] = {}
        self._read = 0  # bytes of the file
        self._bad: dict[str, str] = {}

    @property
    def count(self) -> int:
        """Distinct unreadable images known, those of other processes and earlier parts included."""
        self._catch_up()
        return len(self._known)

    def tried(self, indices: Iterable[int]) -> None:
        """Count images that were tried, by their place in the image set, each once."""
        for index in indices:
            if not self._tried[index]:
                self._tried[index] = True
                self._tried_count += 1

    def add(self, path: str, reason: str) -> None:
        """Remember an unreadable image and append it to the file, once per path."""
        self._bad.setdefault(path, reason)
        if path not in self._known:
            self._catch_up()
        if path in self._known:
            return
        self._known[path] = reason
        if self.file is None:
            return
        row = json.dumps({"path": path, "reason": reason})
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as stream:
                torn = stream.tell() > self._read  # a kill left part of a line, which ends here
                stream.write(f"\n{row}\n" if torn else f"{row}\n")
        except OSError as error:  # a log that cannot be written does not stop a training
            log.warning(
                "cannot write %s (%s): %s is unreadable: %s", self.file, error, path, reason
            )

    def check(self) -> None:
        """Judge once 200 distinct images, or all, were tried since the run (re)started.

        Raises:
            TrainingError: More of them were unreadable than the share allowed.
        """
        if self._tried_count < min(JUDGED_FROM, len(self._tried)):
            return
        share = len(self._bad) / self._tried_count
        if share > self.max_bad:
            path, reason = next(iter(self._bad.items()))
            where = f"all are listed in {self.file}" if self.file else f"the first: {path}"
            more = math.ceil(100 * min(1.0, 1.5 * share)) / 100
            raise TrainingError(
                f"{len(self._bad)} of {self._tried_count} images tried could not be read "
                f"({share:.1%}, more than --max-bad {self.max_bad:g}), such as {path}: {reason}; "
                f"{where}. Repair or remove them, or allow more: --max-bad {more:.2g}.",
                again=("--max-bad", f"{more:.2g}"),
            )

    def _catch_up(self) -> None:
        """Read what was appended since the last time; a line that is torn is left out."""
        if self.file is None:
            return
        try:
            with self.file.open("rb") as stream:
                stream.seek(self._read)
                lines = stream.read().splitlines(keepends=True)
        except OSError:
            return
        for line in lines:
            if not line.endswith(b"\n"):
                break
            self._read += len(line)
            try:
                row = json.loads(line)
                self._known[row["path"]] = row["reason"]
            except (ValueError, KeyError, TypeError):
                continue
