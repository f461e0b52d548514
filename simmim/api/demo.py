"""`simmim demo`: the whole story on photos that come with simmim, in minutes.

A small shop wants its photos of clothes sorted and has labelled only a few. The demo pretrains on
all photos but the test ones, without labels, then trains classifiers from few labels with and
without that start. Its folder is a run folder like any other, with the demo's files beside:
photos/, test-photos/, predictions.csv, results.json, embeddings.parquet.

The recipe is `simmim-fast` with a small encoder rather than the default, as at equal minutes it
learns far more in runs this short.
"""

import shlex
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from simmim.api.start import told_how_to_go_on
from simmim.config.commands import DemoConfig
from simmim.config.demo import DRAW_SECONDS, LABELS_PER_CLASS, MINUTES, classifying, pretraining
from simmim.config.run import PretrainConfig
from simmim.data.demo import ARCHIVE_BYTES, PHOTOS, TEST_PHOTOS, unpack
from simmim.data.sources.find import find_images
from simmim.errors import ConfigError, running
from simmim.report import terminal
from simmim.report.words import count, duration
from simmim.runs.files import check_space
from simmim.runs.folder import CONFIG, RunFolder, read_config
from simmim.runs.lock import Lock
from simmim.training.launch import own_place

if TYPE_CHECKING:  # torch is imported inside the functions: misuse is answered before
    from simmim.training.world import World

RESULTS = "results.json"
_WHAT = "simmim demo"
_SLOWER = 1.4
"""How much longer than expected the measuring may take before draws are left out."""
_OTHER_SECONDS = {"unpack": 4.0, "prepare": 20.0, "report": 12.0}


def run_demo(config: DemoConfig) -> Path:
    """Pretrain on the embedded photos, measure what it was worth, and write the report.

    With ``minutes``, a finished demo is taken up and pretrained on for so long: the one in
    ``out``, or else the newest in runs/ with the same seed.

    Returns:
        The run folder.

    Raises:
        ConfigError: ``out`` holds something else, or a finished demo and no ``minutes`` are given;
            or several processes were started.
        Stopped: A signal stopped the run; ``simmim demo --out`` with its folder goes on.
    """
    if own_place().ranks > 1:
        raise ConfigError("the demo runs in one process; start it without torchrun.")
    run = _earlier_run(config)
    if run is not None:
        with Lock(run, _WHAT):
            _Demo(config, run, None).go()
        return run
    further = (PHOTOS, TEST_PHOTOS)
    with RunFolder(config.out, "demo", _WHAT, further=further) as folder:
        _Demo(config, folder.path, folder).go()
    return folder.path


def holds_demo(folder: Path) -> bool:
    """Whether ``folder`` is the run folder of a demo, finished or not."""
    return (folder / CONFIG).is_file() and (folder / TEST_PHOTOS).is_dir()


def _earlier_run(config: DemoConfig) -> Path | None:
    """The folder of a demo to go on with; None: a new one is begun."""
    if config.out is not None and holds_demo(config.out):
        if _seed(config.out) != config.seed:
            raise ConfigError(
                f"{config.out} holds a demo with seed {_seed(config.out)}; go on with it by "
                f"--seed {_seed(config.out)}, or choose another --out."
            )
        if config.minutes is None and (config.out / RESULTS).is_file():
            raise ConfigError(
                f"{config.out} holds a finished demo. Pretrain it further with --minutes 60, or "
                "choose another --out."
            )
        return config.out
    if config.out is None and config.minutes is not None:
        finished = [file.parent for file in Path("runs").glob(f"*-demo*/{RESULTS}")]
        mine = [run for run in finished if holds_demo(run) and _seed(run) == config.seed]
        if mine:
            return max(mine, key=lambda run: (run / RESULTS).stat().st_mtime)
    return None


def _seed(run: Path) -> int:
    return read_config(run, PretrainConfig)[0].seed


class _Demo:
    """One go of the demo."""

    def __init__(self, config: DemoConfig, run: Path, new: RunFolder | None) -> None:
        self.config = config
        self.run = run
        self.new = new
        self.minutes = MINUTES if config.minutes is None else config.minutes
        self.console = Console(highlight=False)
        self.began = time.monotonic()
        self.stages = {
            "unpack the photos": _OTHER_SECONDS["unpack"],
            "pretrain without labels": 60 * self.minutes + _OTHER_SECONDS["prepare"],
            "measure what it was worth": DRAW_SECONDS * config.draws,
            "write the report": _OTHER_SECONDS["report"],
        }
        if new is None:
            self.stages.pop("unpack the photos")

    def announce(self) -> None:
        """Say what will be done and how long it will take."""
        config, say = self.config, self.console.print
        begin = f"goes on with the demo in {self.run}"
        if self.new is not None:
            begin = f"unpacks 5,756 real photos (CC0) into {self.run}/{PHOTOS} and {TEST_PHOTOS}"
        plan = Table.grid(padding=(0, 1))
        for number, text in enumerate(
            (
                f"{begin},",
                f"pretrains an encoder for {duration(60 * self.minutes)}, without labels, on all "
                "photos but the test photos,",
                f"trains classifiers from {LABELS_PER_CLASS} labelled photos of each class, "
                "pretrained and from scratch, with the same labels and steps, in "
                f"{count(config.draws, 'draw')} of labels, and asks them about the test photos,",
                "writes a report with pictures.",
            ),
            start=1,
        ):
            plan.add_row(f"  {number}.", text)
        say("simmim demo: sorting photos of clothes with few labels\n", style="bold")
        say(
            "A small shop wants its phone photos sorted into ten classes (dress, hat, shoes, …) "
            "and has labelled only a few. Can the photos without labels help? This demo\n"
        )
        say(plan)
        say(
            f"\nIt takes about {duration(sum(self.stages.values()))} on two cores with nothing "
            "else to do. Ctrl-C stops it; what is done is kept. The recipe is simmim-fast with a "
            "small encoder: in minutes it learns far more than the default recipe.\n"
        )
        if config.shuffle_labels:
            say("Labels are shuffled: a check, accuracies must fall to chance.\n", style="yellow")

    def go(self) -> None:
        """All stages, in their order."""
        self.announce()
        steps = terminal.Steps(
            self.console, [(name, seconds / 60) for name, seconds in self.stages.items()]
        )
        if self.new is not None:
            self.new.begin(self._pretraining())
            with steps.stage("unpack the photos"):
                check_space(self.run, ARCHIVE_BYTES, "The demo's photos")
                unpack(self.run)
            self.new.started = True
        from simmim.errors import Stopped
        from simmim.training.world import join

        with join() as world:
            try:
                with steps.stage("pretrain without labels"):
                    self._pretrain(world)
                self._measure(steps, world)
            except (Stopped, KeyboardInterrupt):
                command = shlex.join(["simmim", "demo", "--out", str(self.run)])
                terminal.line(self.console, f"or, for the demo to its end: {command}")
                raise

    def _pretraining(self) -> PretrainConfig:
        return replace(
            pretraining(),
            data=(str(self.run / PHOTOS),),
            out=self.run,
            budget=f"{60 * self.minutes:g}s",
            seed=self.config.seed,
        )

    def _pretrain(self, world: "World") -> None:
        """With the session of `simmim pretrain`: the same header, progress, files."""
        from simmim.api.pretrain import Pretraining

        session = Pretraining(self.run, world)
        config, resolved = read_config(self.run, PretrainConfig)
        with told_how_to_go_on(self.run, "pretrain"), running():
            if resolved is None:
                session.prepare(config, find_images(self.run / PHOTOS))
            else:
                further = (self.run / RESULTS).is_file()
                changes = {"budget": f"{60 * self.minutes:g}s"} if further else {}
                session.reopen(config, resolved, changes)
            session.fit()

    def _measure(self, steps: terminal.Steps, world: "World") -> None:
        """Draws of labels, then the files and the report."""
        from simmim.api.demo_report import Story, next_steps, print_figures, report
        from simmim.evaluate.embed import write_embeddings
        from simmim.evaluate.features import extract
        from simmim.interop.load import load_encoder
        from simmim.runs.record import read_run
        from simmim.studies.frozen_curve import frozen_curve
        from simmim.studies.label_efficiency import (
            PREDICTIONS,
            Evaluation,
            open_photos,
            results,
            write_predictions,
            write_results,
        )

        config, run = self.config, self.run
        encoder = load_encoder(run).to(world.device)
        photos = open_photos(run, encoder.pixels, config.seed, shuffle=config.shuffle_labels)
        with steps.stage("measure what it was worth") as stage:
            evaluation = Evaluation(
                photos=photos,
                pretrained=encoder,
                config=read_config(run, PretrainConfig)[0].encoder,
                settings=classifying(photos.train.paths.where),
                seed=config.seed,
                world=world,
            )
            expected = DRAW_SECONDS * config.draws
            measured = evaluation.measure(
                config.draws,
                say=stage.update,
                note=stage.note,
                allowance=_SLOWER * expected if config.minutes is None else None,
            )
            stage.update(1.0, "label curve")
            measured.curve = frozen_curve(evaluation, measured.draws)
        record = read_run(run)
        document = write_results(
            run / RESULTS,
            results(
                measured,
                seed=config.seed,
                labels_shuffled=config.shuffle_labels,
                draws_asked_for=config.draws,
                photos=len(photos.test.paths) + record.data.get("images", 0),
                pretrained_on=record.resolved.get("images"),
                steps=record.step,
                minutes=record.seconds / 60,
                measuring_minutes=measured.seconds / 60,
            ),
        )
        write_predictions(run / PREDICTIONS, measured)
        with steps.stage("write the report"):
            embeddings = run / "embeddings.parquet"
            with suppress(FileNotFoundError):
                embeddings.unlink()  # of the pretraining so far
            table = extract(encoder, photos.named)
            write_embeddings(table, embeddings, classes=photos.classes)
            minutes = (time.monotonic() - self.began) / 60
            page = report(Story(run, measured, document, table, minutes))
        print_figures(self.console, measured, document)
        width = max(len(command) for command, _ in next_steps(run))
        terminal.done(
            [
                f"report       {page}",
                f"predictions  {run / PREDICTIONS}, the accuracies can be recomputed from it",
                f"figures      {run / RESULTS}",
                f"embeddings   {embeddings}",
                f"encoder      {run / 'encoder.safetensors'}",
                f"the demo took {duration(time.monotonic() - self.began)}; next:",
                *(f"  {command:{width}}  {what}" for command, what in next_steps(run)),
            ],
            self.console,
        )
