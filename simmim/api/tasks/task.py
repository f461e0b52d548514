"""What a fine-tuning asks of its task, from labelled images to results."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from simmim.config.finetune import FinetuneConfig
from simmim.config.resolved import PixelFormat
from simmim.data.loading.images import Annotation, ImageSet
from simmim.models.encoder import Encoder
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
        facts: What else the task knows of them, as JSON; the run folder keeps it.
        rows: What should be known of all that, name and value, when the run begins.
    """

    train: ImageSet
    val: ImageSet
    classes: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[str, str]] = field(default_factory=list)


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

    The run folder keeps what ``gather`` returned, but for its rows, so that all else is given the
    same when a run goes on. What the sources tell of an image, they tell again.
    """

    annotations: ClassVar[frozenset[Annotation]] = frozenset()
    """What else of a source a batch carries; see ``Batch``."""
    figure: ClassVar[tuple[str, str]]
    """The one that label curves are drawn of, more of it is better: its name, and it in words."""

    def gather(self, config: C, pixels: PixelFormat) -> Labelled:
        """Find labelled images, check them, and split them.

        Raises:
            DataError: There are none to learn from, or what is known of them cannot be.
        """
        raise NotImplementedError

    def fit(self, config: C, size: tuple[int, int], labelled: Labelled) -> C:  # noqa: ARG002
        """The config with what follows from what is trained on.

        Args:
            config: What was asked for.
            size: Height and width of a view in pixels.
            labelled: What is learned from.

        Raises:
            ConfigError: Something was asked for that it does not allow.
        """
        return config

    def check_step(self, config: C, rows: tuple[int, int]) -> None:
        """Raise ``ConfigError`` where a batch must not be cut so.

        Args:
            config: How to train.
            rows: Images of a step in each process, and at once.
        """

    def regularisation(self, config: C) -> list[tuple[str, str, str]]:  # noqa: ARG002
        """What keeps it from learning by heart: name, value, and why, for the header."""
        return []

    def groups(self, config: C, labelled: Labelled) -> tuple[int, ...]:  # noqa: ARG002
        """Sizes of groups of the training images, one after another, that come alike often.

        None: each image comes once in an epoch.
        """
        return ()

    def begin(
        self,
        config: C,
        start: Encoder | None,
        size: tuple[int, int],
        labelled: Labelled,
        world: World,
    ) -> T:
        """What is trained, with its first weights, on the device.

        Args:
            config: How to train; its encoder is that of ``start``.
            start: Gives the encoder its weights, and stays as it is; None: they are random.
            size: Height and width in pixels.
            labelled: What is learned from; some classes may have no image.
            world: The processes.
        """
        raise NotImplementedError

    def build(self, config: C, size: tuple[int, int], labelled: Labelled, world: World) -> T:
        """The same, whose weights come from a checkpoint."""
        raise NotImplementedError

    def measure(
        self, task: T, images: ImageSet, *, world: World, workers: int = 0
    ) -> dict[str, float]:
        """How well images are told, in all processes; see ``simmim.runs.metrics.NAMES``.

        Nothing is chosen by it, but by ``simmim labels``, which sets images aside for that.
        """
        raise NotImplementedError

    def present(self, labelled: Labelled) -> np.ndarray:
        """Which classes (n, classes) each image to learn from has something of."""
        raise NotImplementedError

    def draw(self, labelled: Labelled, rows: np.ndarray) -> Labelled:
        """The same with some of the images to learn from alone, by their places, which rise.

        Raises:
            DataError: From these nothing can be learned.
        """
        return replace(labelled, train=labelled.train.select(rows))

    def without_looking(self, labelled: Labelled) -> str:  # noqa: ARG002
        """What does not look at the images measured on reaches, in words; empty: not known."""
        return ""

    def finish(
        self, config: C, task: T, labelled: Labelled, *, run: Path, world: World
    ) -> Results | None:
        """Measure at the end with all processes, and write what comes of it; None: not the first.

        The report on it is ``simmim.report``'s, by the kind of the task.
        """
        raise NotImplementedError


AnyTask = LabelledTask[Any, Any]
