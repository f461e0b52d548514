"""A training of any task, ready to start: what was left open is chosen once, by rules."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from simmim.config.resolved import Resolved
from simmim.config.run import TrainingConfig, budget_seconds
from simmim.data.loading.cache import ImageCache, loss_in_words, pick_cache
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream
from simmim.data.loading.quarantine import Quarantine
from simmim.machine import pick_workers
from simmim.runs.files import check_space
from simmim.tensors.batch import Batch
from simmim.training import resolve
from simmim.training.optim import moment_bytes
from simmim.training.plan import Plan
from simmim.training.task import Task
from simmim.training.world import World

C = TypeVar("C", bound=TrainingConfig)
T = TypeVar("T", bound=Task)


@dataclass
class Training(Generic[C, T]):
    """A training that is ready to start.

    Attributes:
        config: What was asked for.
        resolved: What was chosen.
        task: What is trained, on its device.
        stream: Training images in the run's order.
        seconds_per_image: Measured before step 0, over all processes; 0 where it was not.
    """

    config: C
    resolved: Resolved
    task: T
    stream: TrainStream
    seconds_per_image: float = 0.0

    @property
    def plan(self) -> Plan:
        """The loop's numbers."""
        config, resolved = self.config, self.resolved
        budget, _ = resolve.pick_budget(config, resolved.images, resolved.device)
        return Plan(
            steps=resolved.steps,
            earlier=resolved.earlier,
            spent=resolved.spent or 0.0,
            budget=0.0 if resolved.spent is None or budget is None else budget_seconds(budget),
            batch_size=resolved.batch_size,
            epoch=resolved.images / resolved.batch_size,
            optim=config.optim,
            precision=resolved.precision,
            seed=config.seed,
            log_every=config.system.log_every,
            save_minutes=config.system.save_minutes,
            look_every=config.system.picture_every,
        )


def prepare(
    config: C,
    build: Callable[[], T],
    images: ImageSet,
    world: World,
    *,
    run: Path | None = None,
    holdout: int = 0,
    weights: tuple[float, ...] = (),
    groups: tuple[int, ...] = (),
    cache: str | None = None,
    quarantine: Quarantine | None = None,
) -> Training[C, T]:
    """Build what is trained and choose what was left open; nothing is written.

    Args:
        config: What the user asked for.
        build: Makes the task with its first weights, a function of the seed, on the device.
        images: What to train on.
        world: The processes.
        run: The run folder, for its list of unreadable images and the space on its disk; None
            keeps nothing.
        holdout: Images kept out of training.
        weights: Shares of several sources.
        groups: Sizes of groups of the images that come alike often; see ``TrainStream``.
        cache: Whether to keep images decoded: on, off, or auto; None: a task that does not ask.
        quarantine: What is known already of unreadable images; None: nothing.

    Raises:
        CheckpointError: Weights to start from that do not fit.
        ConfigError: Sizes that do not fit each other, a batch that cannot be shared.
        DataError: Images that cannot be learned from.
        ResourceError: Too little memory or disk.
        TrainingError: Too many images that cannot be read.
    """
    why: dict[str, str] = {}
    threads, why["threads"] = resolve.pick_threads(config)
    torch.set_num_threads(threads)
    torch.manual_seed(config.seed)
    task = build()
    world.meet()  # what it starts from may have taken a while
    encoder = task.encoder
    size, count = encoder.image_size, len(images)

    why["lr"] = "--optim.lr, or its default"
    if config.optim.lr is None:
        rate = config.optim.base(encoder.width)
        config = replace(config, optim=replace(config.optim, lr=rate))
        why["lr"] = f"for an encoder {encoder.width} wide"
    sample = _fake_batch(images, size)
    fit = resolve.pick_step(
        task, config, sample, images=count, width=encoder.width, world=world, why=why
    )
    keeps = False
    if cache is not None:
        keeps, why["cache"] = world.share(pick_cache(cache, images.paths, images.pixels, size))
    if keeps:
        why["cache"] += f"; {loss_in_words(size, config.augment.scale[0])}"
    resolved = Resolved(
        images=count,
        holdout=holdout,
        image_size=size,
        patch_size=encoder.stride,
        pixels=images.pixels,
        batch_size=fit.batch_size,
        micro_batch=fit.micro_batch,
        steps=0,
        precision=fit.precision,
        threads=threads,
        device=world.device.type,
        cache=keeps,
        why=why,
    )
    stream = _open_stream(config, resolved, images, world, run=run, weights=weights, groups=groups)
    stream.quarantine = quarantine or stream.quarantine
    seconds = 0.0
    if run is not None or resolve.pick_budget(config, count, world.device.type)[0] is not None:
        seconds = resolve.rehearse(task, config, stream, world, fit)
    length = resolve.pick_length(config, count, fit.batch_size, world.device.type, lambda: seconds)
    why["steps"] = length.why
    resolved = replace(resolved, steps=length.steps, spent=length.spent)
    if run is not None:
        saved, _ = resolve.module_bytes(task.module)
        moments = moment_bytes(task.module, task.roles(), config.optim)
        # Each checkpoint holds weights and moments; one more is on the disk as it is written.
        bytes_needed = (saved + moments) * (config.system.keep + 1) + saved
        check_space(run, bytes_needed, "The run's checkpoints")
    return Training(config, resolved, task, stream, seconds)


def reopen(
    config: C,
    resolved: Resolved,
    build: Callable[[], T],
    images: ImageSet,
    world: World,
    *,
    run: Path,
    weights: tuple[float, ...] = (),
    groups: tuple[int, ...] = (),
) -> Training[C, T]:
    """A training as it was prepared before, from what its folder says; see ``prepare``."""
    torch.set_num_threads(resolved.threads)
    torch.manual_seed(config.seed)
    task = build()
    resolve.check_batch(resolved.batch_size, None, world)
    stream = _open_stream(config, resolved, images, world, run=run, weights=weights, groups=groups)
    return Training(config, resolved, task, stream)


def _open_stream(
    config: TrainingConfig,
    resolved: Resolved,
    images: ImageSet,
    world: World,
    *,
    run: Path | None,
    weights: tuple[float, ...],
    groups: tuple[int, ...],
) -> TrainStream:
    """The training images in the run's order, augmented, in micro-batches of this process."""
    size = resolved.image_size
    if resolved.cache:
        images = replace(images, cache=ImageCache(images.paths, images.pixels, size))
    file = None if run is None else run / "quarantine.jsonl"
    return TrainStream(
        images,
        augment=config.augment,
        size=size,
        seed=config.seed,
        batch_size=resolved.batch_size,
        micro_batch=resolved.micro_batch,
        workers=pick_workers(config.system.workers, world.ranks),
        weights=weights,
        groups=groups,
        rank=world.rank,
        ranks=world.ranks,
        quarantine=Quarantine(file, config.max_bad, images.paths),
    )


def _fake_batch(images: ImageSet, size: tuple[int, int]) -> Batch:
    """Two blank images, for counting memory before any file is read."""
    blank = torch.zeros(2, images.pixels.channels, *size, dtype=images.dtype)
    labels = None if images.labels is None else torch.tensor([images.labels[0]] * 2)
    maps = torch.zeros(2, *size, dtype=torch.int32) if "maps" in images.annotations else None
    return Batch(
        blank,
        torch.arange(2),
        labels,
        torch.arange(2) % len(images),
        maps=maps,
        **(_fake_boxes(images, size) if "boxes" in images.annotations else {}),
    )


def _fake_boxes(images: ImageSet, size: tuple[int, int]) -> dict[str, Any]:
    """As many boxes as there are at most, each of a sixteenth of the image."""
    shape = 2, images.paths.most_boxes
    corners = torch.tensor([0.0, 0.0, size[1] / 4, size[0] / 4])
    masks = {}
    if "masks" in images.annotations:
        masks["masks"] = torch.full((*shape, size[0], -(-size[1] // 8)), 255, dtype=torch.uint8)
    return {
        **masks,
        "boxes": corners.expand(*shape, 4),
        "categories": torch.zeros(shape, dtype=torch.int64),
        "crowd": torch.zeros(shape, dtype=torch.bool),
        "valid": torch.ones(shape, dtype=torch.bool),
    }
