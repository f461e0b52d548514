"""What is chosen automatically, once, before step 0, by a rule."""

import math
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from simmim.config.optim import OptimConfig
from simmim.config.run import TrainingConfig, budget_seconds
from simmim.data.loading.loader import TrainStream
from simmim.errors import ConfigError, ResourceError, running
from simmim.machine import available_memory, cores, pick_precision
from simmim.runs.stop import listen
from simmim.tensors.batch import Batch
from simmim.training.optim import build_optimizer, moment_bytes
from simmim.training.step import Stepper, autocast
from simmim.training.task import Task
from simmim.training.world import World

_LARGEST_MICRO_BATCH = {"cpu": 64}  # more gains nothing on a CPU
_SHARE_OF_MEMORY = 0.7
_REHEARSAL_SECONDS = 1.5
_BUDGET_REHEARSAL_SECONDS = 5.0


def pick_batch_size(
    images: int, limits: tuple[int, int] = TrainingConfig.limits
) -> tuple[int, str]:
    """The largest power of two that is at most ``images``/16, within the limits."""
    power = 2 ** int(math.log2(max(images / 16, 1)))
    least, most = limits
    why = f"the largest power of two up to {images:,} images / 16, within {least} … {most}"
    return min(max(power, least), most), why


def activation_bytes(
    task: Task,
    batch: Batch,
    device: torch.device,
    precision: Literal["fp32", "bf16", "fp16"],
) -> int:
    """Bytes per image that a forward pass keeps for the backward pass.

    They are counted on tensors without memory, so that what does not fit is found without trying;
    a part that reads values, which these have not, is tried on two images.
    """

    def kept(rows: int) -> int:
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            # Weights are kept anyway; what autocast makes of them is the same for any batch.
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
            alive.append(storage)
            return tensor

        alive: list[torch.UntypedStorage] = []

        def run(mode: AbstractContextManager[object]) -> None:
            storages.clear()
            hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
            with mode, hooks, autocast(device, precision):
                task.loss(batch.head(rows).to(device))

        try:
            run(FakeTensorMode(allow_non_fake_inputs=True))
        except RuntimeError:  # of many classes; a fault of the model itself comes again
            run(nullcontext())
        return sum(storages.values())

    # The difference of two sizes leaves out what does not grow with the batch. What a signal raises
    # in a hook would end the process.
    with listen() as stop, stop.waiting():
        size = max(1, kept(2) - kept(1))
    if not stop.waits:
        stop.check()
    return size


def module_bytes(module: nn.Module) -> tuple[int, int]:
    """Bytes of all weights and buffers that are saved, and of those weights that are trained."""
    saved = sum(value.nbytes for value in module.state_dict().values())
    return saved, sum(p.nbytes for p in module.parameters() if p.requires_grad)


def pick_micro_batch(
    task: Task, optim: OptimConfig, share: int, per_image: int, world: World
) -> tuple[int, str]:
    """Images per forward pass: what fits in the memory that is free.

    Args:
        task: Its weights need gradients beside them.
        optim: And moments.
        share: Images per step of this process.
        per_image: Bytes of activations.
        world: Its device.

    Raises:
        ResourceError: Not even one image fits.
    """
    free = available_memory(world.device)
    weights, trained = module_bytes(task.module)
    moments = moment_bytes(task.module, task.roles(), optim)
    # On a CPU the weights are there.
    fixed = trained + moments + (weights if world.device.type != "cpu" else 0)
    room = free * _SHARE_OF_MEMORY - fixed
    # Backward passes and temporary copies take about as much again as one layer keeps.
    fits = int(room / (per_image * 1.25))
    if fits < 1:
        raise ResourceError(
            f"not enough memory: one image needs {(fixed + per_image * 1.25) / 1e9:.2f} GB with "
            f"this model's gradients and moments, and {free * _SHARE_OF_MEMORY / 1e9:.2f} GB can "
            f"be used ({_SHARE_OF_MEMORY:.0%} of what is free). Use a smaller --model or "
            "--image-size."
        )
    limit = _LARGEST_MICRO_BATCH.get(world.device.type, share)
    size = min(share, limit, fits)
    if size < share:
        size = 2 ** int(math.log2(size))
    why = (
        f"{per_image / 1e6:.3g} MB an image, {room / 1e9:.1f} GB free"
        if size == share or size > fits // 2
        else f"more than {limit} gains nothing on this device"
    )
    return size, why


@dataclass(frozen=True)
class StepSettings:
    """How the work of a step is cut, and its arithmetic."""

    batch_size: int
    micro_batch: int
    precision: Literal["fp32", "bf16", "fp16"]


def pick_step(
    task: Task,
    config: TrainingConfig,
    sample: Batch,
    *,
    images: int,
    width: int,
    world: World,
    why: dict[str, str],
) -> StepSettings:
    """What ``config`` leaves open of batch, micro-batch and precision.

    Args:
        task: What is trained.
        config: What the user asked for.
        sample: Two rows such as the task takes; their values do not matter.
        images: Images per epoch.
        width: Of the encoder.
        world: The processes.
        why: The rule behind each choice is put in here.

    Raises:
        ConfigError: A batch that the processes cannot share.
        ResourceError: Too little memory.
    """
    batch_size, why["batch_size"] = config.batch_size, "--batch-size"
    if batch_size is None:
        batch_size, why["batch_size"] = pick_batch_size(images, config.limits)
    check_batch(batch_size, config.micro_batch, world)
    precision, why["precision"] = config.precision, "--precision"
    if precision == "auto":
        precision, why["precision"] = pick_precision(world.device, width)
    per_image = activation_bytes(task, sample, world.device, precision)
    share = batch_size // world.ranks
    micro_batch, why["micro_batch"] = pick_micro_batch(task, config.optim, share, per_image, world)
    if config.micro_batch is not None:
        micro_batch, why["micro_batch"] = config.micro_batch, "--micro-batch"
    return world.share(StepSettings(batch_size, micro_batch, precision))


def rehearse(
    task: Task,
    config: TrainingConfig,
    stream: TrainStream,
    world: World,
    fit: StepSettings,
) -> float:
    """Seconds per image of real steps on real batches, at a rate of 0, which moves no weight.

    At least three steps, of one micro-batch each; longer where the length of the run hangs on it.
    """
    seconds = _REHEARSAL_SECONDS if config.epochs is not None else _BUDGET_REHEARSAL_SECONDS
    rows = fit.micro_batch * world.ranks
    stepper = Stepper(
        task,
        build_optimizer(task.module, task.roles(), config.optim, world),
        batch_size=rows,
        precision=fit.precision,
        clip=config.optim.clip,
        seed=config.seed,
        world=world,
    )
    task.module.train()
    whole = (batch for batch in stream.start(0) if len(batch.t) == fit.micro_batch)
    times = []
    began = time.monotonic()
    # All processes make the same number of steps, since each step waits for all.
    with running():
        while len(times) < 3 or not world.any(time.monotonic() - began >= seconds):
            start = time.monotonic()
            stepper.step(whole, rate=0.0)
            times.append(time.monotonic() - start)
    # The first step starts the loader and fills caches.
    return world.share(statistics.median(times[1:]) / rows)


@dataclass(frozen=True)
class Length:
    """How long a run is, and why."""

    steps: int
    why: str
    spent: float | None = None
    """See ``Resolved``."""


def pick_length(
    config: TrainingConfig,
    images: int,
    batch_size: int,
    device: str,
    measure: Callable[[], float],
) -> Length:
    """Steps of the run, from epochs or from a time budget.

    Args:
        config: Its ``epochs`` or ``budget``; without both, its own rule.
        images: Images per epoch.
        batch_size: Images per step over all processes.
        device: Such as ``cpu``; the rule may hang on it.
        measure: Seconds per image over all processes; called for a budget alone.
    """
    budget, why = pick_budget(config, images, device)
    if budget is None:
        epochs, reason = config.epochs, "--epochs"
        if epochs is None:
            epochs, reason = config.usual_length(images, device)
        steps = math.ceil(float(epochs) * images / batch_size - 1e-9)
        return Length(max(1, steps), f"{epochs:g} epochs ({reason})")
    seconds = budget_seconds(budget)
    per_step = measure() * batch_size
    steps = max(1, int(seconds / per_step))
    return Length(steps, f"{budget} at {per_step:.2g} s a step, measured ({why})", spent=0.0)


def pick_budget(config: TrainingConfig, images: int, device: str) -> tuple[str | None, str]:
    """The time that a run is to take, or None, and why; arguments as for ``pick_length``."""
    if config.epochs is None and config.budget is None:
        length, why = config.usual_length(images, device)
        return (length, why) if isinstance(length, str) else (None, why)
    return config.budget, "--budget"


def pick_threads(config: TrainingConfig) -> tuple[int, str]:
    """CPU threads of this process."""
    if config.threads is not None:
        return config.threads, "--threads"
    return cores(), "the cores that this process may use"


def check_batch(batch_size: int, micro_batch: int | None, world: World) -> None:
    """Raise ``ConfigError`` where processes cannot share the batch evenly."""
    if batch_size % world.ranks:
        raise ConfigError(
            f"--batch-size {batch_size} cannot be shared evenly by {world.ranks} processes; "
            f"use {math.ceil(batch_size / world.ranks) * world.ranks}."
        )
    if micro_batch is not None and micro_batch > batch_size // world.ranks:
        raise ConfigError(
            f"--micro-batch {micro_batch} is larger than this process's share of the batch, "
            f"{batch_size // world.ranks}."
        )
