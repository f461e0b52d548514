"""A fine-tuning that keeps nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from simmim.config.finetune import FinetuneConfig
from simmim.data.loading.images import ImageSet
from simmim.interop.load import LoadedEncoder
from simmim.models.build import describe_encoder
from simmim.tasks.freeze import trainable
from simmim.training.loop import train
from simmim.training.prepare import prepare
from simmim.training.readings import Watcher
from simmim.training.task import Task
from simmim.training.world import World

C = TypeVar("C", bound=FinetuneConfig)
T = TypeVar("T", bound=Task)


def train_in_memory(
    config: C,
    begin: Callable[[C], T],
    start: LoadedEncoder,
    images: ImageSet,
    *,
    world: World,
    groups: tuple[int, ...] = (),
    watchers: Sequence[Watcher] = (),
) -> T:
    """Begin a task and train it to the end.

    Args:
        config: How; nothing is left open but what ``prepare`` chooses, and its encoder.
        begin: Makes the task, given the config with the encoder in it.
        start: What the task begins from.
        images: What to train on, as ``start`` reads them.
        world: The processes.
        groups: See ``prepare``.
        watchers: Told of each row.

    Raises:
        DivergedError: The training went astray.
    """
    described = describe_encoder(start.encoder, config.encoder.drop_path)
    config = replace(config, encoder=described)
    training = prepare(
        config, lambda: trainable(begin(config), config), images, world, groups=groups
    )
    try:
        train(training.task, training.plan, training.stream, world, watchers=watchers)
    finally:
        training.stream.close()
    return training.task
