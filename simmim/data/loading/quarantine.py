"""Images that could not be read: remembered, written down, and no more than a few."""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from simmim.data.names import plain
from simmim.errors import TrainingError

JUDGED_FROM = 200
"""Distinct images that must have been tried before their share of bad ones counts."""
REASONS = 3
"""Reasons that are told, the most frequent first."""

log = logging.getLogger(__name__)


def unreadable(bad: Mapping[str, str], of: int, what: str = "images") -> str:
    """Say how many images could not be read, and why.

    ``bad`` has the reason by path, one at least; ``of`` is how many were tried.
    """
    return f"{len(bad):,} of {of:,} {what} could not be read: {reasons(bad)}"


def reasons(bad: Mapping[str, str]) -> str:
    """Say why images could not be read, most frequent reasons first, each with an example."""
    paths: dict[str, list[str]] = {}
    for path, reason in bad.items():
        paths.setdefault(reason, []).append(path)
    most = sorted(paths.items(), key=lambda item: -len(item[1]))
    told = [f"{len(at):,} × {why}, such as {plain(at[0])}" for why, at in most[:REASONS]]
    rest = sum(len(at) for _, at in most[REASONS:])
    return "; ".join(told + ([f"{rest:,} for other reasons"] if rest else []))


class Quarantine:
    """The unreadable images of a run, and the rule of ``--max-bad``."""

    def __init__(self, file: Path | None, max_bad: float, images: Sequence[str]) -> None:
        """Begin, or go on where ``file`` exists.

        Args:
            file: JSON lines with `path` and `reason`; None keeps them in memory only.
            max_bad: Largest share of unreadable images among those tried, 0 to 1.
            images: Names of the images that are trained on.
        """
        self.file = file
        self.max_bad = max_bad
        self._images = images
        self._tried = np.zeros(len(images), bool)
        self._tried_count = 0
        self._looked_at: set[str] = set()
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
                self._tried_count += self._images[index] not in self._looked_at

    def looked_at(self, names: Iterable[str], bad: Mapping[str, str]) -> None:
        """Count images that were all read before training, such as to measure on them.

        Args:
            names: Theirs; some may be trained on too.
            bad: Those that could not be read, each with its reason.

        Raises:
            TrainingError: See ``check``.
        """
        self._looked_at.update(names)
        for path, reason in bad.items():
            self.add(path, reason)
        self.check()

    def add(self, path: str, reason: str) -> None:
        """Remember an unreadable image and append it to the file, once per path."""
        path = plain(path)
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
        tried = self._tried_count + len(self._looked_at)
        if tried < min(JUDGED_FROM, len(self._tried)):
            return
        share = len(self._bad) / max(tried, 1)
        if share > self.max_bad:
            path, reason = next(iter(self._bad.items()))
            where = f"all are listed in {self.file}" if self.file else f"the first: {path}"
            more = math.ceil(100 * min(1.0, 1.5 * share)) / 100
            raise TrainingError(
                f"{len(self._bad)} of {tried} images tried could not be read "
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
