"""`simmim pretrain`: from a folder of images to a run folder."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from simmim.api.again import of_earlier_attempt, told_how_to_go_on
from simmim.api.plans import PLANNED, change, plan_anew
from simmim.config.resolved import Resolved
from simmim.config.run import PretrainConfig
from simmim.config.saved import settings_hash
from simmim.data.sources.places import check_exists, is_elsewhere
from simmim.errors import CheckpointError, ConfigError
from simmim.report import terminal
from simmim.runs.files import Log
from simmim.runs.folder import (
    CONFIG,
    RunFolder,
    environment,
    part_of_name,
    preparing,
    read_config,
    write_config,
    write_json,
)
from simmim.runs.lock import Lock
from simmim.runs.stop import listen
from simmim.training.launch import leads, restarts

if TYPE_CHECKING:  # torch is imported inside the functions: config.yaml is on the disk before
    from simmim.data.audit.survey import Survey
    from simmim.data.labels import Labels
    from simmim.data.loading.images import ImageSet
    from simmim.data.sources.listing import Listing
    from simmim.interop.continuing import Beginning
    from simmim.runs.checkpoints import Checkpoint
    from simmim.tasks.pretrain import Images, Prepared
    from simmim.training.world import World

_WHAT = "simmim pretrain"
_PROBED = {"cpu": 512}  # labelled images of the k-NN probe; 4096 on a GPU


def run_pretrain(config: PretrainConfig) -> Path:
    """Pretrain as ``config`` says; returns the run folder.

    Where torchrun has started its processes anew, the run of those before is gone on with.

    Raises:
        SimmimError: A user's mistake; where nothing was started, nothing is left on the disk.
        Stopped: A signal stopped the run, after a checkpoint or before its first step.
    """
    if not config.data:
        raise ConfigError("no images given: simmim pretrain DATA, where DATA is a folder.")
    for where in config.data:
        if not is_elsewhere(where) and "{" not in where:
            check_exists(where)
    source = config.init_from
    start = config.encoder.model if source is None else f"from-{part_of_name(source)}"
    name = f"{config.recipe}-{start}"
    with listen():
        if restarts():
            run = of_earlier_attempt(config, name) if leads() else None
            with _locked(run) if run else nullcontext(), _join(config) as world:
                run = world.share(run)
                if run is not None:
                    with told_how_to_go_on(run):
                        return _go_on(run, {}, world)
        return _begin(config, name)


def _begin(config: PretrainConfig, name: str) -> Path:
    """A new run, or one that was stopped before its first checkpoint."""
    folder = None
    if leads():
        folder = RunFolder(config.out, name, _WHAT, unfinished=True)
    run = folder.path if folder else config.out or Path("runs")
    with told_how_to_go_on(run) as told, folder or nullcontext():
        if folder is not None:
            folder.begin(config)
        listing = None if folder is not None and folder.saved else list_images(config)
        with _join(config) as world:
            run, saved = world.share((run, folder.saved if folder else None))
            told.run = run  # the first process chose it
            session = Session(run, world)
            if saved is None:
                session.prepare(config, listing or list_images(config))
            else:
                session.reopen(*saved, {**vars(config.system), "max_bad": config.max_bad})
            if folder is not None:
                folder.started = True
            session.fit()
            session.close()
    return run


def _join(config: PretrainConfig) -> AbstractContextManager["World"]:
    from simmim.training.world import join  # which imports torch

    return join(config.system.timeout_minutes)


def _locked(run: Path) -> AbstractContextManager[object]:
    return Lock(run, _WHAT) if leads() else nullcontext()


def list_images(config: PretrainConfig) -> "Listing":
    """The images of a run, with a progress line where there are very many."""
    from simmim.data.sources.find import find_images

    stage = terminal.Stage(Console(quiet=not leads()))
    try:
        return find_images(
            *config.data, tile=config.tile, found=lambda n: stage.update(0, f"{n:,} images found")
        )
    finally:
        stage.close()


def run_resume(run: Path, changes: Mapping[str, object]) -> Path:
    """Go on with a run.

    Args:
        run: Its folder.
        changes: Fields of ``SystemConfig``, and ``epochs``, ``budget``, ``lr`` or ``max_bad``, by
            name.

    Raises:
        CheckpointError: Not a run folder, or it or all its checkpoints are damaged.
        ConfigError: Another process has the run, or it cannot be written.
        Stopped: See ``run_pretrain``.
    """
    if not (run / CONFIG).is_file():
        raise CheckpointError(f"{run} is not a run folder: it has no {CONFIG}.")
    with listen(), told_how_to_go_on(run), _locked(run):
        config, _ = read_config(run)
        with _join(change(config, changes)) as world:
            return _go_on(run, changes, world)


def _go_on(run: Path, changes: Mapping[str, object], world: "World") -> Path:
    config, resolved = read_config(run)
    session = Session(run, world)
    if resolved is None:
        # Stopped before step 0: prepare as if new, in the same folder.
        config = change(config, changes)
        session.prepare(config, list_images(config))
    else:
        session.reopen(config, resolved, changes)
    session.fit()
    session.close()
    return run


class Session:
    """One process's part in a run, from its preparation to its report."""

    def __init__(self, run: Path, world: "World") -> None:
        self.run = run
        self.world = world
        self.console = Console(quiet=not world.leads)
        self.step = 0
        self.prepared: Prepared
        self.images: Images
        self.probe: ImageSet | None = None
        self.classes: list[str] = []
        self.begun: Beginning | None = None
        self.newest = None

    def prepare(self, config: PretrainConfig, listing: "Listing") -> None:
        """Look at the images, choose what was left open, and write all of it down."""
        from simmim.data.audit.survey import survey
        from simmim.data.labels import labels_of
        from simmim.data.loading.images import ImageSet
        from simmim.data.sources.find import split_holdout
        from simmim.tasks.pretrain import Images, prepare

        asked = settings_hash(config)
        labels = labels_of(listing, config.labels)
        train, held = split_holdout(listing, config.holdout)
        found = survey(listing, channels=config.encoder.channels)
        pixels = found.pixels
        if config.init_from is not None:
            from simmim.interop.continuing import begin

            self.begun = begin(config, pixels)
            config, pixels = self.begun.config, self.begun.found.pixels
        self.images = Images(train, held, pixels, config.weights)
        self.world.meet()  # to here, each went at its own speed
        start = None if self.begun is None else self.begun.apply
        self.prepared = prepare(config, self.images, self.run, self.world, start)
        if self.begun is not None and self.begun.why_rate is not None:
            self.prepared.resolved.why["lr"] = self.begun.why_rate
        licence = None if self.begun is None else self.begun.licence
        self.prepared.resolved = replace(self.prepared.resolved, asked=asked, licence=licence)
        if labels is not None:
            self.classes = labels.classes
            chosen, classes = labels.sample(_PROBED.get(self.world.device.type, 4096))
            self.probe = ImageSet(chosen, pixels, classes)
        self._print_header(found, labels)
        if self.world.leads:
            self._write_facts(found, listing)

    def reopen(
        self, before: PretrainConfig, resolved: Resolved, changes: Mapping[str, object]
    ) -> None:
        """Take up what the run folder says, and the newest whole checkpoint.

        Args:
            before: The settings of the run so far.
            resolved: What was resolved for it.
            changes: See ``run_resume``.
        """
        from simmim.data.loading.images import ImageSet
        from simmim.runs.images import open_images
        from simmim.tasks.pretrain import Images, reopen
        from simmim.training.world import what_bits_depend_on

        config = change(before, changes)
        saved = open_images(self.run, resolved.lists)
        listing = saved.listing
        self.images = Images(
            listing.without(saved.held), listing.select(saved.held), resolved.pixels, config.weights
        )
        if saved.probe:
            rows, classes = zip(*saved.probe, strict=True)
            self.probe = ImageSet(listing.select(rows), resolved.pixels, classes)
        self.classes = saved.classes
        self.newest = self._find_newest(config)
        start = None
        if self.newest is None and config.init_from is not None:
            from simmim.interop.continuing import begin

            self.begun = begin(config, resolved.pixels)
            start = self.begun.apply
        self.prepared = reopen(config, resolved, self.images, self.run, self.world, start=start)
        if self.newest is not None:
            self.step = self.newest.step
            now = what_bits_depend_on(self.world)
            for name, was in self.newest.state.get("bits", {}).items():
                if now.get(name) != was:
                    self._say(
                        f"note: {name} was {was} and is {now.get(name)}, so the weights will "
                        "differ in their last bits from an uninterrupted run's."
                    )
        if any(name in changes for name in PLANNED):
            self.world.meet()  # to here, each went at its own speed
            lr = before.optim.lr
            assert lr is not None  # it was resolved before the run began
            self.prepared.resolved = plan_anew(self.prepared, changes, lr, self.step, self.world)
            if self.world.leads:
                self._write_config()
            for each in self.prepared.resolved.earlier[-1:]:
                self._say(f"planned anew: {each.why}")
        steps = self.prepared.resolved.steps
        text = f"going on from step {self.step:,} of {steps:,}"
        if self.step >= steps:
            text = f"all {steps:,} steps are done; --epochs or --budget trains longer"
        self._say(text)

    def _find_newest(self, config: PretrainConfig) -> "Checkpoint | None":
        """The checkpoint to go on from, as the first process finds it: the same for all."""
        from simmim.runs.checkpoints import Checkpoints

        found = None
        if self.world.leads:
            checkpoints = Checkpoints(self.run / "checkpoints", config.system.keep)
            try:
                found = checkpoints.newest(lambda text: self._say(f"warning: {text}"))
            except CheckpointError as error:
                found = error
        self.world.meet()  # hashing takes a while
        found = self.world.share(found)
        if isinstance(found, CheckpointError):
            self.world.fail(found)
        return found

    def fit(self) -> None:
        """Train to the end."""
        prepared = self.prepared
        if self.step < prepared.plan.steps:
            from simmim.api.fitting import Fitting

            looks = self._looks() if self.world.leads else ()
            Fitting(self.run, prepared, self.world, self._consoles()).fit(
                looks=looks, resume=self.newest, on_save=self._save_encoder
            )
        elif self.newest is not None and self.world.leads:
            # Killed after its last checkpoint: what is made of it may be missing.
            prepared.task.module.load_state_dict(self.newest.model())
            self._save_encoder(self.step)

    def _say(self, text: str) -> None:
        """Print a line, and keep it in log.txt."""
        for console in self._consoles():
            terminal.line(console, text)

    def _consoles(self) -> list[Console]:
        """The terminal; and log.txt, which has the same in plain lines."""
        if not self.world.leads:
            return [self.console]
        log = Log(self.run / "log.txt")
        return [self.console, Console(file=log, width=100)]  # type: ignore[arg-type]

    def _looks(self) -> Sequence:
        from simmim.api.looks import HoldoutLook, KnnLook

        task, precision = self.prepared.task, self.prepared.resolved.precision
        if not self.prepared.config.system.picture_every:
            return []
        quarantine, held = self.prepared.stream.quarantine, self.images.holdout()
        assert quarantine is not None
        look = HoldoutLook(
            *(task.model, held, precision),
            folder=self.run / "pictures",
            quarantine=quarantine,
        )
        looks: list = [look]
        if self.probe is not None:
            classes = len(self.classes)
            looks.append(KnnLook(task.model, self.probe, classes, precision, quarantine))
        for said in filter(None, (look.said for look in looks)):
            self._say(f"note: {said}")
        return looks

    def _write_config(self) -> None:
        write_config(self.run, self.prepared.config, self.prepared.resolved)

    def _write_facts(self, found: "Survey", listing: "Listing") -> None:
        """config.yaml last: with its ``resolved`` part, a resume needs no preparation."""
        from simmim.runs.images import save_images

        images = self.images
        split = {"train": len(images.train), "holdout": len(images.held)}
        facts = {"sources": [info.where for info in listing.infos], **found.as_dict(), **split}
        with preparing(self.run):
            write_json(self.run / "environment.json", environment())
            write_json(self.run / "data.json", facts)
            lists = save_images(self.run, listing, images.held, self.classes, self.probe)
            self.prepared.resolved = replace(self.prepared.resolved, lists=lists)
            self._write_config()

    def _save_encoder(self, step: int) -> None:
        from simmim.runs.encoder import save_encoder

        config, model = self.prepared.config, self.prepared.task.model
        licence = self.prepared.resolved.licence
        save_encoder(
            self.run,
            model.encoder,
            model.pixels,
            {
                "recipe": config.recipe,
                "step": step,
                "steps": self.prepared.resolved.steps,
                "images": self.prepared.resolved.images,
                "started_from": config.init_from or "random weights",
                **({"licence": licence} if licence else {}),
            },
        )

    def _print_header(self, found: "Survey", labels: "Labels | None") -> None:
        from simmim.api.header import chosen_rows, found_rows

        config = self.prepared.config
        rows = (
            found_rows(found, self.prepared, labels) + (self.begun.rows if self.begun else []),
            chosen_rows(self.prepared, self.world),
        )
        title = f"simmim pretrain {shlex.join(config.data)} → {self.run}"
        for console in self._consoles():
            terminal.header(console, title, *rows)

    def close(self) -> None:
        """Write the report, and say where the results are and what one would do next."""
        if not self.world.leads:
            return
        from simmim.api.closing import closing_lines
        from simmim.report.html import run_report

        report = run_report(self.run)
        terminal.done(closing_lines(self.run, self.prepared.config, report), self.console)
