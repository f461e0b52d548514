"""What a run writes about itself: metrics.jsonl and TensorBoard events."""

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simmim.runs.files import read_lines, write_text

NAMES = {
    "step": ("steps", "completed, from 1"),
    "epoch": ("passes", "over the images"),
    "loss": ("", "what is optimised, a mean over the global batch"),
    "NAME_loss": ("", "of the extra NAME or of that part of a combined target, without its weight"),
    "NAME_gradient": ("share", "of that part's weighted loss in the gradient by the prediction"),
    "loss_sum": ("per image", "sum over the masked patches of the norm of the error"),
    "lr": ("", "rate of the step"),
    "grad_norm": ("", "norm of the gradient before clipping"),
    "skipped": ("steps", "since the row before that were left out: a gradient was not finite"),
    "bad": ("images", "distinct unreadable ones so far"),
    "images_per_s": ("1/s", "since the row before"),
    "data_wait": ("share", "of the time since the row before that went into waiting for images"),
    "time": ("s", "since this process started training"),
    "explained": ("share", "explained detail of held-out images, against the mean colour"),
    "explained_blur": ("share", "the same, against interpolation"),
    "holdout_loss": ("", "the recipe's loss on held-out images"),
    "rank": ("directions", "effective rank (RankMe) of the features of held-out images"),
    "deviation": ("share", "how far these features differ, of their size"),
    "blank": ("share", "of the patches of held-out images that have one colour"),
    "knn": ("share", "accuracy of nearest neighbours, where labels are known"),
    "train_accuracy": ("share", "fine-tuning: accuracy on the images, or pixels, of the step"),
    "accuracy": ("share", "fine-tuning: accuracy on the images to measure on"),
    "map": ("share", "several labels: mean over the classes of the average precision"),
    "f1": ("share", "several labels: F1 over all images and classes together"),
    "f1_macro": ("share", "several labels: the mean over the classes of F1"),
    "r2": ("share", "numbers: of the variance that is explained"),
    "mae": ("", "numbers: mean absolute error, in their own unit"),
    "ap": ("share", "detection: COCO's average precision on the images to measure on"),
    "ap50": ("share", "detection: the same, an overlap of one half counting as found"),
    "ap_mask": ("share", "detection with masks: the average precision of these"),
    "ap50_mask": ("share", "detection with masks: the same, an overlap of one half being enough"),
    "balanced_accuracy": ("share", "fine-tuning: the mean over the classes of their accuracy"),
    "miou": ("share", "segmentation: the mean over the classes of their intersection over union"),
    "pixel_accuracy": ("share", "segmentation: accuracy of pixels of the images to measure on"),
    "entropy_loss": ("", "segmentation: cross-entropy"),
    "dice_loss": ("", "segmentation: the dice loss, without its weight"),
}
"""Every name that may stand in metrics.jsonl, with unit and meaning; see docs/commands.md.

NAME is the kind of an extra, or of a part of a combined target; what else these return is called
NAME_VALUE too.
"""


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a metrics.jsonl in their order, and how many of its lines are none of them."""
    if not path.exists():
        return [], 0
    rows, lost = read_lines(path)
    good = in_order(rows)
    return good, lost + len(rows) - len(good)


def in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that name a step, by step, each step once."""
    good = {row["step"]: row for row in rows if _is_step(row.get("step"))}
    return [row for _, row in sorted(good.items())]


def missing(rows: Sequence[dict[str, Any]], step: int) -> int:
    """How many of the first ``step`` steps have no row."""
    return step - len({row["step"] for row in rows} & set(range(1, step + 1)))


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12


class Metrics:
    """Appends rows to metrics.jsonl and TensorBoard; a failing log never stops training.

    Args:
        run: The run folder.
        step: The step that the run goes on from; later rows of an earlier attempt are dropped.
        tensorboard: Whether to write events too.
        every_step: Whether each step has a row, so that those without one are told.
        warn: Told, once, when a log cannot be written.
    """

    def __init__(
        self,
        run: Path,
        *,
        step: int,
        tensorboard: bool,
        warn: Callable[[str], None],
        every_step: bool = True,
    ) -> None:
        self.path = run / "metrics.jsonl"
        self.warn = warn
        self._warned = False
        self._events = None
        try:
            rows, lost = read_metrics(self.path)
            kept = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step)
            write_text(self.path, kept)
            if lost:
                warn(f"damaged lines of {self.path} that were left out: {lost:,}")
            if every_step and (gone := missing(rows, step)) > lost:
                warn(f"{self.path} has no row of {gone:,} of the {step:,} steps before")
            if tensorboard:
                from torch.utils.tensorboard import SummaryWriter  # slow to import

                self._events = SummaryWriter(str(run), purge_step=step + 1 if step else None)
        except OSError as error:
            self._warn(error)

    def update(self, row: dict[str, float]) -> None:
        """Append a row; values that are not finite become null."""
        clean = {k: v if math.isfinite(v) else None for k, v in row.items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean) + "\n")
            if self._events is not None:
                for name, value in row.items():
                    if name != "step":
                        self._events.add_scalar(name, value, int(row["step"]))
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self.warn(f"metrics could not be written ({error}); training goes on.")
            self._warned = True

    def note(self, text: str) -> None:
        """Not kept: metrics are numbers."""

    def close(self) -> None:
        """Write out what is buffered."""
        if self._events is not None:
            with contextlib.suppress(OSError):  # a full disk was told of before
                self._events.close()
