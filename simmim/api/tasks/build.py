"""The task that a config asks for."""

from typing import assert_never

from simmim.api.tasks.classify import Classify, TellNumber, TellTags
from simmim.api.tasks.detect import Detect, DetectMasks
from simmim.api.tasks.segment import Segment
from simmim.api.tasks.task import AnyTask
from simmim.config.task import (
    Classification,
    Detection,
    MultiLabel,
    Regression,
    Segmentation,
    TaskConfig,
)


def labelled_task(config: TaskConfig) -> AnyTask:
    """Make it; it keeps nothing of the config."""
    match config:
        case Classification():
            return Classify()
        case MultiLabel():
            return TellTags()
        case Regression():
            return TellNumber()
        case Segmentation():
            return Segment()
        case Detection():
            return DetectMasks() if config.masks else Detect()
        case _:
            assert_never(config)
