"""`simmim study`: which value of a setting learns best, at equal compute."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console
from rich.table import Table as Grid

from simmim.api.remarks import notes, values
from simmim.config.run import PretrainConfig, budget_seconds
from simmim.config.saved import settings_hash
from simmim.config.seal import read_sealed
from simmim.config.studies import StudyConfig
from simmim.data.audit.survey import survey
from simmim.data.labels import check_classes, labels_of
from simmim.data.loading.images import ImageSet, split_by_class
from simmim.data.loading.loader import readable
from simmim.data.loading.quarantine import unreadable
from simmim.data.sources.find import find_images, split_holdout
from simmim.errors import ConfigError, running
from simmim.machine import pick_workers
from simmim.report import terminal
from simmim.report.html import write_report
from simmim.report.sections import Report, Table
from simmim.report.words import count, duration, percent, points
from simmim.runs.folder import write_json
from simmim.runs.lock import Lock
from simmim.studies.equal_compute import (
    LEAST_SEEDS,
    TOLERANCE,
    Order,
    Pretrained,
    equal_steps,
    order,
    pace,
    run,
)
from simmim.studies.raw_rows import RawRows, study_folder, told_how_to_go_on
from simmim.training.launch import own_place
from simmim.training.world import World, join

ROWS = "study.csv"
PLAN = "plan.json"
PAGE = "report.html"
QUALITY = "linear"
"""What values are ordered by."""
MEASURES = {
    "explained": "explained detail",
    "explained_blur": "beyond interpolation",
    "knn": "k-NN",
    "linear": "linear",
}
"""Columns of the rows, and what they are called."""
_WHAT = "simmim study"
_MOST, _HELD = 4096, 64
"""Most labelled images that are probed, and most held out that detail is measured on."""
_FOR_RUNS = 0.8
"""Share of the budget that the training may take; the rest is for measuring."""


def run_study(config: StudyConfig, runs: Mapping[str, PretrainConfig]) -> Path:
    """Pretrain with each value, and say which is best; returns the folder.

    Args:
        config: What is studied.
        runs: The settings of a run, by the value.

    Raises:
        ConfigError: Several processes were started, the folder holds something else, or the runs
            would be too short.
    """
    if own_place().ranks > 1:
        raise ConfigError("simmim study runs in one process; start it without torchrun.")
    console = Console()
    with join() as world:
        study, said = _gather(next(iter(runs.values())), world)
        terminal.facts(console, said)
        folder = study_folder(config.out, "study")
        with Lock(folder, _WHAT), told_how_to_go_on(console, folder):
            table = RawRows(folder, ROWS, _settings(config, runs, study), ["value"])
            plan = _plan(config, runs, study, folder)
            lengths = ", ".join(
                f"{value}: {n:,}" for value, n in zip(plan.values, plan.steps, strict=True)
            )
            terminal.line(
                console,
                f"steps of equal compute: {lengths}; a run of each takes about "
                f"{duration(plan.seconds)}, and up to {count(config.seeds, 'seed')} are made",
            )
            with running():
                ended = _Runs(config, runs, study, table, plan).make(console)
            result = _Result(config, table, plan, ended)
            page = write_report(folder / PAGE, result.report())
    result.print(console)
    terminal.done([f"report   {page}", f"figures  {table.file}"], console)
    return folder


def _gather(config: PretrainConfig, world: World) -> tuple[Pretrained, list[tuple[str, str]]]:
    """The images, and what should be known of them."""
    listing = find_images(*config.data, tile=config.tile)
    labels = labels_of(listing, config.labels)
    train, held = split_holdout(listing, config.holdout)
    seen = survey(listing, channels=config.encoder.channels)
    pixels, known, said = seen.pixels, None, [values(seen), *notes(train, seen, labels)]
    workers = pick_workers(config.system.workers)
    if labels is not None:
        check_classes(labels)
        chosen, classes = labels.sample(_MOST)
        size = config.encoder.image_size or (224, 224)
        bad: dict[str, str] = {}
        images = readable(ImageSet(chosen, pixels, classes), size, bad=bad, workers=workers)
        known = split_by_class(images, 0.5, config.seed)
        if bad:
            said.append(("unreadable", unreadable(bad, len(chosen), "labelled images")))
        said.append(
            ("probes", f"learn from {len(known[0]):,} images with labels, and are asked about "
             f"{len(known[1]):,}; the encoder sees all of them without labels")
        )  # fmt: skip
    else:
        said.append(
            ("note", "there are no labels, so that only the difficulty of the task is measured: "
             "nothing tells which value learns best")
        )  # fmt: skip
    if not len(held):
        held = train[:_HELD]
        said.append(("note", "no image is held out: detail is measured on images trained on"))
    classes = 0 if labels is None else len(labels.classes)
    trained, held = ImageSet(train, pixels), ImageSet(held.sample(_HELD), pixels)
    study = Pretrained(trained, held, known, classes, world, workers)
    return study, said


def _settings(
    config: StudyConfig, runs: Mapping[str, PretrainConfig], study: Pretrained
) -> dict[str, object]:
    """All that a row hangs on, but for the steps, which it says itself."""
    hashes = {value: settings_hash(each) for value, each in runs.items()}
    images = [study.train.paths.fingerprint(), study.held.paths.fingerprint()]
    return {"over": config.over, "runs": hashes, "images": images}


@dataclass(frozen=True)
class Plan:
    """How long the runs are; it is kept, as another time other steps would be chosen.

    Attributes:
        values: As they were written.
        steps: Of the runs with each.
        flops: Of a step of each.
        seconds: That a round, a run of each value, is expected to take.
    """

    values: list[str]
    steps: list[int]
    flops: list[int]
    seconds: float


def _plan(
    config: StudyConfig, runs: Mapping[str, PretrainConfig], study: Pretrained, folder: Path
) -> Plan:
    """Choose the steps of each run, or read what was chosen before."""
    file = folder / PLAN
    if file.exists():
        document = json.loads(read_sealed(file, "Choose another --out.").text)
        return Plan(**{field.name: document[field.name] for field in fields(Plan)})
    paces = [pace(each, study) for each in runs.values()]
    first = paces[0]
    seconds = sum(each.seconds * first.flops / each.flops for each in paces)
    allowed = _FOR_RUNS * budget_seconds(config.budget) / config.seeds
    steps = equal_steps(paces, config.steps or max(1, int(allowed / seconds)))
    flops = [each.flops for each in paces]
    expected = sum(n * each.seconds for n, each in zip(steps, paces, strict=True)) / _FOR_RUNS
    found = Plan(list(runs), steps, flops, expected)
    write_json(file, asdict(found))
    return found


@dataclass(frozen=True)
class _Runs:
    """What makes runs.

    Attributes:
        config: What is studied.
        each: The settings of a run, by the value.
        study: The images.
        table: Where the rows go.
        plan: How long the runs are.
    """

    config: StudyConfig
    each: Mapping[str, PretrainConfig]
    study: Pretrained
    table: RawRows
    plan: Plan

    def make(self, console: Console) -> str:
        """Make runs until the order is sure, or seeds or budget are spent; returns which."""
        config, stage, began = self.config, terminal.Stage(console), time.monotonic()
        before = sum(row["took"] for row in self.table.rows)
        most = config.seeds * len(self.each)
        try:
            for number in range(config.seeds):
                spent = before + time.monotonic() - began
                missing = [v for v in self.each if not self.table.find(value=v, run=number)]
                late = spent + self.plan.seconds > budget_seconds(config.budget)
                if number and missing and late:
                    return f"the budget of {config.budget} is spent"
                for value in missing:
                    share = (number * len(self.each) + self.plan.values.index(value)) / most
                    stage.update(share, f"{config.setting} {value}, seed {number + 1}")
                    self._add(value, number)
                found = _order(self.table, self.plan, number + 1)
                if found is not None and found.sure:
                    return "the order is sure"
            return f"{count(config.seeds, 'seed')} of each value are done"
        finally:
            stage.close()

    def _add(self, value: str, number: int) -> None:
        """Make a run, and a row of it."""
        place, began = self.plan.values.index(value), time.monotonic()
        steps, config = self.plan.steps[place], self.each[value]
        made = run(config, self.study, steps, config.seed + number)
        took = round(time.monotonic() - began, 2)
        facts = {"value": value, "run": number, "steps": steps, "took": took}
        self.table.add(facts | {"flops": steps * self.plan.flops[place]} | made)


def _order(table: RawRows, plan: Plan, seeds: int) -> Order | None:
    """The order of the values after so many runs of each; None where nothing tells it."""
    if not table.rows or QUALITY not in table.rows[0]:
        return None
    results = [_column(table, value, QUALITY, seeds) for value in plan.values]
    return order(plan.values, results)


def _column(table: RawRows, value: str, name: str, seeds: int) -> list[float]:
    """One figure of the first runs with a value."""
    return [table.find(value=value, run=number)[0][name] for number in range(seeds)]


class _Result:
    """What was measured, in words and on a page."""

    def __init__(self, config: StudyConfig, table: RawRows, plan: Plan, ended: str) -> None:
        self.setting = config.setting
        self.table = table
        self.plan = plan
        self.ended = ended
        self.seeds = min(len(table.find(value=value)) for value in plan.values)
        self.order = _order(table, plan, self.seeds)
        self.measures = [name for name in MEASURES if name in table.rows[0]]

    @property
    def verdict(self) -> str:
        """The recommendation, where there is one."""
        if self.order is None:
            return (
                "Without labels nothing is recommended: how much of the detail is explained tells "
                "how hard the task was, and not what the features are worth."
            )
        return self.order.sentence(self.setting)

    @property
    def columns(self) -> list[str]:
        """Of the table."""
        return [self.setting, *(MEASURES[name] for name in self.measures), "steps", "seconds"]

    def rows(self) -> list[list[str]]:
        """A row for each value: means over the seeds, ± one standard error."""
        found = []
        for place, value in enumerate(self.plan.values):
            cells = [_cell(_column(self.table, value, name, self.seeds)) for name in self.measures]
            seconds = fmean(_column(self.table, value, "seconds", self.seeds))
            found.append([value, *cells, f"{self.plan.steps[place]:,}", f"{seconds:.0f}"])
        return found

    def print(self, console: Console) -> None:
        """The table and the recommendation."""
        console.print()
        grid = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for name in self.columns:
            grid.add_column(name, justify="right", overflow="fold")
        for row in self.rows():
            grid.add_row(*row)
        console.print(grid, highlight=False)
        console.print()
        terminal.line(console, self.verdict, "bold")
        terminal.line(console, f"It ended as {self.ended}.")

    def report(self) -> Report:
        """The page."""
        sure = self.order is not None and self.order.sure
        total = self.plan.steps[0] * self.plan.flops[0]
        return Report(
            title=f"Which {self.setting} learns best?",
            summary=[
                f"{count(self.seeds, 'run')} with each of {len(self.plan.values)} values, of "
                f"{total:.3g} FLOPs each, within {TOLERANCE:.0%} of one another; it ended as "
                f"{self.ended}."
            ],
            verdict=self.verdict,
            tone="good" if sure else "caution",
            sections=[
                Table(
                    title="Figures",
                    lead="Means over the seeds, ± one standard error. Detail is measured on "
                    "held-out images under the masks of each value, so that it tells how hard the "
                    "task was; the probes tell what the features are worth.",
                    columns=self.columns,
                    rows=self.rows(),
                    note="Seconds are those of training alone, on this machine.",
                ),
                *([] if self.order is None else [self._paired(self.order)]),
            ],
            footer=f"Raw rows: {self.table.file.resolve()}.",
        )

    def _paired(self, found: Order) -> Table:
        rows = [
            [
                f"{found.values[place]} over {found.values[place + 1]}",
                f"{points(found.ahead[place])} ± {100 * found.errors[place]:.1f}",
                f"{found.steps[place]:.2g}",
            ]
            for place in range(len(found.ahead))
        ]
        return Table(
            title="How sure is the order?",
            lead="Differences of runs with the same seed, which see the same images in the same "
            f"order. A difference is sure where p is below {found.limit:.2g}, from {LEAST_SEEDS} "
            "seeds on.",
            columns=[f"{MEASURES[QUALITY]}, best first", "points ± standard error", "p"],
            rows=rows,
        )


def _cell(values: Sequence[float]) -> str:
    mean = percent(fmean(values), 1)
    if len(values) < 2:
        return mean
    return f"{mean} ± {100 * stdev(values) / math.sqrt(len(values)):.1f}"
