"""`simmim pretrain`: from a folder of images to a run folder."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from simmim.config.resolved import Resolved
from simmim.config.run import PretrainConfig
from simmim.config.saved import settings_hash
from simmim.data.places import check_exists, is_elsewhere
from simmim.errors import CheckpointError, ConfigError
from simmim.report import terminal
from simmim.training.files import Log
from simmim.training.lock import Lock
from simmim.training.run import (
    CONFIG,
    RunFolder,
    environment,
    leads,
    part_of_name,
    preparing,
    read_config,
    write_config,
    write_json,
)

if TYPE_CHECKING:  # torch is imported inside the functions: config.yaml is on the disk before
    from simmim.data.labels import Labels
    from simmim.data.loader import ImageSet
    from simmim.data.sources.listing import Listing
    from simmim.data.survey import Survey
    from simmim.interop.begin import Beginning
    from simmim.training.checkpoint import Checkpoint
    from simmim.training.loop import Plan
    from simmim.training.pretrain import Images, Prepared
    from simmim.training.world import World

_PROBED = {"cpu": 512}  # labelled images of the k-NN probe; 4096 on a GPU


def run_pretrain(config: PretrainConfig) -> Path:
    """Pretrain as ``config`` says; returns the run folder.

    Raises:
        SimmimError: A user's mistake; where nothing was started, nothing is left on the disk.
        Stopped: A signal stopped the run, after a checkpoint.
    """
    if not config.data:
        raise ConfigError("no images given: simmim pretrain DATA, where DATA is a folder.")
    for where in config.data:
        if not is_elsewhere(where) and "{" not in where:
            check_exists(where)
    source = config.init_from
    start = config.encoder.model if source is None else f"from-{part_of_name(source)}"
    name, folder = f"{config.recipe}-{start}", None
    if leads():
        folder = RunFolder(config.out, name, "simmim pretrain", unfinished=True)
    with folder or nullcontext():
        if folder is not None:
            folder.begin(config)
        listing = None if folder is not None and folder.saved else list_images(config)
        from simmim.training.world import join

        with join() as world:
            run, saved = world.share((folder.path, folder.saved) if folder else (Path(), None))
            session = Session(run, world)
            if saved is None:
                session.prepare(config, listing or list_images(config))
            else:
                session.reopen(*saved, replan=False)
            if folder is not None:
                folder.started = True
            session.fit()
            session.close()
    return session.run


def list_images(config: PretrainConfig) -> "Listing":
    """The images of a run, with a progress line where there are very many."""
    from simmim.data.find import find_images

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
        changes: Fields of ``SystemConfig``, and ``epochs``, ``budget`` or ``max_bad``, by name.

    Raises:
        CheckpointError: Not a run folder, or it or all its checkpoints are damaged.
        ConfigError: Another process has the run, or it cannot be written.
        Stopped: See ``run_pretrain``.
    """
    if not (run / CONFIG).is_file():
        raise CheckpointError(f"{run} is not a run folder: it has no {CONFIG}.")
    with Lock(run, "simmim pretrain") if leads() else nullcontext():
        config, resolved = read_config(run)
        config = _apply(config, changes)
        from simmim.training.world import join

        with join() as world:
            session = Session(run, world)
            if resolved is None:
                # Stopped before step 0: prepare as if new, in the same folder.
                session.prepare(config, list_images(config))
            else:
                replan = "epochs" in changes or "budget" in changes
                session.reopen(config, resolved, replan=replan)
            session.fit()
            session.close()
    return run


def _apply(config: PretrainConfig, changes: Mapping[str, object]) -> PretrainConfig:
    names = ("epochs", "budget", "max_bad")
    own = {name: value for name, value in changes.items() if name in names}
    system = {name: value for name, value in changes.items() if name not in names}
    if "epochs" in own or "budget" in own:
        own = {"epochs": None, "budget": None, **own}
    return replace(config, system=replace(config.system, **system), **own)  # type: ignore[arg-type]


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
        from simmim.data.find import split_holdout
        from simmim.data.labels import labels_of
        from simmim.data.loader import ImageSet
        from simmim.data.survey import survey
        from simmim.training.pretrain import Images, prepare

        asked = settings_hash(config)
        labels = labels_of(listing, config.labels)
        train, held = split_holdout(listing, config.holdout)
        found = survey(listing, channels=config.encoder.channels)
        pixels = found.pixels
        if config.init_from is not None:
            from simmim.interop.begin import begin

            self.begun = begin(config, pixels)
            config, pixels = self.begun.config, self.begun.found.pixels
        self.images = Images(train, held, pixels, config.weights)
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

    def reopen(self, config: PretrainConfig, resolved: Resolved, *, replan: bool) -> None:
        """Take up what the run folder says, and the newest whole checkpoint."""
        from simmim.api.images import open_images
        from simmim.data.loader import ImageSet
        from simmim.training.loop import what_bits_depend_on
        from simmim.training.pretrain import Images, reopen

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
            from simmim.interop.begin import begin

            self.begun = begin(config, resolved.pixels)
            start = self.begun.apply
        self.prepared = reopen(config, resolved, self.images, self.run, self.world, start=start)
        if self.newest is not None:
            self.step = self.newest.step
            now = what_bits_depend_on(self.world)
            for name, before in self.newest.state.get("bits", {}).items():
                if now.get(name) != before:
                    self._say(
                        f"note: {name} was {before} and is {now.get(name)}, so the weights will "
                        "differ in their last bits from an uninterrupted run's."
                    )
        if replan:
            self._replan()
        steps = self.prepared.resolved.steps
        text = f"going on from step {self.step:,} of {steps:,}"
        if self.step >= steps:
            text = f"all {steps:,} steps are done; --epochs or --budget trains longer"
        self._say(text)

    def _find_newest(self, config: PretrainConfig) -> "Checkpoint | None":
        """The checkpoint to go on from, as the first process finds it: the same for all."""
        from simmim.training.checkpoint import Checkpoints

        found = None
        if self.world.leads:
            checkpoints = Checkpoints(self.run / "checkpoints", config.system.keep)
            try:
                found = checkpoints.newest(lambda text: self._say(f"warning: {text}"))
            except CheckpointError as error:
                found = error
        found = self.world.share(found)
        if isinstance(found, CheckpointError):
            raise found
        return found

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def fit(self) -> None:
        """Train to the end."""
        from simmim.training.monitor import Metrics
        from simmim.training.pretrain import fit
        from simmim.training.stop import Stopped, listen

        prepared, run = self.prepared, self.run
        plan = prepared.plan
        if self.step >= plan.steps and self.newest is not None and self.world.leads:
            # Killed after its last checkpoint: what is made of it may be missing.
            prepared.task.module.load_state_dict(self.newest.model())
            self._save_encoder(self.step)
        if self.step < plan.steps:
            display = terminal.Progress(
                self.console, plan.steps, self.step, plan.steps / plan.epoch
            )
            watchers, metrics = [], None
            if self.world.leads:
                metrics = Metrics(
                    run,
                    step=self.step,
                    tensorboard=prepared.config.system.tensorboard,
                    warn=display.note,
                )
                watchers = [display, metrics, self._log(plan)]
            try:
                with display, listen() as stop:
                    fit(
                        prepared,
                        run,
                        self.world,
                        watchers=watchers,
                        looks=self._looks() if self.world.leads else (),
                        resume=self.newest,
                        on_save=self._save_encoder,
                        stop=stop,
                    )
            except Stopped:
                self.console.print(
                    f"go on with: simmim pretrain --resume {run}", highlight=False, soft_wrap=True
                )
                raise
            finally:
                if metrics is not None:
                    metrics.close()

    def _log(self, plan: "Plan") -> terminal.Progress:
        """log.txt: what the terminal says, in plain lines."""
        console = self._log_console()
        return terminal.Progress(console, plan.steps, self.step, plan.steps / plan.epoch)

    def _log_console(self) -> Console:
        return Console(file=Log(self.run / "log.txt"), width=100)  # type: ignore[arg-type]

    def _looks(self) -> Sequence:
        from simmim.api.looks import HoldoutLook, KnnLook

        task, precision = self.prepared.task, self.prepared.resolved.precision
        if not self.prepared.config.system.picture_every:
            return []
        looks: list = [
            HoldoutLook(
                task.model, task.masker, self.images.holdout(), precision, self.run / "pictures"
            )
        ]
        if self.probe is not None:
            looks.append(KnnLook(task.model, self.probe, len(self.classes), precision))
        return looks

    def _replan(self) -> None:
        from simmim.training import resolve

        prepared = self.prepared
        config, resolved = prepared.config, prepared.resolved

        def measure() -> float:
            fit = resolve.Fit(resolved.batch_size, resolved.micro_batch, resolved.precision)
            return resolve.rehearse(prepared.task, config, prepared.stream, self.world, fit)

        length = resolve.pick_length(
            config, resolved.images, resolved.batch_size, self.world.device, measure
        )
        # A budget given with --resume is for what is still to come.
        steps = length.steps + (self.step if config.budget else 0)
        if steps <= self.step:
            raise ConfigError(
                f"--epochs {config.epochs:g} means {steps} steps, and {self.step} are done; give "
                f"more than {self.step * resolved.batch_size / resolved.images:.1f}."
            )
        why = {**resolved.why, "steps": f"{length.why}, planned anew at step {self.step}"}
        prepared.resolved = replace(resolved, steps=steps, why=why)
        if self.world.leads:
            self._write_config()

    def _write_config(self) -> None:
        write_config(self.run, self.prepared.config, self.prepared.resolved)

    def _write_facts(self, found: "Survey", listing: "Listing") -> None:
        """config.yaml last: with its ``resolved`` part, a resume needs no preparation."""
        from simmim.api.images import save_images

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
        from simmim.interop.deploy import save_encoder

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
        for console in [self.console, *([self._log_console()] if self.world.leads else [])]:
            terminal.header(console, title, *rows)

    def close(self) -> None:
        """Write the report, and say where the results are and what one would do next."""
        if not self.world.leads:
            return
        from simmim.api.closing import closing_lines
        from simmim.report.html import run_report

        report = run_report(self.run)
        terminal.done(closing_lines(self.run, self.prepared.config, report), self.console)
