"""A run of any task, from its config to its report: the same folder, checkpoints and signals."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from rich.console import Console

from simmim.api.changes import PLANNED, change, plan_anew
from simmim.config.resolved import Resolved
from simmim.config.run import TrainingConfig
from simmim.config.saved import settings_hash
from simmim.errors import CheckpointError, TrainingError
from simmim.report import terminal
from simmim.report.words import duration
from simmim.runs.files import Log
from simmim.runs.folder import environment, preparing, write_config, write_json
from simmim.runs.stop import listen

if TYPE_CHECKING:  # torch is imported inside the functions: config.yaml is on the disk before
    from simmim.runs.checkpoints import Checkpoint
    from simmim.runs.images import RunImages
    from simmim.training.health import DivergedError
    from simmim.training.loop import Look
    from simmim.training.plan import Plan
    from simmim.training.prepare import Training
    from simmim.training.world import World

C = TypeVar("C", bound=TrainingConfig)


class Session(Generic[C]):
    """One process's part in a run, from its preparation to its report; a task fills in the rest.

    Attributes:
        run: The run folder.
        world: The processes.
        console: Quiet in all processes but the first.
        step: Steps done before this attempt.
        training: What is trained, once it is prepared or reopened.
        newest: The checkpoint that is gone on from.
        found: What was found before step 0, name and value, for the header.
        facts: What data.json says.
        licence: That of the weights that the run started from.
    """

    settings: ClassVar[type[TrainingConfig]]

    def __init__(self, run: Path, world: "World") -> None:
        self.run = run
        self.world = world
        self.console = Console(quiet=not world.leads)
        self.step = 0
        self.training: Training[C, Any]
        self.newest: Checkpoint | None = None
        self.found: list[tuple[str, str]] = []
        self.facts: dict[str, object] = {}
        self.licence: str | None = None

    @classmethod
    def gather(cls, config: C) -> Any:
        """What the run is on, before the processes wait for each other; see ``choose``."""
        raise NotImplementedError

    def choose(self, config: C, gathered: Any) -> "Training[C, Any]":
        """Prepare the training; what was found is put into the session."""
        raise NotImplementedError

    def open(self, config: C, resolved: Resolved, saved: "RunImages") -> "Training[C, Any]":
        """The training as it was prepared before, on the images that the run's folder lists."""
        raise NotImplementedError

    def save_lists(self) -> str:
        """Write which images the run is on; see ``save_images``."""
        raise NotImplementedError

    def looks(self) -> "Sequence[Look]":
        """What progress is measured by, in all processes."""
        raise NotImplementedError

    def chosen(self) -> list[tuple[str, str, str]]:
        """What was chosen for this task alone: name, value, reason."""
        raise NotImplementedError

    @property
    def lineage(self) -> dict[str, object]:
        """Where the weights come from, beside what all runs tell."""
        raise NotImplementedError

    def finish(self) -> list[str]:
        """Write the results and the report, with all processes; the lines to close with."""
        raise NotImplementedError

    def prepare(self, config: C, gathered: Any) -> None:
        """Choose what was left open, and write all of it down."""
        asked = settings_hash(config)
        self.world.meet()  # to here, each went at its own speed
        self.training = self.choose(config, gathered)
        resolved = replace(self.training.resolved, asked=asked, licence=self.licence)
        self.training.resolved = resolved
        config = self.training.config
        title = f"simmim {config.command} {shlex.join(config.data)} → {self.run}"
        for console in self.consoles():
            terminal.header(console, title, self.found, self.choices())
        if self.world.leads:
            with preparing(self.run):
                write_json(self.run / "environment.json", environment())
                write_json(self.run / "data.json", self.facts)
                # config.yaml last: with its ``resolved`` part, a resume needs no preparation.
                self.training.resolved = replace(resolved, lists=self.save_lists())
                self._write_config()

    def reopen(self, before: C, resolved: Resolved, changes: Mapping[str, object]) -> None:
        """Take up what the run folder says, and the newest whole checkpoint.

        Args:
            before: The settings of the run so far.
            resolved: What was resolved for it.
            changes: See ``resume``.
        """
        from simmim.runs.images import open_images
        from simmim.training.world import what_bits_depend_on

        config = change(before, changes)
        saved = open_images(self.run, resolved.lists)
        self.newest = self._find_newest(config)
        self.training = self.open(config, resolved, saved)
        if self.newest is not None:
            self.step = self.newest.step
            now = what_bits_depend_on(self.world)
            for name, was in self.newest.state.get("bits", {}).items():
                if now.get(name) != was:
                    self.say(
                        f"note: {name} was {was} and is {now.get(name)}, so the weights will "
                        "differ in their last bits from an uninterrupted run's."
                    )
        self.world.meet()  # to here, each went at its own speed
        if any(name in changes for name in PLANNED):
            lr = before.optim.lr
            assert lr is not None  # it was resolved before the run began
            self.training.resolved = plan_anew(self.training, changes, lr, self.step, self.world)
            if self.world.leads:
                self._write_config()
            for each in self.training.resolved.earlier[-1:]:
                self.say(f"planned anew: {each.why}")
        steps = self.training.resolved.steps
        text = f"going on from step {self.step:,} of {steps:,}"
        if self.step >= steps:
            text = f"all {steps:,} steps are done; --epochs or --budget trains longer"
        self.say(text)

    def _find_newest(self, config: C) -> "Checkpoint | None":
        """The checkpoint to go on from, as the first process finds it: the same for all."""
        from simmim.runs.checkpoints import Checkpoints

        found = None
        if self.world.leads:
            checkpoints = Checkpoints(self.run / "checkpoints", config.system.keep)
            try:
                found = checkpoints.newest(lambda text: self.say(f"warning: {text}"))
            except CheckpointError as error:
                found = error
        self.world.meet()  # hashing takes a while
        found = self.world.share(found)
        if isinstance(found, CheckpointError):
            self.world.fail(found)
        return found

    def fit(self) -> None:
        """Train to the end; see ``simmim.training.loop.train``."""
        from simmim.runs.checkpoints import Checkpoints
        from simmim.runs.metrics import Metrics
        from simmim.training.health import DivergedError
        from simmim.training.loop import train

        training, plan = self.training, self.training.plan
        if self.step >= plan.steps:
            self._save_anew()
            return
        leads, system = self.world.leads, training.config.system
        displays = [
            terminal.Progress(console, plan.steps, self.step, plan.steps / plan.epoch)
            for console in self.consoles()
        ]
        looks = self.looks() if system.picture_every else ()
        metrics = None
        if leads:
            metrics = Metrics(
                self.run,
                step=self.step,
                tensorboard=system.tensorboard,
                every_step=system.log_every == 0,
                warn=displays[0].note,
            )
        try:
            with listen() as stop, displays[0], stop.waiting():
                train(
                    training.task,
                    plan,
                    training.stream,
                    self.world,
                    watchers=[*displays, *([metrics] if metrics else [])] if leads else (),
                    looks=looks,
                    checkpoints=Checkpoints(self.run / "checkpoints", system.keep),
                    resume=self.newest,
                    on_save=self._deploy,
                    on_plan=lambda plan: self._follow(plan, displays),
                    stop=stop,
                )
        except DivergedError as error:
            raise self._with_advice(error) from error
        finally:
            training.stream.close()
            if metrics is not None:
                metrics.close()

    def _save_anew(self) -> None:
        """Write what may be missing of a run that was killed after its last checkpoint."""
        if self.newest is not None:
            self.training.task.module.load_state_dict(self.newest.model())
            self._deploy(self.step)

    def _deploy(self, step: int) -> None:
        resolved = self.training.resolved
        facts = {"step": step, "steps": resolved.steps, "images": resolved.images}
        licence = {"licence": resolved.licence} if resolved.licence else {}
        self.training.task.deploy(self.run, {**self.lineage, **facts, **licence}, self.world)

    def _with_advice(self, error: "DivergedError") -> TrainingError:
        """An error that says what to do about its cause."""
        config = self.training.config
        if error.cause == "images":
            advice = f"Look at them: {shlex.join(['simmim', 'scan', *config.data])}"
            return TrainingError(f"{error} {advice}", again=None)
        rate = config.optim.lr or 0.0
        usual = config.usual_rate(self.training.task.encoder.width)
        lower = usual if rate > 2 * usual else rate / 3
        precision = self.training.resolved.precision
        other = "" if precision == "fp32" else f", or a new run with --precision fp32 ({precision})"
        advice = f"What helps is a rate below {rate:.2g}{other}."
        return TrainingError(f"{error} {advice}", again=("--optim.lr", f"{lower:.2g}"))

    def _follow(self, plan: "Plan", displays: Sequence[terminal.Progress]) -> None:
        """Show and write down the steps that were counted anew for a budget."""
        resolved, before = self.training.resolved, plan.earlier[-1]
        budget = resolved.why["steps"].partition(" ")[0].rstrip(",")
        self.training.resolved = replace(
            resolved,
            steps=plan.steps,
            spent=plan.spent if plan.budget else None,
            earlier=plan.earlier,
            why={**resolved.why, "steps": f"{budget}, {before.why}"},
        )
        for display in displays:
            display.plan(plan.steps, plan.steps / plan.epoch)
            display.note(
                f"the steps for {budget} were {before.why}: {plan.steps:,} in all, "
                f"in place of {before.steps:,}"
            )
        if self.world.leads:
            self._write_config()

    def say(self, text: str) -> None:
        """Print a line, and keep it in log.txt."""
        for console in self.consoles():
            terminal.line(console, text)

    def consoles(self) -> list[Console]:
        """The terminal; and log.txt, which has the same in plain lines."""
        if not self.world.leads:
            return [self.console]
        log = Log(self.run / "log.txt")
        return [self.console, Console(file=log, width=100)]  # type: ignore[arg-type]

    def _write_config(self) -> None:
        write_config(self.run, self.training.config, self.training.resolved)

    def choices(self) -> list[tuple[str, str, str]]:
        """What was chosen, and why."""
        config, resolved, encoder = (
            self.training.config,
            self.training.resolved,
            self.training.task.encoder,
        )
        why, (height, width) = resolved.why, resolved.image_size
        parameters = sum(p.numel() for p in encoder.parameters()) / 1e6
        ranks = self.world.ranks
        pieces = -(-(resolved.batch_size // ranks) // resolved.micro_batch)
        cut = f"{resolved.micro_batch} × {pieces}" + (f" × {ranks}" if ranks > 1 else "")
        rate = config.optim.peak(resolved.batch_size)
        epochs = resolved.steps * resolved.batch_size / resolved.images
        return [
            *self.chosen(),
            ("encoder", encoder.model, f"{parameters:.1f} M parameters"),
            ("image", f"{height}×{width}", f"patches of {encoder.patch} pixels"),
            ("batch", f"{resolved.batch_size}", why["batch_size"]),
            ("micro-batch", cut, why["micro_batch"]),
            ("length", f"{resolved.steps:,} steps, {epochs:.1f} epochs", why["steps"]),
            ("time", *self._time()),
            ("optimizer", config.optim.kind, "--optim.kind"),
            ("rate", f"{rate:.2g}", f"{config.optim.lr:.2g} per 256 images, {why['lr']}"),
            ("precision", resolved.precision, why["precision"]),
            ("threads", f"{resolved.threads}", why["threads"]),
        ]

    @staticmethod
    def hardware() -> tuple[str, str]:
        """A row of the header: what trains, and the memory that is free."""
        import torch

        from simmim.machine import available_memory, cores

        facts = environment()
        name = facts["gpu"] or f"{facts['cpu']}, {cores()} cores"
        memory = f"{available_memory(torch.device('cpu')) / 1e9:.0f} GB of memory free"
        return "hardware", f"{name}, {memory}"

    def _time(self) -> tuple[str, str]:
        """How long the run takes, and how that is known."""
        plan = self.training.plan
        if plan.budget:
            return duration(plan.budget), (
                "from the first step on, pictures and saves included; the steps for it are counted "
                "anew as it is known what they take"
            )
        seconds = self.training.seconds_per_image * plan.batch_size * plan.steps
        return f"about {duration(seconds)}", "by a short rehearsal; pictures and saves beside"

    def close(self) -> None:
        """Write the results, and say where they are and what one would do next."""
        lines = self.finish()
        if self.world.leads:
            terminal.done(lines, self.console)
