"""What the commands are asked that train several times to answer one question."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from simmim.config.checks import check_fraction, check_once, check_positive
from simmim.config.demo import few_labels
from simmim.config.encoder import Size
from simmim.config.finetune import FINETUNINGS, FinetuneConfig, WholeImageConfig
from simmim.config.run import SystemConfig, budget_seconds
from simmim.config.task import (
    Classification,
    Detection,
    MultiLabel,
    Regression,
    Segmentation,
    TaskConfig,
)
from simmim.errors import ConfigError

FEWER_FROM = 300
"""More labels than these are drawn ``FEWER`` times at most: draws differ little then."""
FEWER = 3
LEAST_STEPS = 200
"""Of a training, however few labels it has."""
DENSE_BATCH = 8
"""Images of a step where each has a mask or boxes."""


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """How many labels is pretraining worth? Of images with a class each."""

    rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3, 1e-2)
    """Per 256 images; each start is tried with all of them."""

    data: str
    """Images: a folder with one folder per class, shards or a table; or any with `--labels`."""
    init_from: str
    """The start to judge: a run, a file of weights, a folder, timm:NAME or hf:REPO."""
    against: tuple[str, ...] = ()
    """Further starts to compare with, beside training from scratch; may be given several times."""
    task: TaskConfig = field(default_factory=Classification)
    protocol: Literal["finetune", "linear"] = "finetune"
    """Train all of the encoder, or a logistic regression on its features as they are."""
    labels: Path | None = None
    """CSV or JSONL with a path and a label column; default: the folder an image lies in."""
    val: str | None = None
    """Images to measure on; default: a share of DATA."""
    val_share: float = 0.2
    """Share of DATA kept for measuring where `--val` is not given; between 0 and 1."""
    image_size: Size | None = None
    """Height and width in pixels that all starts see; default: as `simmim finetune` from RUN."""
    counts: tuple[int, ...] = ()
    """Numbers of labelled images, such as 50,100,300; default: five, up to all there are."""
    draws: int = 5
    """How often labels are drawn anew, at most 3 times where there are more than 300."""
    epochs: float = 20.0
    """Passes over the labels in a training, of 200 steps at least."""
    out: Path | None = None
    """Folder; default: runs/DATE-labels. One that holds such a study is gone on with."""
    seed: int = 0
    """Seed of every random number."""
    workers: int | None = None
    """Loader processes; default: by the number of cores."""

    def __post_init__(self) -> None:
        check_fraction("--val-share", self.val_share, "a share of the images", "The default: 0.2.")
        for name in ("draws", "epochs"):
            check_positive(f"--{name}", getattr(self, name))
        for count in self.counts:
            check_positive("--counts", count)
        for name in ("seed", "workers"):
            if getattr(self, name) is not None:
                check_positive(f"--{name}", getattr(self, name), zero=True)
        check_once("start", [self.init_from, *self.against])
        if self.init_from == "none":
            raise ConfigError(
                "training from scratch is always among the starts; name another one by --from."
            )
        if self.protocol == "linear" and self.task.kind != Classification.kind:
            raise ConfigError(
                f"--protocol linear tells classes of whole images, and --task {self.task.kind} "
                "asks for something else: leave it out."
            )

    @property
    def training(self) -> FinetuneConfig:
        """How each start is fine-tuned, but for the rate and the length."""
        usual = FINETUNINGS[self.task.kind](
            data=(self.data,),
            init_from=self.init_from,
            task=self.task,
            labels=self.labels,
            val=self.val,
            val_share=self.val_share,
            seed=self.seed,
            system=SystemConfig(workers=self.workers),
        )
        if isinstance(usual, WholeImageConfig):
            return few_labels(usual)
        return replace(usual, batch_size=DENSE_BATCH)

    def draws_of(self, count: int) -> int:
        """How often so many labels are drawn."""
        return self.draws if count <= FEWER_FROM else min(FEWER, self.draws)


@dataclass(frozen=True, kw_only=True)
class TagLabelsConfig(LabelsConfig):
    """See ``LabelsConfig``: of images that are of any number of classes."""

    task: TaskConfig = field(default_factory=MultiLabel)


@dataclass(frozen=True, kw_only=True)
class NumberLabelsConfig(LabelsConfig):
    """See ``LabelsConfig``: of images with a number."""

    task: TaskConfig = field(default_factory=Regression)


@dataclass(frozen=True, kw_only=True)
class MaskLabelsConfig(LabelsConfig):
    """See ``LabelsConfig``: of images with masks of classes."""

    rates: ClassVar[tuple[float, ...]] = (3e-3, 1e-2, 3e-2)

    task: TaskConfig = field(default_factory=Segmentation)


@dataclass(frozen=True, kw_only=True)
class BoxLabelsConfig(LabelsConfig):
    """See ``LabelsConfig``: of images with boxes."""

    rates: ClassVar[tuple[float, ...]] = (1e-3, 3e-3, 1e-2)

    task: TaskConfig = field(default_factory=Detection)


LABEL_STUDIES: dict[str, type[LabelsConfig]] = {
    "classify": LabelsConfig,
    "multilabel": TagLabelsConfig,
    "regress": NumberLabelsConfig,
    "segment": MaskLabelsConfig,
    "detect": BoxLabelsConfig,
}
"""What labels may be counted of, by the kind of its task."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Which value of a setting learns best, at equal compute?"""

    over: str = "mask.ratio=0.1,0.25,0.4,0.75"
    """A flag of pretrain and its values; where a value has a comma in it, `;` stands between."""
    budget: str = "1h"
    """Time for all of the study: `--seeds` runs of each value fill it."""
    steps: int | None = None
    """Steps of a run with the first value, in place of those that the budget allows."""
    seeds: int = 5
    """Most runs of each value; fewer where the order is sure before."""
    out: Path | None = None
    """Folder; default: runs/DATE-study. One that holds such a study is gone on with."""

    def __post_init__(self) -> None:
        check_positive("--seeds", self.seeds)
        if self.steps is not None:
            check_positive("--steps", self.steps)
        budget_seconds(self.budget)
        if not self.setting or len(self.values) < 2:
            raise ConfigError(
                f"--over takes a flag of pretrain and two values at least, such as "
                f"mask.ratio=0.25,0.75, got {self.over!r}."
            )
        check_once("value", self.values)

    @property
    def setting(self) -> str:
        """The flag, without dashes."""
        return self.over.partition("=")[0].strip().lstrip("-").replace("_", "-")

    @property
    def values(self) -> list[str]:
        """As they were written."""
        text = self.over.partition("=")[2]
        parts = text.split(";" if ";" in text else ",")
        return [part.strip() for part in parts if part.strip()]
