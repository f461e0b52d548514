"""Images to measure on, of which each process takes a share."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import load_views, none_readable
from simmim.data.loading.quarantine import Quarantine, unreadable
from simmim.errors import DataError, SimmimError
from simmim.tensors.batch import Batch
from simmim.training.world import World

T = TypeVar("T")
_MICRO_BATCH = 16


@dataclass(frozen=True)
class Share:
    """Plain views of images, kept decoded; each process has every so many-th of them.

    Attributes:
        views: This process's, whose ``t`` are places in the whole set.
        calls: The most views that a process has.
        blank: What stands in where this process has fewer.
        places: Of all images that can be read, in any process, ascending.
        said: What could not be read, in words; empty: nothing.
        world: The processes.
    """

    views: list[Batch]
    calls: int
    blank: Batch
    places: list[int]
    said: str
    world: World

    def __iter__(self) -> Iterator[tuple[Batch, bool]]:
        """Give the views on the device, and whether they count: in each process as many."""
        device = self.world.device
        for view in self.views:
            yield view.to(device), True
        for _ in range(self.calls - len(self.views)):
            yield self.blank.to(device), False

    def gather(self, values: dict[int, T]) -> dict[int, T]:
        """What the processes have of their images, by place, in ascending order."""
        every = [pair for each in self.world.gather(values) for pair in each.items()]
        return dict(sorted(every, key=lambda pair: pair[0]))


def load_share(
    images: ImageSet, size: tuple[int, int], world: World, quarantine: Quarantine, what: str
) -> Share:
    """Load this process's share, and hear of the others'.

    Args:
        images: All of them.
        size: Height and width of a view in pixels.
        world: The processes.
        quarantine: Is told which images are unreadable, and judges.
        what: The images' name in the plural.

    Raises:
        DataError: None of the images can be read.
        TrainingError: Too many of those that were tried so far cannot be read.
    """
    rank, ranks = world.rank, world.ranks
    part = replace(images, paths=images.paths.select(range(rank, len(images), ranks)), labels=None)
    views: list[Batch] = []
    bad: dict[str, str] = {}
    error = None
    try:
        for _, view in load_views(part, size, bad=bad, batch=_MICRO_BATCH):
            views.append(replace(view, t=view.t * ranks + rank))
    except SimmimError as failed:
        error = failed
    told = world.gather(([view.t.tolist() for view in views], bad, error))
    places = sorted(t for theirs, _, _ in told for each in theirs for t in each)
    for _, theirs, failed in told:
        bad, error = bad | theirs, error or failed
    error = error or world.write(lambda: quarantine.looked_at(len(images), bad))
    if error is None and not places:
        error = DataError(none_readable(images.paths, bad))
    if error is not None:
        world.fail(error)
    blank = torch.zeros(1, images.pixels.channels, *size, dtype=images.dtype)
    return Share(
        views,
        calls=max(len(theirs) for theirs, _, _ in told),
        blank=Batch(blank, torch.zeros(1, dtype=torch.int64)),
        places=places,
        said=unreadable(bad, len(images), what) if bad else "",
        world=world,
    )
