"""Runs of equal compute with several values of a setting, and which of them is best."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

import numpy as np
from scipy.stats import ttest_1samp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from simmim.config.run import PretrainConfig
from simmim.data.loading.images import ImageSet
from simmim.errors import ConfigError
from simmim.evaluate.detail import Detail, HoldoutSums
from simmim.evaluate.features import extract
from simmim.evaluate.probe import knn, linear
from simmim.evaluate.share import Share
from simmim.interop.continuing import begin
from simmim.interop.load import LoadedEncoder
from simmim.models.mim import MaskedImageModel
from simmim.report.words import count, percent, points
from simmim.studies.raw_rows import Row
from simmim.targets.pixels import Pixels
from simmim.tasks.pretrain import PretrainTask, build_task
from simmim.tensors.counter import Purpose
from simmim.tensors.patches import normalise
from simmim.training.loop import train
from simmim.training.optim import build_optimizer
from simmim.training.prepare import Training, prepare
from simmim.training.step import Stepper, autocast, looking
from simmim.training.world import World

TOLERANCE = 0.02
"""Largest relative difference in FLOPs between two runs."""
LEAST_STEPS = math.ceil(0.5 / TOLERANCE)
"""Fewer steps cannot be rounded to equal compute."""
DOUBT = 0.05
"""Probability at which an order that is none would be taken for sure."""
LEAST_SEEDS = 3
"""Runs of each value before an order can be sure."""
_TIMED = 3


@dataclass(frozen=True)
class Pretrained:
    """What the runs of a study have in common.

    Attributes:
        train: Images that are trained on.
        held: Images that explained detail is measured on.
        known: Labelled images that probes learn from, and those that they are asked about; None:
            there are no labels.
        classes: Number of classes.
        world: The processes.
        workers: Loader processes, for what is measured.
    """

    train: ImageSet
    held: ImageSet
    known: tuple[ImageSet, ImageSet] | None
    classes: int
    world: World
    workers: int = 0


@dataclass(frozen=True)
class Pace:
    """What a step costs.

    Attributes:
        flops: Multiplications and additions of forward, backward and update, each counting one.
        seconds: Median of a few steps.
    """

    flops: int
    seconds: float


def prepared(
    config: PretrainConfig, study: Pretrained, steps: int, seed: int
) -> Training[PretrainConfig, PretrainTask]:
    """A run that is ready to start."""
    pixels, begun = study.train.pixels, None
    config = replace(config, seed=seed)
    if config.init_from is not None:
        begun = begin(config, pixels)
        config, pixels = begun.config, begun.found.pixels
    images = replace(study.train, pixels=pixels)

    def build() -> PretrainTask:
        task = build_task(config, pixels, study.world, images.paths)
        if begun is not None:
            begun.apply(task.model)
        return task

    asked = replace(config, epochs=1.0)  # any: the steps are given
    training = prepare(
        asked, build, images, study.world, weights=config.weights, cache=config.cache
    )
    training.resolved = replace(training.resolved, steps=steps)
    return training


def pace(config: PretrainConfig, study: Pretrained) -> Pace:
    """Count the FLOPs of a step, and time a few, at a rate of 0, which moves no weight."""
    training = prepared(config, study, 1, config.seed)
    plan, world = training.plan, study.world
    stepper = Stepper(
        training.task,
        build_optimizer(training.task.module, training.task.roles(), plan.optim, world),
        batch_size=plan.batch_size,
        precision=plan.precision,
        clip=plan.optim.clip,
        seed=plan.seed,
        world=world,
    )
    training.task.module.train()
    batches, times = training.stream.start(0), []
    try:
        # Of fused attention on a CPU no FLOPs are counted; of the plain one's products all.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            stepper.step(batches, rate=0.0)
        for _ in range(_TIMED):
            began = time.monotonic()
            stepper.step(batches, rate=0.0)
            times.append(time.monotonic() - began)
    finally:
        training.stream.close()
    return Pace(counter.get_total_flops(), statistics.median(times))


def equal_steps(paces: Sequence[Pace], first: int) -> list[int]:
    """Steps of each run, such that all have the FLOPs of ``first`` steps of the first one.

    Raises:
        ConfigError: One of them would have too few to be rounded to within ``TOLERANCE``.
    """
    total = first * paces[0].flops
    steps = [round(total / each.flops) for each in paces]
    if min(steps) < LEAST_STEPS:
        needed = math.ceil(LEAST_STEPS * max(each.flops for each in paces) / paces[0].flops)
        raise ConfigError(
            f"runs of {first:,} steps are too short: one of them would have {min(steps):,}, and "
            f"{LEAST_STEPS} are needed at least for equal compute (within {TOLERANCE:.0%}). Give "
            f"--steps {needed} or more, or a longer --budget."
        )
    return steps


def run(config: PretrainConfig, study: Pretrained, steps: int, seed: int) -> Row:
    """Pretrain, and measure: a row."""
    training = prepared(config, study, steps, seed)
    began = time.monotonic()
    try:
        train(training.task, training.plan, training.stream, study.world)
    finally:
        training.stream.close()
    row: Row = {"seconds": round(time.monotonic() - began, 2)}
    model = training.task.model
    detail = holdout_detail(model, study.held, training.resolved.precision, study.world)
    if detail is not None:
        row |= {"explained": detail.explained, "explained_blur": detail.explained_blur}
    if study.known is not None:
        row |= _probed(LoadedEncoder(model.encoder, model.pixels), study, config)
    return row


def holdout_detail(
    model: MaskedImageModel, images: ImageSet, precision: str, world: World
) -> Detail | None:
    """Explained detail on held-out images; None where the model predicts no pixels."""
    pixels = model.target.within(Pixels)
    if pixels is None:
        return None
    sums = HoldoutSums(model, *pixels)
    own = replace(images, pixels=model.pixels)
    with looking(model):
        for views, _ in Share(own, model.encoder.image_size, world):
            batch = views.to(world.device)
            mask = model.draw(batch, Purpose.HOLDOUT_MASK)
            with autocast(world.device, precision):  # type: ignore[arg-type]
                sums.add(batch, normalise(batch.images, model.pixels), mask)
    return sums.detail()


def _probed(encoder: LoadedEncoder, study: Pretrained, config: PretrainConfig) -> Row:
    assert study.known is not None
    learnt, asked = (extract(encoder, images, workers=study.workers) for images in study.known)
    assert learnt.labels is not None
    assert asked.labels is not None
    pieces = (learnt.features, learnt.labels, asked.features, asked.labels)
    return {
        "knn": knn(*pieces, classes=study.classes).accuracy,
        "linear": linear(*pieces, classes=study.classes, seed=config.seed).accuracy,
    }


@dataclass(frozen=True)
class Order:
    """Values, best first, and how sure that is.

    Attributes:
        values: As they were written.
        means: Over the seeds.
        seeds: Runs of each value.
        ahead: Of each but the last, the mean paired difference to the next.
        errors: The standard error of each of these; not a number with one seed.
        doubts: Of each but the first, the probability that it is as good as the best and differs
            so much by chance (paired t-test, two-sided).
        steps: The same, of each beside the one before it.
    """

    values: list[str]
    means: list[float]
    seeds: int
    ahead: list[float]
    errors: list[float]
    doubts: list[float]
    steps: list[float]

    @property
    def limit(self) -> float:
        """Of a probability, below which a difference is sure: that of all of them together."""
        return DOUBT / (len(self.values) - 1)

    @property
    def sure(self) -> bool:
        """Whether the whole order is sure."""
        return self.seeds >= LEAST_SEEDS and all(doubt < self.limit for doubt in self.steps)

    @property
    def rivals(self) -> list[str]:
        """Values that may be as good as the best."""
        few = self.seeds < LEAST_SEEDS
        pairs = zip(self.values[1:], self.doubts, strict=True)
        return [value for value, doubt in pairs if few or not doubt < self.limit]

    def sentence(self, setting: str) -> str:
        """The recommendation, and how sure it is."""
        best, runs = self.values[0], f"{count(self.seeds, 'seed')} each"
        if self.seeds < 2:
            return (
                f"{setting} {best} came out best ({percent(self.means[0], 1)}), in one run each: "
                "without a second seed nothing is claimed."
            )
        gap = f"{points(self.ahead[0])} ± {100 * self.errors[0]:.1f} points"
        if not self.rivals:
            return (
                f"{setting} {best} is recommended, and that is sure: {percent(self.means[0], 1)}, "
                f"{gap} to the next, {self.values[1]} ({runs}, p < {self.limit:.2g} beside each)."
            )
        return (
            f"{setting} {best} came out best ({percent(self.means[0], 1)}), {gap} to "
            f"{self.values[1]}, but that is not sure ({runs}): as good may be "
            f"{', '.join(self.rivals)}."
        )


def order(
    values: Sequence[str], results: Sequence[Sequence[float] | np.ndarray] | np.ndarray
) -> Order:
    """Order values by results, a row of as many seeds for each; more is better."""
    ranked = sorted(range(len(values)), key=lambda row: -fmean(results[row]))
    rows = [np.array(results[row], float) for row in ranked]
    seeds = len(rows[0])
    gaps = [one - other for one, other in pairwise(rows)]
    return Order(
        values=[values[row] for row in ranked],
        means=[float(row.mean()) for row in rows],
        seeds=seeds,
        ahead=[float(gap.mean()) for gap in gaps],
        errors=[
            float(gap.std(ddof=1) / math.sqrt(seeds)) if seeds > 1 else math.nan for gap in gaps
        ],
        doubts=[_doubt(rows[0] - row) for row in rows[1:]],
        steps=[_doubt(gap) for gap in gaps],
    )


def _doubt(gaps: np.ndarray) -> float:
    """The probability of such differences, where there is none."""
    if len(gaps) < 2 or not gaps.any():
        return 1.0
    if np.ptp(gaps) == 0:
        return 0.0
    return float(np.asarray(ttest_1samp(gaps, 0.0))[1])
