"""The training of a run: shown, written down, and what to do where it went wrong."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from simmim.errors import TrainingError
from simmim.report import terminal
from simmim.runs.checkpoints import Checkpoint
from simmim.runs.folder import write_config
from simmim.runs.metrics import Metrics
from simmim.runs.stop import listen
from simmim.tasks.pretrain import Prepared, fit
from simmim.training.health import DivergedError
from simmim.training.loop import Look
from simmim.training.plan import Plan
from simmim.training.world import World


class Fitting:
    """One process's part in the training of a run.

    Args:
        run: The run folder.
        prepared: The run; a length that is counted anew is put into it.
        world: The processes.
        consoles: Where progress is shown: the terminal, and log.txt.
    """

    def __init__(
        self, run: Path, prepared: Prepared, world: World, consoles: Sequence[Console]
    ) -> None:
        self.run, self.prepared, self.world = run, prepared, world
        self.consoles = consoles
        self.displays: list[terminal.Progress] = []

    def fit(
        self, *, looks: Sequence[Look], resume: Checkpoint | None, on_save: Callable[[int], None]
    ) -> None:
        """Train to the end; see ``simmim.training.loop.train``."""
        plan, step = self.prepared.plan, 0 if resume is None else resume.step
        self.displays = [
            terminal.Progress(console, plan.steps, step, plan.steps / plan.epoch)
            for console in self.consoles
        ]
        metrics = None
        if self.world.leads:
            system = self.prepared.config.system
            metrics = Metrics(
                self.run,
                step=step,
                tensorboard=system.tensorboard,
                every_step=system.log_every == 0,
                warn=self.displays[0].note,
            )
        try:
            with listen() as stop, self.displays[0], stop.waiting():
                fit(
                    self.prepared,
                    self.run,
                    self.world,
                    watchers=[*self.displays, *([metrics] if metrics else [])],
                    looks=looks,
                    resume=resume,
                    on_save=on_save,
                    on_plan=self._follow,
                    stop=stop,
                )
        except DivergedError as error:
            raise self._with_advice(error) from error
        finally:
            if metrics is not None:
                metrics.close()

    def _with_advice(self, error: DivergedError) -> TrainingError:
        """An error that says what to do about its cause."""
        config = self.prepared.config
        if error.cause == "images":
            advice = f"Look at them: {shlex.join(['simmim', 'scan', *config.data])}"
            return TrainingError(f"{error} {advice}", again=None)
        rate = config.optim.lr or 0.0
        usual = replace(config.optim, lr=None).base(self.prepared.task.model.encoder.width)
        lower = usual if rate > 2 * usual else rate / 3
        precision = self.prepared.resolved.precision
        other = "" if precision == "fp32" else f", or a new run with --precision fp32 ({precision})"
        advice = f"What helps is a rate below {rate:.2g}{other}."
        return TrainingError(f"{error} {advice}", again=("--optim.lr", f"{lower:.2g}"))

    def _follow(self, plan: Plan) -> None:
        """Show and write down the steps that were counted anew for a budget."""
        resolved, before = self.prepared.resolved, plan.earlier[-1]
        budget = resolved.why["steps"].partition(" ")[0]
        self.prepared.resolved = replace(
            resolved,
            steps=plan.steps,
            settled=not plan.budget,
            spent=plan.spent,
            earlier=plan.earlier,
            why={**resolved.why, "steps": f"{budget}, {before.why}"},
        )
        for display in self.displays:
            display.plan(plan.steps, plan.steps / plan.epoch)
            display.note(
                f"the steps for {budget} were {before.why}: {plan.steps:,} in all, "
                f"in place of {before.steps:,}"
            )
        if self.world.leads:
            write_config(self.run, self.prepared.config, self.prepared.resolved)
