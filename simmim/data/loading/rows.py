"""What a loader's worker does: fill the rows of a chunk with views, and report on the images."""

from dataclasses import dataclass, field

import torch

from simmim.config.augment import AugmentConfig
from simmim.data.formats.image_file import Opened, UnreadableError
from simmim.data.loading.augment import plain_view, random_view
from simmim.data.loading.images import ImageSet
from simmim.data.loading.order import Order
from simmim.data.processes import Place
from simmim.tensors.counter import Purpose

Size = tuple[int, int]

ATTEMPTS = 32
"""Images tried in the place of an unreadable one."""
REASON = 200
"""Longest reason that is passed on, in characters."""


@dataclass
class Report:
    """What a worker found out: images used, tried, unreadable; ``stop`` ends the run."""

    used: list[int] = field(default_factory=list)
    tried: list[int] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    stop: str = ""


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Fills chunks with views of height and width ``size``."""

    images: ImageSet
    size: Size
    left_out: dict[int, str] = field(default_factory=dict)
    """Images that are not opened any more, and why."""

    def name(self, at: int) -> str:
        """See ``Fill``."""
        return self.images.paths[at]

    def leave_out(self, at: int, reason: str) -> None:
        """See ``Fill``."""
        self.left_out[at] = reason

    def _gone(self, index: int, report: Report) -> bool:
        """Whether the place that an image is in is gone, which says nothing about the image."""
        gone = self.images.paths.gone(index)
        if gone is not None:
            report.stop = f"{gone} is not there any more. Put it back; is a disk not mounted?"
        return gone is not None

    def _open(self, index: int, place: Place) -> Opened:
        place.at = index
        if index in self.left_out:
            raise UnreadableError(self.left_out[index])
        return self.images.open(index)


@dataclass(frozen=True, kw_only=True)
class TrainRows(_Rows):
    """Fills one chunk of the rows that one rank has in one global batch."""

    augment: AugmentConfig
    order: Order
    batch_size: int
    first_row: int
    chunks: list[tuple[int, int]]

    def places(self, task: int) -> range:
        """Return the places t in the run that a task is about."""
        step, chunk = divmod(task, len(self.chunks))
        begin, length = self.chunks[chunk]
        first = step * self.batch_size + self.first_row + begin
        return range(first, first + length)

    def __call__(self, task: int, out: torch.Tensor, place: Place) -> Report:
        """See ``Fill``."""
        report, out = Report(), out.permute(0, 3, 1, 2)
        if self.images.prefetches:
            self.images.prefetch([self.order.index(t) for t in self.places(task)])
        for row, t in enumerate(self.places(task)):
            if not self._one(t, out[row], report, place):
                break
        return report

    def _one(self, t: int, out: torch.Tensor, report: Report, place: Place) -> bool:
        for attempt in range(ATTEMPTS):
            index = self.order.replacement(t, attempt) if attempt else self.order.index(t)
            report.tried.append(index)
            try:
                opened = self._open(index, place)
                key = (self.order.seed, Purpose.AUGMENT, t, attempt)
                out.copy_(random_view(opened, self.images.pixels, self.augment, self.size, key))
            except UnreadableError as error:
                if self._gone(index, report):
                    return False
                report.bad.append((index, error.reason[:REASON]))
                continue
            except OSError as error:
                report.stop = (
                    f"reading {self.images.paths[index]} in {self.images.paths.where} failed "
                    f"several times: {error}. It is the storage that fails, not the image."
                )
                return False
            report.used.append(index)
            return True
        index, reason = report.bad[-1]
        report.stop = (
            f"{ATTEMPTS} images tried one after the other could not be read, the last: "
            f"{self.images.paths[index]}: {reason}. quarantine.jsonl lists them."
        )
        return False


@dataclass(frozen=True, kw_only=True)
class PlainRows(_Rows):
    """Fills one chunk of the plain views of an image set."""

    chunk: int

    def __call__(self, task: int, out: torch.Tensor, place: Place) -> Report:
        """See ``Fill``."""
        report, out = Report(), out.permute(0, 3, 1, 2)
        begin = task * self.chunk
        chosen = range(begin, min(begin + self.chunk, len(self.images)))
        if self.images.prefetches:
            self.images.prefetch(chosen)
        for index in chosen:
            try:
                opened = self._open(index, place)
                out[len(report.used)].copy_(plain_view(opened, self.images.pixels, self.size))
            except UnreadableError as error:
                if self._gone(index, report):
                    return report
                report.bad.append((index, error.reason[:REASON]))
                continue
            except OSError as error:
                path = f"{self.images.paths[index]} in {self.images.paths.where}"
                report.stop = f"reading {path} failed several times: {error}."
                return report
            report.used.append(index)
        return report
