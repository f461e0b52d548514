"""What may be planned anew when a run is gone on with: its length and its rate."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from simmim.config.nearest import did_you_mean
from simmim.config.resolved import Earlier
from simmim.config.run import SystemConfig, TrainingConfig
from simmim.errors import ConfigError

if TYPE_CHECKING:
    from simmim.config.resolved import Resolved
    from simmim.training.prepare import Training
    from simmim.training.world import World

C = TypeVar("C", bound=TrainingConfig)

PLANNED = ("epochs", "budget", "lr")
"""Names of what changes the plan of a run."""


def change(config: C, changes: Mapping[str, object]) -> C:
    """The settings of a run with what a resume changes in them.

    Args:
        config: What the run was asked to be.
        changes: Fields of ``SystemConfig``, and ``epochs``, ``budget``, ``lr`` or ``max_bad``.

    Raises:
        ConfigError: Another name, or a value out of range.
    """
    names = [field.name for field in fields(SystemConfig)]
    for name in changes:
        if name not in (*names, *PLANNED, "max_bad"):
            known = (*PLANNED, "max_bad", *names)
            raise ConfigError(
                f"{name} cannot be changed in a run.{did_you_mean(name, known)} What can: "
                f"{', '.join(known)}."
            )
    own = {name: changes[name] for name in ("epochs", "budget", "max_bad") if name in changes}
    if "epochs" in own or "budget" in own:
        own = {"epochs": None, "budget": None, **own}
    if "lr" in changes:
        own["optim"] = replace(config.optim, lr=changes["lr"])  # type: ignore[arg-type]
    system = {name: value for name, value in changes.items() if name in names}
    return replace(config, system=replace(config.system, **system), **own)  # type: ignore[arg-type]


def plan_anew(
    training: "Training[Any, Any]",
    changes: Mapping[str, object],
    lr: float,
    step: int,
    world: "World",
) -> "Resolved":
    """What is to be followed from ``step`` on, where the length or the rate was changed.

    Args:
        training: The run with its new settings.
        changes: See ``change``; the same budget again is one more.
        lr: The rate before.
        step: Steps done.
        world: The processes.

    Raises:
        ConfigError: The new length is behind the run already.
    """
    resolved = training.resolved
    why, reasons, new = dict(resolved.why), [], {}
    if "epochs" in changes or "budget" in changes:
        new, reason = _length(training, step, world)
        why["steps"] = f"{reason}, planned anew at step {step:,}"
        reasons.append(why["steps"])
    if "lr" in changes:
        why["lr"] = f"--optim.lr, in place of {lr:.2g} from step {step:,} on"
        reasons.append(why["lr"])
    past = _past(resolved, lr, step, "; ".join(reasons))
    return replace(resolved, why=why, earlier=past, **new)


def _length(training: "Training[Any, Any]", step: int, world: "World") -> tuple[dict, str]:
    """The new number of steps with whether it stands, and the reason."""
    from simmim.training import resolve

    config, resolved = training.config, training.resolved

    def measure() -> float:
        fit = resolve.StepSettings(resolved.batch_size, resolved.micro_batch, resolved.precision)
        return resolve.rehearse(training.task, config, training.stream, world, fit)

    length = resolve.pick_length(
        config, resolved.images, resolved.batch_size, world.device.type, measure
    )
    # A budget given with --resume is for what is still to come.
    steps = length.steps + (step if config.budget else 0)
    if steps <= step:
        raise ConfigError(
            f"--epochs {config.epochs:g} means {steps} steps, and {step} are done; give more than "
            f"{step * resolved.batch_size / resolved.images:.1f}."
        )
    return {"steps": steps, "spent": length.spent}, length.why


def _past(resolved: "Resolved", lr: float, step: int, why: str) -> tuple[Earlier, ...]:
    """What was followed up to ``step``, and up to when each."""
    if step == 0:
        return ()
    kept = tuple(each for each in resolved.earlier if each.until < step)
    # A run may go on from a step before its last change.
    later = [each for each in resolved.earlier if each.until >= step]
    steps, lr = (later[0].steps, later[0].lr) if later else (resolved.steps, lr)
    return (*kept, Earlier(until=step, steps=steps, lr=lr, why=why))
