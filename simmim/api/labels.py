"""`simmim labels`: how many labels a start is worth."""

import hashlib
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as Grid

from simmim.api.encoders import open_encoder
from simmim.api.label_trials import ASTRAY, FrozenTrial, LabelTrial
from simmim.api.tasks.build import labelled_task
from simmim.config.encoder import EncoderConfig
from simmim.config.run import PretrainConfig
from simmim.config.studies import LEAST_STEPS, LabelsConfig
from simmim.data.loading.images import split_rows
from simmim.data.loading.loader import readable
from simmim.data.loading.quarantine import unreadable
from simmim.errors import ConfigError, DataError, running
from simmim.interop.load import LoadedEncoder
from simmim.machine import pick_workers
from simmim.models.build import describe_encoder
from simmim.report import figures, terminal
from simmim.report.figures import Series
from simmim.report.html import write_report
from simmim.report.sections import Facts, Figure, Gallery, Report, Table
from simmim.report.words import count, duration, percent
from simmim.runs.folder import CONFIG, command_of, read_config
from simmim.runs.lock import Lock
from simmim.studies.label_curve import (
    SCRATCH,
    TUNING,
    Curve,
    Design,
    Worth,
    chosen_rate,
    curve,
    measure,
    rarest,
    usual_counts,
    worth,
)
from simmim.studies.raw_rows import RawRows, study_folder, told_how_to_go_on
from simmim.training.launch import own_place
from simmim.training.world import World, join

ROWS = "labels.csv"
PAGE = "report.html"
_WHAT = "simmim labels"
_TUNING_SHARE = 0.15
"""Share of the images to learn from that rates are chosen on."""


def run_labels(config: LabelsConfig) -> Path:
    """Measure label curves, and write the page; returns the folder.

    Raises:
        ConfigError: Several processes were started, or the folder holds something else.
        DataError: There are too few labelled images.
    """
    if own_place().ranks > 1:
        raise ConfigError("simmim labels runs in one process; start it without torchrun.")
    console = Console()
    with join() as world:
        trial, said = _trial(config, console, world)
        design = _design(config, trial)
        terminal.facts(console, said + _drawn(design, trial))
        folder = study_folder(config.out, "labels")
        with Lock(folder, _WHAT), told_how_to_go_on(console, folder):
            table = RawRows(folder, ROWS, _settings(config, trial), ["start"])
            _announce(console, design, trial, table)
            stage, began = terminal.Stage(console), time.monotonic()
            with running():
                try:
                    measure(design, trial, table, stage.update)
                finally:
                    stage.close()
            result = _Result(config, design, trial, table, time.monotonic() - began)
            page = write_report(folder / PAGE, result.report())
    result.print(console)
    terminal.done([f"report   {page}", f"figures  {table.file}"], console)
    return folder


def _trial(
    config: LabelsConfig, console: Console, world: World
) -> tuple[LabelTrial, list[tuple[str, str]]]:
    """What trains, and what should be known of its images."""
    kind, training, size = labelled_task(config.task), config.training, config.image_size
    data, asked = training.sources, kind.annotations
    encoders: dict[str, LoadedEncoder] = {}
    for start in (config.init_from, *config.against):
        opened = open_encoder(start, console, data, size or training.usual_size, annotations=asked)
        encoders[start], size = opened.to(world.device), opened.image_size
    judged = encoders[config.init_from]
    pool = kind.gather(training, judged.pixels)
    said, kept = pool.rows, []
    for images, what in ((pool.train, "images to learn from"), (pool.val, "images to measure on")):
        bad: dict[str, str] = {}
        workers = pick_workers(config.workers)
        kept.append(readable(images, judged.image_size, bad=bad, workers=workers))
        if bad:
            said.append(("unreadable", unreadable(bad, len(images), what)))
    pool.train, pool.val = kept
    tuning, present = pool.val, kind.present(pool)
    if config.protocol == "finetune":
        first, second = split_rows(rarest(present), _TUNING_SHARE, config.seed)
        if not present[second].any():
            raise DataError(
                f"{count(len(present), 'labelled image')} to learn from, none of which can be set "
                "aside to choose rates on: each is the only one of its class, or shows none."
            )
        pool.train, tuning = pool.train.select(first), pool.train.select(second)
        present = present[first]
        said.append(("rates", f"chosen on {len(tuning):,} other images, for each start alike"))
    said.append(("images", f"{len(pool.train):,} to draw from, {len(pool.val):,} to measure on"))
    trial = LabelTrial if config.protocol == "finetune" else FrozenTrial
    built = _built(config, judged)
    return trial(config, kind, training, encoders, built, pool, present, tuning, world), said


def _built(config: LabelsConfig, judged: LoadedEncoder) -> EncoderConfig:
    """How an encoder from scratch is built: as the pretraining began, where that is known."""
    run = Path(config.init_from)
    if (run / CONFIG).is_file() and command_of(run) == PretrainConfig.command:
        began, _ = read_config(run, PretrainConfig)
        return began.encoder
    return describe_encoder(judged.encoder, 0.0)


def _design(config: LabelsConfig, trial: LabelTrial) -> Design:
    images, classes = trial.present.shape
    counts = sorted(set(config.counts)) or usual_counts(images, classes)
    if counts[-1] > images:
        raise DataError(
            f"--counts asks for {counts[-1]:,} labels, and there are {images:,} labelled images to "
            "draw from."
        )
    starts = [config.init_from, SCRATCH, *config.against]
    draws = [config.draws_of(each) for each in counts]
    return Design(starts, counts, draws, config.seed)


def _drawn(design: Design, trial: LabelTrial) -> list[tuple[str, str]]:
    """What should be known of the draws: the same ones for each start.

    Raises:
        DataError: From one of them nothing can be learned.
    """
    orders, said = design.orders(trial), []
    for draw, order in orders.items():
        fewest = order[: design.counts[0]]
        try:
            trial.kind.draw(trial.pool, np.sort(fewest))
        except DataError as error:
            raise DataError(
                f"from {count(len(fewest), 'label')} nothing can be learned, such as in draw "
                f"{draw}: {error} Ask for more by --counts."
            ) from error
    known = trial.present.any(0)
    for labels, draws in zip(design.counts, design.draws, strict=True):
        shown = [trial.present[orders[draw][:labels]].any(0) for draw in range(1, draws + 1)]
        lacking = [np.flatnonzero(known & ~each) for each in shown]
        some = [classes for classes in lacking if len(classes)]
        if some:
            name = trial.pool.classes[some[0][0]]
            text = f"of {count(labels, 'label')}, {len(some)} of {draws} draws have no image of "
            text += f"up to {max(map(len, some))} of {known.sum()} classes, such as {name}, which "
            said.append(("note", f"{text}counts all the same in what is measured"))
    return said


def _settings(config: LabelsConfig, trial: LabelTrial) -> dict[str, object]:
    """All that a row hangs on. More counts, draws and starts may be asked for later."""
    free = ("counts", "draws", "against", "out", "workers")
    asked = {name: value for name, value in asdict(config).items() if name not in free}
    images = [each.paths.fingerprint() for each in (trial.pool.train, trial.pool.val)]
    weights = {f"weights of {name}": _digest(each) for name, each in trial.encoders.items()}
    return {**asked, "images": images, **weights}


def _digest(encoder: LoadedEncoder) -> str:
    """A hash of the weights: a run may have been trained further since."""
    digest = hashlib.sha256()
    for name, value in encoder.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def _announce(console: Console, design: Design, trial: LabelTrial, table: RawRows) -> None:
    """Say what will be done and how long it takes."""
    left = [
        (start, labels)
        for start, labels, draw, rate in design.trainings(trial.rates)
        if not table.find(start=start, labels=labels, draw=draw, **({"rate": rate} if rate else {}))
    ]
    said = f"{count(len(left), 'training')} to make"
    if table.rows:
        said += f", {len(table.rows):,} are there already"
    if left and trial.config.protocol == "finetune":
        starts, fewest = {start for start, _ in left}, design.counts[0]
        took = {start: trial.seconds(start, fewest) for start in starts}
        total = sum(took[start][0] + took[start][1] * trial.steps(n) for start, n in left)
        said += f": about {duration(total)}, by a rehearsal of each start"
    terminal.line(console, said)


class _Result:
    """What was measured, in words and on a page."""

    def __init__(
        self,
        config: LabelsConfig,
        design: Design,
        trial: LabelTrial,
        table: RawRows,
        seconds: float,
    ) -> None:
        self.config = config
        self.design = design
        self.trial = trial
        self.table = table
        self.seconds = seconds
        self.curves = [curve(table, design, start, trial) for start in design.starts]
        judged, *others = self.curves
        self.worths = [
            [worth(judged, other, place) for place in range(len(design.counts))] for other in others
        ]

    @property
    def headline(self) -> Worth:
        """Against scratch, at the middle one of the numbers of labels: none is sought out."""
        return self.worths[0][len(self.design.counts) // 2]

    @property
    def sentences(self) -> list[str]:
        """What may be said at each number of labels, against each other start."""
        return [_capital(each.sentence) for other in self.worths for each in other]

    def print(self, console: Console) -> None:
        """The curves and what may be said of them."""
        console.print()
        grid = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for name in ("labels", *map(_named, self.design.starts)):
            grid.add_column(name, justify="right", overflow="fold")
        for row in self._rows():
            grid.add_row(*row)
        console.print(grid, highlight=False)
        console.print()
        console.print(f"{_capital(self.headline.sentence)}.", style="bold", highlight=False)
        for sentence in self.sentences:
            terminal.line(console, f"  {sentence}")

    def report(self) -> Report:
        """The page."""
        config, trial = self.config, self.trial
        pool, figure = trial.pool, trial.kind.figure[1]
        drawing = figures.label_curve([_series(each) for each in self.curves], figure)
        trivial, start = trial.kind.without_looking(pool), config.init_from
        classes = f"{len(pool.classes)} classes, " if len(pool.classes) > 1 else ""
        caption = (
            "Mean over the draws, ± one standard error. How far left of the other line a line "
            "reaches the same height tells how many labels are saved."
        )
        return Report(
            title="How many labels is pretraining worth?",
            summary=[f"{classes}measured on {len(pool.val):,} images; started from {start}."],
            verdict=f"{_capital(self.headline.sentence)}.",
            tone="good" if self.headline.verdict == "better" else "caution",
            sections=[
                Gallery(title="Curves", items=[Figure(svg=drawing, caption=caption)]),
                Table(
                    title="Figures",
                    columns=["labels", *map(_named, self.design.starts)],
                    rows=self._rows(),
                    note=f"{_capital(figure)}, ± one standard error over the draws."
                    + (f" {_capital(trivial)}." if trivial else ""),
                ),
                Table(
                    title="What may be said",
                    lead="In brackets: 95 % of what resampled draws give. Other test images "
                    "would move the curves together.",
                    columns=["at each number of labels"],
                    rows=[[sentence] for sentence in self.sentences],
                ),
                Facts(title="How it was measured", facts=self._method()),
            ],
            footer=f"Raw rows: {self.table.file.resolve()}.",
        )

    def _rows(self) -> list[list[str]]:
        rows = []
        for place, labels in enumerate(self.design.counts):
            cells = [_cell(each.mean[place], each.error[place]) for each in self.curves]
            rows.append([f"{labels:,}", *cells])
        return rows

    def _method(self) -> list[tuple[str, str, str]]:
        trial, draws = self.trial, self.design.draws
        facts = [
            (
                "draws",
                ", ".join(f"{n} of {c:,}" for c, n in zip(self.design.counts, draws, strict=True)),
                "the same for each start; the larger hold the smaller; each class has its share",
            ),
            ("took", duration(self.seconds), "this time"),
        ]
        if self.config.protocol == "linear":
            return [("protocol", "logistic regression on frozen features", ""), *facts]
        steps = ", ".join(f"{trial.steps(each):,}" for each in self.design.counts)
        for start in self.design.starts:
            rates = [chosen_rate(self.table, start, n, trial) for n in self.design.counts]
            facts.append((f"rates, {_named(start)}", ", ".join(f"{rate:g}" for rate in rates), ""))
        astray = [row for row in self.table.rows if row.get(ASTRAY)]
        if astray:
            text = f"{len(astray):,} of {len(self.table.rows):,} trainings, which count as 0"
            facts.append(("went astray", text, f"such as at the rate {astray[0]['rate']:g}"))
        return [
            ("protocol", f"fine-tuning, --task {self.config.task.kind}", ""),
            ("steps", steps, f"the same for each start; at least {LEAST_STEPS}"),
            ("tuning", f"{len(trial.tuning):,} images", "other than those measured on; rates tried "
             f"there by each start with draw {TUNING}: {', '.join(f'{r:g}' for r in trial.rates)}"),
            *facts,
        ]  # fmt: skip


def _series(found: Curve) -> Series:
    return Series(
        name=_named(found.start),
        labels=found.counts,
        mean=found.mean,
        error=found.error,
        dashed=found.start == SCRATCH,
    )


def _named(start: str) -> str:
    return "from scratch" if start == SCRATCH else start


def _cell(mean: float, error: float) -> str:
    spread = "" if np.isnan(error) else f" ± {100 * error:.1f}"
    return f"{percent(mean, 1)}{spread}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
