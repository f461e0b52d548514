"""What the commands are asked that train several times to answer one question."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simmim.config.checks import check_fraction, check_once, check_positive
from simmim.config.run import budget_seconds
from simmim.errors import ConfigError

FEWER_FROM = 300
"""More labels than these are drawn ``FEWER`` times at most: draws differ little then."""
FEWER = 3
LEAST_STEPS = 200
"""Of a training, however few labels it has."""
RATES = (1e-3, 3e-3, 1e-2)
"""Rates per 256 images that each start is tried with."""


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """How many labels is pretraining worth?"""

    data: str
    """Images: a folder with one folder per class, shards or a table; or any with `--labels`."""
    init_from: str
    """The start to judge: a run, a file of weights, a folder, timm:NAME or hf:REPO."""
    against: tuple[str, ...] = ()
    """Further starts to compare with, beside training from scratch; may be given several times."""
    task: Literal["classify"] = "classify"
    """What the labels are for."""
    protocol: Literal["finetune", "linear"] = "finetune"
    """Train all of the encoder, or a logistic regression on its features as they are."""
    labels: Path | None = None
    """CSV or JSONL with a path and a label column; default: the folder an image lies in."""
    val: str | None = None
    """Images to measure on; default: a share of DATA."""
    val_share: float = 0.2
    """Share of DATA kept for measuring where `--val` is not given; between 0 and 1."""
    counts: tuple[int, ...] = ()
    """Numbers of labels, such as 50,100,300; default: five, up to all that there are."""
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

    def draws_of(self, count: int) -> int:
        """How often so many labels are drawn."""
        return self.draws if count <= FEWER_FROM else min(FEWER, self.draws)


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
