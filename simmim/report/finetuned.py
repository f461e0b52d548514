"""The report on a fine-tuning, of any task."""

import shlex
from collections.abc import Callable, Mapping

from simmim.report import classified, detected, number_told, segmented, several_told
from simmim.report.findings import Findings
from simmim.report.sections import Commands, Report, Section
from simmim.report.summary import course, size_tiles, standing, trained_on
from simmim.runs.record import Record, mapping

TASKS: Mapping[str, Callable[[Record], Findings]] = {
    "classify": classified.findings,
    "multilabel": several_told.findings,
    "regress": number_told.findings,
    "segment": segmented.findings,
    "detect": detected.findings,
}
"""What each kind of task has to say."""


def is_finetuning(record: Record) -> bool:
    """Whether a run is one, of a task that is known."""
    return mapping(record.config.get("task")).get("kind") in TASKS


def describe(record: Record) -> Report:
    """The report on a fine-tuning."""
    found = TASKS[record.config["task"]["kind"]](record)
    parts = [*found.sections, *standing(record), _next(record, found)]
    model, on = trained_on(record)
    start = record.config.get("init_from")
    begun = "from random weights" if start == "none" else f"from {start}"
    return Report(
        title=record.run.resolve().name,
        summary=[f"{model} was fine-tuned {begun} on {on}, {found.labels}.", *course(record)],
        verdict=found.verdict,
        tone=found.tone,
        tiles=[*found.tiles, *size_tiles(record)],
        remarks=record.problems,
        sections=[part for part in parts if part is not None],
        footer=f"Written by simmim from {record.run.resolve()}.",
    )


def _next(record: Record, found: Findings) -> Section:
    """Commands that fit the state of the run."""
    commands = found.commands
    if record.step < record.steps or not record.rows:
        again = f"simmim finetune --resume {shlex.quote(str(record.run))}"
        commands = [(again, "go on from the last checkpoint")]
    return Commands(title="What to do next", commands=commands)
