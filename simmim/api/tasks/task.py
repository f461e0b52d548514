"""What a fine-tuning asks of its task, from labelled images to results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from simmim.config.finetune import FinetuneConfig
from simmim.config.resolved import PixelFormat
from simmim.data.loading.images import Annotation, ImageSet
from simmim.models.encoder import Encoder
from simmim.training.loop import Look
from simmim.training.task import Task
from simmim.training.world import World

C = TypeVar("C", bound=FinetuneConfig)
T = TypeVar("T", bound=Task)


@dataclass
class Labelled:
    """Images with what is known of them.

    Attributes:
        train: Those to learn from, with labels or the task's annotations.
        val: Those to measure on.
        classes: Names of the classes.
        rows: What should be known of all that, name and value.
    """

    train: ImageSet
    val: ImageSet
    classes: list[str]
    rows: list[tuple[str, str]]


@dataclass
class Results:
    """What a fine-tuning came to.

    Attributes:
        scores: Lines to close with.
        files: What was written, name and path.
        next: Commands that go on from it.
    """

    scores: list[str]
    files: list[tuple[str, Path]]
    next: list[str]


class LabelledTask(Generic[C, T]):
    """One task that is learned from labels.

    The run folder keeps the images, their labels, and the names of the classes; what else is known
    of an image, its source tells again. So nothing but these may be asked for when a run goes on.
    """

    annotations: ClassVar[frozenset[Annotation]] = frozenset()
    """What else of a source a batch carries; see ``Batch``."""

    def gather(self, config: C, pixels: PixelFormat) -> Labelled:
        """Find labelled images, check them, and split them.

        Raises:
            DataError: There are none to learn from, or what is known of them cannot be.
        """
        raise NotImplementedError

    def begin(
        self,
        config: C,
        start: Encoder | None,
        size: tuple[int, int],
        images: ImageSet,
        *,
        classes: Sequence[str],
        world: World,
    ) -> T:
        """What is trained, with its first weights, on the device.

        Args:
            config: How to train; its encoder is that of ``start``.
            start: Gives the encoder its weights, and stays as it is; None: they are random.
            size: Height and width in pixels.
            images: To learn from.
            classes: Names of the classes; some may have no image.
            world: The processes.
        """
        raise NotImplementedError

    def build(
        self,
        config: C,
        size: tuple[int, int],
        images: ImageSet,
        *,
        classes: Sequence[str],
        world: World,
    ) -> T:
        """The same, whose weights come from a checkpoint."""
        raise NotImplementedError

    def looks(self, task: T, val: ImageSet, world: World) -> list[Look]:
        """What progress is measured by, in all processes; see ``simmim.runs.metrics.NAMES``."""
        raise NotImplementedError

    def finish(
        self, config: C, task: T, val: ImageSet, *, run: Path, world: World
    ) -> Results | None:
        """Measure at the end with all processes, and write what comes of it; None: not the first.

        The report on it is ``simmim.report``'s, by the kind of the task.
        """
        raise NotImplementedError


AnyTask = LabelledTask[Any, Any]
