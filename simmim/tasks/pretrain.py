"""Pretraining: the task, and how a run is prepared and taken to its end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from simmim.config.models import find
from simmim.config.optim import Role
from simmim.config.resolved import PixelFormat, Resolved
from simmim.config.run import PretrainConfig, budget_seconds, check_grid
from simmim.data.loading.cache import ImageCache, loss_in_words, pick_cache
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream
from simmim.data.loading.quarantine import Quarantine
from simmim.data.sources.listing import Listing
from simmim.machine import pick_workers
from simmim.masking.samplers import Masker, Sampler
from simmim.models.mim import MaskedImageModel, build_model
from simmim.runs.checkpoints import Checkpoint, Checkpoints
from simmim.runs.files import check_space
from simmim.tensors.batch import Batch
from simmim.tensors.patches import normalise
from simmim.training import resolve
from simmim.training.loop import Look, Watcher, train
from simmim.training.plan import Plan
from simmim.training.stop import StopSignal
from simmim.training.task import Task
from simmim.training.world import World

Start = Callable[[MaskedImageModel], None]


class PretrainTask(Task):
    """Mask, encode, decode, compare."""

    def __init__(
        self, model: MaskedImageModel, config: PretrainConfig, sampler: Sampler | None = None
    ) -> None:
        super().__init__(model)
        self.model = model
        self.masker = Masker(config.mask, model.grid, model.encoder.stride, config.seed, sampler)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The model's losses under masks that follow from the batch's places in the run."""
        return self.call(batch, self.masker.draw(batch))

    def inputs(self, batch: Batch) -> Tensor:
        """See ``Task``."""
        return normalise(batch.images, self.model.pixels)

    def roles(self) -> dict[str, tuple[Role, int]]:
        """Those of the model."""
        return self.model.roles()

    def after_step(self, step: int) -> None:
        """A target with a teacher moves it here."""
        self.model.target.after_step(step)


@dataclass(frozen=True)
class Images:
    """The images of a run: those trained on, those held out, and how their values are read."""

    train: Listing
    held: Listing
    pixels: PixelFormat
    weights: tuple[float, ...] = ()

    def training(self, cache: ImageCache | None = None) -> ImageSet:
        """What the loader reads."""
        return ImageSet(self.train, self.pixels, cache=cache)

    def holdout(self) -> ImageSet:
        """What progress is measured on: images held out, or, without any, some trained on."""
        return ImageSet(self.held if len(self.held) else self.train[:64], self.pixels)


@dataclass
class Prepared:
    """A run that is ready to start."""

    config: PretrainConfig
    resolved: Resolved
    images: Images
    task: PretrainTask
    stream: TrainStream
    seconds_per_image: float = 0.0
    """Measured before step 0, over all processes; 0 where a run goes on."""

    @property
    def plan(self) -> Plan:
        """The loop's numbers."""
        config, resolved = self.config, self.resolved
        budget, _ = resolve.pick_budget(config, torch.device(resolved.device))
        return Plan(
            steps=resolved.steps,
            earlier=resolved.earlier,
            budget=0.0 if resolved.settled or budget is None else budget_seconds(budget),
            batch_size=resolved.batch_size,
            epoch=resolved.images / resolved.batch_size,
            optim=config.optim,
            precision=resolved.precision,
            seed=config.seed,
            log_every=config.system.log_every,
            save_minutes=config.system.save_minutes,
            look_every=config.system.picture_every,
        )


def build_task(
    config: PretrainConfig, images: Images, world: World, sampler: Sampler | None = None
) -> PretrainTask:
    """The model with its first weights, a function of the seed, on the device."""
    torch.manual_seed(config.seed)
    known = find(config.encoder.model)
    # A name that is not in the table gets 224 for its size and is judged by timm when it is built.
    side = known.size if known else 224
    size = config.encoder.image_size or (side, side)
    model = build_model(config, images.pixels, size)
    check_grid(size, model.encoder.stride, config.mask.unit)
    return PretrainTask(model.to(world.device), config, sampler)


def open_stream(
    config: PretrainConfig,
    images: Images,
    *,
    size: tuple[int, int],
    batch_size: int,
    micro_batch: int,
    world: World,
    quarantine: Quarantine,
    cache: bool,
) -> TrainStream:
    """The training images in the run's order, augmented, in micro-batches of this process."""
    workers = pick_workers(config.system.workers, world.ranks)
    kept = ImageCache(images.train, images.pixels, size) if cache else None
    return TrainStream(
        images.training(kept),
        augment=config.augment,
        size=size,
        seed=config.seed,
        batch_size=batch_size,
        micro_batch=micro_batch,
        workers=workers,
        weights=images.weights,
        rank=world.rank,
        ranks=world.ranks,
        quarantine=quarantine,
    )


def prepare(
    config: PretrainConfig,
    images: Images,
    run: Path,
    world: World,
    start: Start | None = None,
) -> Prepared:
    """Build the model and choose what was left open; nothing is written.

    Args:
        config: What the user asked for.
        images: What to train on.
        run: The run folder, for the space on its disk.
        world: The processes.
        start: Gives the model other weights than random ones.

    Raises:
        CheckpointError: ``start``'s weights do not fit.
        ConfigError: Sizes that do not fit each other, a batch that cannot be shared.
        ResourceError: Too little memory or disk.
    """
    why: dict[str, str] = {}
    threads, why["threads"] = resolve.pick_threads(config)
    torch.set_num_threads(threads)
    task = build_task(config, images, world)
    encoder = task.model.encoder
    if start is not None:
        start(task.model)

    why["lr"] = "--optim.lr, or the recipe's"
    if config.optim.lr is None:
        rate = config.optim.base(encoder.width)
        config = replace(config, optim=replace(config.optim, lr=rate))
        why["lr"] = f"for an encoder {encoder.width} wide"
    sample = _fake_batch(images, encoder.image_size, task.model.pixels.channels)
    count, width = len(images.train), encoder.width
    fit = resolve.pick_fit(task, config, sample, images=count, width=width, world=world, why=why)

    size = encoder.image_size
    quarantine = Quarantine(run / "quarantine.jsonl", config.max_bad, len(images.train))
    cache, why["cache"] = world.share(pick_cache(config.cache, images.train, images.pixels, size))
    if cache:
        why["cache"] += f"; {loss_in_words(size, config.augment.scale[0])}"
    stream = open_stream(
        config,
        images,
        size=size,
        batch_size=fit.batch_size,
        micro_batch=fit.micro_batch,
        world=world,
        quarantine=quarantine,
        cache=cache,
    )

    seconds = resolve.rehearse(task, config, stream, world, fit)
    length = resolve.pick_length(config, count, fit.batch_size, world.device, lambda: seconds)
    why["steps"] = length.why
    resolved = Resolved(
        images=len(images.train),
        holdout=len(images.held),
        image_size=size,
        patch_size=encoder.stride,
        pixels=images.pixels,
        batch_size=fit.batch_size,
        micro_batch=fit.micro_batch,
        steps=length.steps,
        settled=length.settled,
        precision=fit.precision,
        threads=threads,
        device=world.device.type,
        cache=cache,
        why=why,
    )
    parameters = sum(p.nbytes for p in task.module.parameters())
    # Each checkpoint holds weights and two moments; one more is on the disk while it is written.
    check_space(run, parameters * (3 * (config.system.keep + 1) + 1), "The run's checkpoints")
    return Prepared(config, resolved, images, task, stream, seconds)


def reopen(
    config: PretrainConfig,
    resolved: Resolved,
    images: Images,
    run: Path,
    world: World,
    *,
    start: Start | None = None,
) -> Prepared:
    """A run as it was prepared before, from what its folder says; ``start`` as in ``prepare``."""
    torch.set_num_threads(resolved.threads)
    task = build_task(
        replace(config, encoder=replace(config.encoder, image_size=resolved.image_size)),
        images,
        world,
    )
    if start is not None:
        start(task.model)
    resolve.check_batch(resolved.batch_size, None, world)
    quarantine = Quarantine(run / "quarantine.jsonl", config.max_bad, len(images.train))
    stream = open_stream(
        config,
        images,
        size=resolved.image_size,
        batch_size=resolved.batch_size,
        micro_batch=resolved.micro_batch,
        world=world,
        quarantine=quarantine,
        cache=resolved.cache,
    )
    return Prepared(config, resolved, images, task, stream)


def fit(
    prepared: Prepared,
    run: Path,
    world: World,
    *,
    watchers: Sequence[Watcher] = (),
    looks: Sequence[Look] = (),
    resume: Checkpoint | None = None,
    on_save: Callable[[int], None] | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    stop: StopSignal | None = None,
) -> None:
    """Train to the end; see ``simmim.training.loop.train``."""
    try:
        train(
            prepared.task,
            prepared.plan,
            prepared.stream,
            world,
            watchers=watchers if world.leads else (),
            looks=looks,
            checkpoints=Checkpoints(run / "checkpoints", prepared.config.system.keep),
            resume=resume,
            on_save=on_save,
            on_plan=on_plan,
            stop=stop,
        )
    finally:
        prepared.stream.close()


def _fake_batch(images: Images, size: tuple[int, int], channels: int) -> Batch:
    """Two blank images, for counting memory before any file is read."""
    dtype = images.training().dtype
    return Batch(images=torch.zeros(2, channels, *size, dtype=dtype), t=torch.arange(2))
