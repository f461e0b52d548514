"""`simmim runs`: which runs there are, where two of them differ, and which is the best."""

import json
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from simmim.config.commands import RunsBestConfig, RunsConfig, RunsDiffConfig
from simmim.config.nearest import did_you_mean
from simmim.errors import CheckpointError, ConfigError
from simmim.report import terminal
from simmim.report.words import count, duration, number, percent
from simmim.runs.metrics import NAMES
from simmim.runs.overview import FIGURES, LOWER, Run, runs_below

USES: Mapping[str, str] = {
    "pretrain": "simmim finetune LABELLED_PHOTOS --from {run}",
    "classify": "simmim predict {run} PHOTOS --out told.csv",
    "multilabel": "simmim predict {run} PHOTOS --out told.csv",
    "regress": "simmim predict {run} PHOTOS --out told.csv",
    "segment": "simmim predict {run} PHOTOS --out masks",
    "detect": "simmim predict {run} PHOTOS --out found.json",
}
"""What is done with a run next, by its task."""

_SHOWN = 2
"""Figures of a run in the table."""


def run_list(config: RunsConfig) -> dict[str, Any]:
    """Print the runs below a folder; what is printed as JSON.

    Raises:
        CheckpointError: There is no such folder.
    """
    found = runs_below(config.folder)
    facts = {
        "folder": str(config.folder),
        "runs": [run.facts for run in found.runs],
        "without_a_run": list(found.others),
        "unreadable": list(found.unread),
    }
    if config.json:
        Console().print_json(data=facts, indent=1)
        return facts
    lines = list(_table(found.runs)) if found.runs else [f"no run in {config.folder}"]
    if found.others:
        of = count(len(found.others), "folder")
        lines.append(f"{of} without a run, such as {found.others[0]}")
    lines += [f"cannot be looked into: {each}" for each in found.unread]
    _print(lines)
    return facts


def run_best(config: RunsBestConfig) -> dict[str, Any]:
    """Print the best run of each task and data set; what is printed as JSON.

    Raises:
        CheckpointError: There is no such folder, or no run that can be compared.
        ConfigError: There is no such figure.
    """
    _check_figure(config.by)
    found = runs_below(config.folder)
    groups, left_out = defaultdict(list), defaultdict(list)
    for run in found.runs:
        name = config.by or run.main or "a figure"
        if run.state == "damaged":
            left_out["damaged"].append(str(run.folder))
        elif name not in run.figures:
            left_out[f"without {name}"].append(str(run.folder))
        elif not (run.folder / "encoder.json").is_file():
            left_out["without an encoder yet"].append(str(run.folder))
        else:
            groups[run.task, run.data, name].append(run)
    said = [f"{count(len(of), 'run')} {why}, such as {of[0]}" for why, of in left_out.items()]
    if not groups:
        raise CheckpointError(
            f"nothing in {config.folder} can be compared: {'; '.join(said) or 'there is no run'}."
        )
    best = [_best_of(name, runs) for (_, _, name), runs in groups.items()]
    facts = {"folder": str(config.folder), "best": best, "left_out": left_out}
    if config.json:
        Console().print_json(data=facts, indent=1)
        return facts
    lines = []
    for each in best:
        of = count(each["of"], "run")
        lines += [
            f"{each['task']} on {', '.join(each['data'])}: {each['run']}, {each['by']} "
            f"{_say(each['by'], each['value'])} at its last look, the best of {of} "
            f"({each['state']})",
            f"  {each['next']}",
        ]
    _print([*lines, *(f"left out: {each}" for each in said)])
    return facts


def _best_of(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """Of runs of one task on the same images; its last figure is that of the weights it left."""
    sign = -1 if name in LOWER else 1
    best = max(runs, key=lambda run: sign * run.figures[name].last)
    return {
        "task": best.task,
        "data": list(best.data),
        "run": str(best.folder),
        "state": best.state,
        "by": name,
        "value": best.figures[name].last,
        "of": len(runs),
        "next": USES[best.task].format(run=shlex.quote(str(best.folder))),
    }


def run_diff(config: RunsDiffConfig) -> dict[str, Any]:
    """Print where two runs differ; what is printed as JSON.

    Raises:
        CheckpointError: One of them is no run folder.
    """
    from simmim.runs.difference import difference
    from simmim.runs.record import read_run

    records = [read_run(run) for run in (config.run, config.other)]
    for record in records:
        if not record.config and not record.rows:
            raise CheckpointError(f"{record.run} is not a run folder: it holds no run.")
    found = difference(*records)
    problems = [f"{record.run}: {each}" for record in records for each in record.problems]
    runs = {"a": str(config.run), "b": str(config.other)}
    facts = {**runs, **asdict(found), "problems": problems}
    if config.json:
        Console().print_json(data=facts, indent=1)
        return facts
    lines = [f"A  {config.run}", f"B  {config.other}"]
    for title, settings in (
        ("settings that affect the result", found.settings),
        ("chosen for the run", found.resolved),
        ("settings without effect on the result", found.free),
        ("environment", found.environment),
    ):
        rows = [(each.name, _shown(each.a), _shown(each.b)) for each in settings]
        lines += ["", f"{title}: {'' if rows else 'the same'}".rstrip(), *_columns(rows)]
    lines += ["", "curves:" if found.curves else "curves: none in common"]
    rows = [
        (
            each.name,
            f"step {each.step:,}",
            f"A {_say(each.name, each.a)}",
            f"B {_say(each.name, each.b)}",
            f"the same at all {count(each.steps, 'common step')}"
            if each.largest == 0
            else f"at most {number(each.largest)} apart, at step {each.at:,}, of "
            f"{count(each.steps, 'common step')}",
        )
        for each in found.curves
    ]
    lines += [*_columns(rows), *_columns([*found.apart.items()])]
    _print([*lines, *(f"note: {each}" for each in problems)])
    return facts


def _table(runs: Sequence[Run]) -> Iterator[str]:
    """A line for each run, and below it what it is of and how it goes on."""
    heading = ("run", "state", "steps", "figures", "time")
    rows = [
        (
            str(run.folder),
            run.state,
            f"{run.step:,}/{run.steps:,}" if run.steps else f"{run.step:,}",
            _figures(run),
            duration(run.seconds),
        )
        for run in runs
    ]
    head, *lines = _columns([heading, *rows], indent="")
    yield head
    for run, line in zip(runs, lines, strict=True):
        yield line
        of = [run.task, run.recipe, run.model, ", ".join(run.data)]
        if run.task:
            yield f"  {' · '.join(filter(None, of))}"
        if run.state != "finished" and run.why:
            yield f"  {run.state}: {run.why}"
        if run.state in ("stopped", "failed"):
            yield f"  go on with: {run.resume}"
        yield from (f"  note: {each}" for each in run.remarks)


def _figures(run: Run) -> str:
    said = []
    for name, (best, last) in [*run.figures.items()][:_SHOWN]:
        more = f" (best {_say(name, best)})" if _say(name, best) != _say(name, last) else ""
        said.append(f"{name} {_say(name, last)}{more}")
    return ", ".join(said) or "–"


def _columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [indent + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _say(name: str, value: float) -> str:
    return percent(value, 1) if NAMES[name][0] == "share" else number(value)


def _shown(value: Any) -> str:
    """A setting as one would type it."""
    if value is None:
        return "not set"
    return json.dumps(value) if isinstance(value, bool | list | dict) else str(value)


def _print(lines: Sequence[str]) -> None:
    console = Console()
    for line in lines:
        terminal.line(console, line)


def _check_figure(name: str | None) -> None:
    """Raise ``ConfigError`` where no task has such a figure."""
    known = [each for names in FIGURES.values() for each in names]
    if name is not None and name not in known:
        raise ConfigError(
            f"--by {name}: there is no such figure.{did_you_mean(name, known)} All of them: "
            f"{', '.join(known)}."
        )
