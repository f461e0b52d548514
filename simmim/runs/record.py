"""What a run folder says about its run, read so that a torn or missing file is a remark."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim.errors import CheckpointError
from simmim.runs.metrics import in_order, missing
from simmim.runs.remarks import config_of, finite, json_of, lines_of, mapping

if TYPE_CHECKING:  # imported where they are needed: a mistake is answered before
    import numpy as np

Row = Mapping[str, object]
"""What was logged at one step."""


@dataclass(kw_only=True)
class Record:
    """The files of a run folder."""

    run: Path
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Rows of metrics.jsonl in the order of their steps, each step once."""
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[tuple[int, Path]] = field(default_factory=list)
    """Step and file of each readable picture of reconstructions, in order."""
    problems: list[str] = field(default_factory=list)
    """What was missing or damaged, in sentences."""

    @property
    def resolved(self) -> dict[str, Any]:
        """What rules chose for the run; empty where config.yaml does not say."""
        return mapping(self.config.get("resolved"))

    @property
    def step(self) -> int:
        """The last step logged; 0 before the first."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def steps(self) -> int:
        """Steps planned, or 0 where config.yaml does not say."""
        steps = self.resolved.get("steps")
        return steps if isinstance(steps, int) else 0

    @property
    def seconds(self) -> float:
        """Time trained, over all attempts: each begins at 0 again."""
        total = last = 0.0
        for moment in column(self.rows, "time")[1]:
            total += moment - last if moment >= last else moment
            last = moment
        return float(total)

    @property
    def skipped(self) -> int:
        """Steps that were left out, since no gradient was finite."""
        return int(column(self.rows, "skipped")[1].sum())

    def last(self, key: str) -> float | None:
        """The last finite value of ``key``."""
        values = column(self.rows, key)[1]
        return float(values[-1]) if len(values) else None

    def lost(self, key: str) -> bool:
        """Whether the last value of ``key`` is no finite number."""
        values = [row[key] for row in self.rows if key in row]
        return bool(values) and not finite(values[-1])


def read_run(run: Path) -> Record:
    """Read the folder ``run``.

    Raises:
        CheckpointError: There is no such folder.
    """
    if not run.is_dir():
        raise CheckpointError(
            f"no run folder at {run}. Give the folder that `simmim pretrain` wrote (it holds "
            "config.yaml and metrics.jsonl)."
        )
    record = Record(run=run)
    record.config = config_of(run / "config.yaml", record.problems)
    record.data = json_of(run / "data.json", "what the images are", record.problems)
    record.environment = json_of(run / "environment.json", "the machine", record.problems)
    rows = lines_of(run / "metrics.jsonl", record.problems, needed=True)
    record.rows = in_order(rows)
    if len(record.rows) < len(rows):
        lost = len(rows) - len(record.rows)
        record.problems.append(
            f"metrics.jsonl: {lost:,} rows without a step of their own left out."
        )
    saved = [int(each.name[5:]) for each in run.glob("checkpoints/step-" + "[0-9]" * 8)]
    steps = max([record.step, *saved])
    every_step = mapping(record.config.get("system")).get("log_every") == 0
    if every_step and (gone := missing(record.rows, steps)):
        record.problems.append(f"metrics.jsonl has no row of {gone:,} of {steps:,} steps.")
    record.quarantine = lines_of(run / "quarantine.jsonl", record.problems, needed=False)
    record.pictures = _pictures(run / "pictures", record.problems)
    return record


def _pictures(folder: Path, problems: list[str]) -> list[tuple[int, Path]]:
    from PIL import Image

    found, torn = [], 0
    for file in sorted(folder.glob("step-*.png")):
        step = re.fullmatch(r"step-(\d+)", file.stem)
        if step is None:
            continue
        try:
            with Image.open(file) as image:
                image.load()
            found.append((int(step[1]), file))
        except (OSError, SyntaxError, ValueError):
            torn += 1
    if torn:
        problems.append(f"pictures: {torn} left out, damaged or half written.")
    return found


def column(rows: Sequence[Row], key: str) -> "tuple[np.ndarray, np.ndarray]":
    """Steps and values of all ``rows`` that have a finite number under ``key``."""
    import numpy as np

    found = [
        (row["step"], row[key]) for row in rows if finite(row.get("step")) and finite(row.get(key))
    ]
    pairs = np.array(found, dtype=float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]
