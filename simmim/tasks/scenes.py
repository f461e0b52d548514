"""Images as segmenters see them, with their masks, read by background processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from simmim.config.resolved import PixelFormat
from simmim.data.formats.image_file import ImageFile, UnreadableError
from simmim.data.loading.augment import whole_view
from simmim.data.loading.geometry import Size
from simmim.data.loading.images import ImageSet
from simmim.data.map_classes import MapClasses
from simmim.data.processes import Place, ProcessLoss, do_all
from simmim.errors import DataError
from simmim.tasks.masks import picture

Frame = tuple[PixelFormat, Size]
"""How a segmenter reads images, and height and width of its window."""


@dataclass(frozen=True)
class Scene:
    """An image for one or several segmenters.

    Attributes:
        size: Its own height and width.
        views: All of it (H, W, C) for each of them, so that it just covers the window.
        truth: Class indices of its mask (h, w), ``IGNORE`` where it tells none.
        shown: Itself as it is shown (h, w, 3) uint8.
    """

    size: Size
    views: list[np.ndarray]
    truth: np.ndarray | None = None
    shown: np.ndarray | None = None

    @classmethod
    def of(cls, opened: ImageFile, frames: Sequence[Frame]) -> "Scene":
        """Read the views.

        Raises:
            UnreadableError: The image cannot be decoded.
        """
        size = opened.height, opened.width
        views = [whole_view(opened, pixels, covering(size, window)) for pixels, window in frames]
        return cls(size, views)


@dataclass(frozen=True)
class SceneReader:
    """Reads images for segmenters.

    Attributes:
        images: All of them.
        frames: Of the segmenters.
        classes: What masks mean; None: they are not read.
        shown: Whether pictures are wanted.
        bad: Takes up the unreadable images, each with its reason.
    """

    images: ImageSet
    frames: Sequence[Frame]
    classes: MapClasses | None = None
    shown: bool = False
    bad: dict[str, str] = field(default_factory=dict)

    def read(self, rows: Sequence[int], workers: int = 0) -> Iterator[tuple[int, Scene | None]]:
        """Yield places of images with what was read, as it gets done; None: it cannot be read.

        Args:
            rows: The places.
            workers: Background processes; 0 decodes in this one, in the order of the places.

        Raises:
            DataError: The storage fails.
        """
        for index, found in do_all(self._one, rows, workers):
            if isinstance(found, Scene):
                yield index, found
                continue
            lost = isinstance(found, ProcessLoss)
            reason = f"the process that reads it {found.how}" if lost else found
            self.bad[self.images.paths[index]] = reason
            yield index, None

    def _one(self, index: int, place: Place) -> Scene | str:
        place.at = index
        try:
            opened = self.images.open(index)
            scene = Scene.of(opened, self.frames)
            truth = None if self.classes is None else self._truth(index, self.classes)
            shown = picture(opened, self.images.pixels) if self.shown else None
        except UnreadableError as unread:
            return unread.reason
        except OSError as failed:
            raise DataError(f"reading {self.images.paths.where} failed: {failed}.") from failed
        return Scene(scene.size, scene.views, truth, shown)

    def _truth(self, index: int, classes: MapClasses) -> np.ndarray:
        paths = self.images.paths
        try:
            values = paths.map(index)
        except UnreadableError as error:
            raise UnreadableError(f"its label map: {error.reason}") from error
        if values is None:
            raise UnreadableError("its label map: there is none")
        return classes.for_names(paths.map_names).classes_of(values)


def covering(image: Size, window: Size) -> Size:
    """Height and width of an image scaled so that it just covers a window."""
    scale = max(window[0] / image[0], window[1] / image[1])
    return max(window[0], round(image[0] * scale)), max(window[1], round(image[1] * scale))
