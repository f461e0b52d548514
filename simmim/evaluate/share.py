"""Images to measure on, of which each process takes a share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from simmim.data.loading.geometry import Geometry, Size, centre_geometry
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import load_views
from simmim.errors import SimmimError
from simmim.tensors.batch import Batch
from simmim.training.world import World

T = TypeVar("T")


@dataclass
class Share:
    """Plain views of every so many-th image, in as many batches as each other process gets.

    A process whose images are at an end gets blank ones, so that all call a module as often.

    Attributes:
        images: Those of all processes.
        size: Height and width of a view in pixels.
        world: The processes.
        batch: Most images at once.
        workers: Background processes; 0 decodes in this one.
        place: See ``load_views``.
        bad: The unreadable images met by this process, each with its reason; after ``gather``, by
            all.
    """

    images: ImageSet
    size: tuple[int, int]
    world: World
    batch: int = 16
    workers: int = 0
    place: Callable[[int, int, Size], Geometry] = centre_geometry
    bad: dict[str, str] = field(default_factory=dict)
    _error: SimmimError | None = None

    def __iter__(self) -> Iterator[tuple[Batch, bool]]:
        """Give views, whose ``t`` are places in ``images``, and whether they are images at all."""
        rank, ranks = self.world.rank, self.world.ranks
        rows = range(rank, len(self.images), ranks)
        paths, annotations = self.images.paths.select(rows), self.images.annotations
        own = ImageSet(paths, self.images.pixels, annotations=annotations)
        left = -(-len(self.images) // (ranks * self.batch))
        options = {"batch": self.batch, "workers": self.workers, "place": self.place}
        try:
            for _, view in load_views(own, self.size, bad=self.bad, **options):
                yield replace(view, t=view.t * ranks + rank), True
                left -= 1
        except SimmimError as error:  # what the others learn when all that is measured is gathered
            self._error = error
        blank = torch.zeros(1, self.images.pixels.channels, *self.size, dtype=self.images.dtype)
        for _ in range(left):
            yield Batch(blank, torch.zeros(1, dtype=torch.int64), frames=torch.ones(1, 2)), False

    def gather(self, values: dict[int, T]) -> dict[int, T]:
        """What the processes have of their images, by place, in ascending order.

        Raises:
            SimmimError: In all processes, what one could not load its images for.
        """
        found: dict[int, T] = {}
        for theirs, bad, error in self.world.gather((values, self.bad, self._error)):
            if error is not None:
                raise error
            found |= theirs
            self.bad |= bad
        return dict(sorted(found.items(), key=lambda item: item[0]))
