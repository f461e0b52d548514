"""Which runs a folder holds, and how each of them stands: told in moments, without torch."""

import datetime
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from simmim.errors import CheckpointError
from simmim.runs.files import FAILED
from simmim.runs.lock import LOCK, holder_of
from simmim.runs.remarks import config_of, finite, json_of, mapping
from simmim.runs.states import read_state, step_folders

State = Literal["running", "finished", "stopped", "failed", "damaged"]

FIGURES: Mapping[str, tuple[str, ...]] = {
    "pretrain": ("explained", "knn", "explained_blur", "holdout_loss"),
    "classify": ("accuracy", "balanced_accuracy"),
    "multilabel": ("map", "f1", "f1_macro"),
    "regress": ("r2", "mae"),
    "segment": ("miou", "pixel_accuracy"),
    "detect": ("ap", "ap50", "ap_mask", "ap50_mask"),
}
"""What is measured in looks on images that are not learned from, by task, the main figure first."""
LOWER = ("holdout_loss", "mae")
"""Of these the lowest is the best."""

_FILES = {"config.yaml", "environment.json", "images.json", "metrics.jsonl", "encoder.json", LOCK}
"""A folder with two of these is taken for a run's."""
_TIME = re.compile(rb'"time": ([0-9.]+(?:e[-+]?[0-9]+)?)')


class Figure(NamedTuple):
    """Of all looks of a run."""

    best: float
    last: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a run stands."""

    folder: Path
    state: State
    why: str = ""
    """Who writes it, with what it failed, or what is damaged."""
    task: str = ""
    recipe: str = ""
    """Of a pretraining; of a fine-tuning, what it began with."""
    model: str = ""
    data: tuple[str, ...] = ()
    step: int = 0
    """The last step that was logged."""
    saved: int = 0
    """The step of the newest checkpoint, or of the encoder."""
    steps: int | None = None
    """Steps in all; None: not planned yet."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    seconds: float = 0.0
    """Time trained, over all attempts."""
    written: float = 0.0
    """When anything was logged last, in seconds since 1970."""
    remarks: Sequence[str] = ()
    """What else is missing or damaged."""

    @property
    def command(self) -> str:
        """The command that trains it."""
        return "pretrain" if self.task == "pretrain" else "finetune"

    @property
    def resume(self) -> str:
        """What goes on with it."""
        return shlex.join(["simmim", self.command, "--resume", str(self.folder)])

    @property
    def main(self) -> str | None:
        """The name of the first figure of its task that was measured."""
        return next((name for name in FIGURES.get(self.task, ()) if name in self.figures), None)

    @property
    def facts(self) -> dict[str, Any]:
        """All of it, for JSON."""
        stopped = self.state in ("stopped", "failed")
        written = datetime.datetime.fromtimestamp(self.written).astimezone()
        return {
            "name": self.folder.resolve().name,
            **vars(self),
            "folder": str(self.folder),
            "figures": {name: figure._asdict() for name, figure in self.figures.items()},
            "written": written.isoformat(timespec="seconds"),
            "resume": self.resume if stopped else None,
        }


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The runs below a folder, the one that was written last first."""

    runs: Sequence[Run]
    others: Sequence[str]
    """Folders in it that hold no run, by their names."""
    unread: Sequence[str]
    """Folders that could not be looked into, and why."""


def runs_below(folder: Path) -> Overview:
    """Look at all runs in a folder, and in folders in it; the folder may be a run itself.

    Raises:
        CheckpointError: There is no such folder.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}, so no run in it.")
    unread: list[str] = []
    found, runs = list(_run_folders(folder, unread)), []
    for each in found:
        try:
            runs.append(run_at(each))
        except OSError as error:
            unread.append(f"{each} ({error.strerror})")
    with_runs = {each.relative_to(folder).parts[:1] for each in found}
    others = () if () in with_runs else _others(folder, {each[0] for each in with_runs if each})
    newest = sorted(runs, key=lambda run: (run.written, run.folder.name), reverse=True)
    return Overview(runs=newest, others=others, unread=unread)


def run_at(folder: Path) -> Run:
    """How the run in a folder stands; what is damaged in it is told, never raised."""
    problems: list[str] = []
    config = config_of(folder / "config.yaml", problems)
    resolved = mapping(config.get("resolved"))
    remarks: list[str] = []
    saved = _saved(folder, problems, remarks)
    if saved and config and not resolved:
        problems.append("config.yaml lacks what was resolved for the run: it is an older one.")
    task = str(mapping(config.get("task")).get("kind") or "pretrain") if config else ""
    steps = resolved.get("steps")
    logged = _logged(folder / "metrics.jsonl", FIGURES.get(task, ()), remarks)
    state, why = _state(folder, problems, steps if isinstance(steps, int) else None, saved)
    begun = config.get("recipe") if task == "pretrain" else f"from {config.get('init_from')}"
    data = config.get("data")
    return Run(
        folder=folder,
        state=state,
        why=why,
        task=task,
        recipe=str(begun) if config else "",
        model=str(mapping(config.get("encoder")).get("model", "")),
        data=tuple(map(str, data)) if isinstance(data, list) else (),
        saved=saved,
        steps=steps if isinstance(steps, int) else None,
        written=_written(folder),
        remarks=[*problems[1 if state == "damaged" else 0 :], *remarks],
        **logged,
    )


def _state(folder: Path, problems: list[str], steps: int | None, saved: int) -> tuple[State, str]:
    holder = holder_of(folder)
    if holder is not None:
        return "running", holder
    if problems:
        return "damaged", problems[0]
    failure = _failure(folder / "log.txt")
    if failure is not None:
        return "failed", failure
    if steps is None or saved < steps:
        return "stopped", "" if saved else "before its first checkpoint"
    if not (folder / "report.html").is_file():
        return "stopped", "after its last step, before its results were written"
    return "finished", ""


def _failure(log: Path) -> str | None:
    """What the last attempt failed with, where it did."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 10_000))
            last = file.read().decode("utf-8", "replace").rstrip().rpartition("\n")[2]
    except OSError:
        return None
    return last.removeprefix(FAILED) if last.startswith(FAILED) else None


def _saved(folder: Path, problems: list[str], remarks: list[str]) -> int:
    """The step of the newest checkpoint that looks whole; where all were deleted, the encoder's."""
    damaged = []
    for each in step_folders(folder / "checkpoints"):
        try:
            step = int(read_state(each)["step"])
        except (CheckpointError, ValueError, KeyError, TypeError) as error:
            damaged.append(str(error))
            continue
        remarks += [f"a checkpoint is passed over: {each}" for each in damaged]
        return step
    if damaged:
        problems.append(f"every checkpoint is damaged: {damaged[0]}")
    if damaged or not (folder / "encoder.json").is_file():
        return 0
    encoder = json_of(folder / "encoder.json", "the encoder", problems)
    step = mapping(encoder.get("lineage")).get("step")
    return step if isinstance(step, int) else 0


def _logged(file: Path, names: Sequence[str], remarks: list[str]) -> dict[str, Any]:
    """Step, seconds and figures, from the rows of looks and the last one: the rest is not read."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        remarks.append(f"metrics.jsonl cannot be read: {error.strerror}.")
        return {}
    starts = sorted({at for name in names for at in _lines_with(data, f'"{name}": '.encode())})
    looks = [_row(data[at : _end(data, at)]) for at in starts]
    rows = [row for row in looks if row is not None]
    if len(rows) < len(looks):
        lost = len(looks) - len(rows)
        remarks.append(f"metrics.jsonl: {lost} of {len(looks)} looks left out, damaged.")
    figures = {}
    for name in names:
        values = [float(row[name]) for row in rows if finite(row.get(name))]
        if values:
            best = min(values) if name in LOWER else max(values)
            figures[name] = Figure(best, values[-1])
    seconds = last = 0.0
    for moment in map(float, _TIME.findall(data)):
        seconds += moment - last if moment >= last else moment
        last = moment
    lines = filter(None, map(_row, reversed(data[-100_000:].split(b"\n"))))
    step = next((row["step"] for row in lines if isinstance(row.get("step"), int)), 0)
    return {"step": step, "seconds": seconds, "figures": figures}


def _lines_with(data: bytes, part: bytes) -> Iterator[int]:
    """Where each line begins that holds ``part``."""
    at = data.find(part)
    while at >= 0:
        yield data.rfind(b"\n", 0, at) + 1
        at = data.find(part, _end(data, at))


def _end(data: bytes, at: int) -> int:
    end = data.find(b"\n", at)
    return end if end >= 0 else len(data)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _written(folder: Path) -> float:
    for name in ("metrics.jsonl", "config.yaml", ""):
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


def _run_folders(folder: Path, unread: list[str]) -> Iterator[Path]:
    """Folders that look like a run's; nothing is searched inside of one."""
    seen, left = set(), [folder]
    while left:
        place = left.pop()
        try:
            with os.scandir(place) as entries:
                inside = {entry.name: entry for entry in entries}
            here = place.stat()
        except OSError as error:
            unread.append(f"{place} ({error.strerror})")
            continue
        if (here.st_dev, here.st_ino) in seen:  # links that lead to one place
            continue
        seen.add((here.st_dev, here.st_ino))
        if len(_FILES & inside.keys()) > 1:
            yield place
            continue
        left += [place / name for name, entry in inside.items() if _is_folder(entry)]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir() and not entry.name.startswith(".")
    except OSError:
        return False


def _others(folder: Path, with_runs: set[str]) -> list[str]:
    try:
        inside = [each for each in os.scandir(folder) if _is_folder(each)]
    except OSError:  # which is told of the folder itself
        return []
    return sorted(each.name for each in inside if each.name not in with_runs)
