"""A run is begun, or gone on with; and whatever ends it says with which command it goes on."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from simmim.api.changes import change
from simmim.api.session import Session
from simmim.config.resolved import Resolved
from simmim.config.run import TrainingConfig
from simmim.data.sources.places import check_exists, is_elsewhere
from simmim.errors import (
    CheckpointError,
    ConfigError,
    ReportedError,
    SimmimError,
    Stopped,
    TrainingError,
    running,
)
from simmim.report import terminal
from simmim.runs.files import FAILED, Log
from simmim.runs.folder import CONFIG, RunFolder, is_asked_for, read_config
from simmim.runs.lock import Lock
from simmim.runs.stop import listen
from simmim.training.launch import go_on, leads, restarts

if TYPE_CHECKING:  # torch is imported inside the functions: config.yaml is on the disk before
    from simmim.training.world import World

C = TypeVar("C", bound=TrainingConfig)


def begin(kind: type[Session[C]], config: C) -> Path:
    """Train as ``config`` says; returns the run folder.

    Where torchrun has started its processes anew, the run of those before is gone on with.

    Raises:
        SimmimError: A user's mistake; where nothing was started, nothing is left on the disk.
        Stopped: A signal stopped the run, after a checkpoint or before its first step.
    """
    for where in config.data:
        if not is_elsewhere(where) and "{" not in where:
            check_exists(where)
    with listen():
        if restarts():
            run = of_earlier_attempt(config) if leads() else None
            with _locked(run, config) if run else nullcontext(), _join(config) as world:
                run = world.share(run)
                if run is not None:
                    with told_how_to_go_on(run, config.command):
                        return _go_on(kind, run, read_config(run, kind.settings), {}, world)
        folder = None
        if leads():
            what = f"simmim {config.command}"
            folder = RunFolder(config.out, config.folder_name, what)
        run = folder.path if folder else config.out or Path("runs")
        with told_how_to_go_on(run, config.command) as told, folder or nullcontext():
            if folder is not None:
                folder.begin(config)
            gathered = None
            if folder is None or not folder.saved:
                text = f"preparing: the images of {shlex.join(config.data)} are listed and sampled"
                terminal.line(Console(quiet=not leads()), f"{text}, then some steps are timed")
                gathered = kind.gather(config)
            with _join(config) as world:
                run, saved = world.share((run, folder.saved if folder else None))
                told.run = run  # the first process chose it
                session = kind(run, world)
                if saved is None:
                    session.prepare(config, kind.gather(config) if gathered is None else gathered)
                else:
                    changes = {**vars(config.system), "max_bad": config.max_bad}
                    session.reopen(*saved, changes)  # type: ignore[arg-type]
                if folder is not None:
                    folder.started = True
                with running():
                    session.fit()
                    session.close()
    return run


def resume(kind: type[Session[C]], run: Path, changes: Mapping[str, object]) -> Path:
    """Go on with a run.

    Args:
        kind: The task's session.
        run: Its folder.
        changes: Fields of ``SystemConfig``, and ``epochs``, ``budget``, ``lr`` or ``max_bad``, by
            name.

    Raises:
        CheckpointError: Not a run folder, of another task, or it or all its checkpoints are
            damaged.
        ConfigError: Another process has the run, or it cannot be written.
        Stopped: See ``begin``.
    """
    command = kind.settings.command
    if not (run / CONFIG).is_file():
        raise CheckpointError(f"{run} is not a run folder: it has no {CONFIG}.")
    with listen(), told_how_to_go_on(run, command), _locked(run, kind.settings):
        saved = read_config(run, kind.settings)
        with _join(change(saved[0], changes)) as world:
            return _go_on(kind, run, saved, changes, world)


def _go_on(
    kind: type[Session[C]],
    run: Path,
    saved: tuple[TrainingConfig, Resolved | None],
    changes: Mapping[str, object],
    world: "World",
) -> Path:
    config, resolved = saved
    session = kind(run, world)
    if resolved is None:
        # Stopped before step 0: prepare as if new, in the same folder.
        config = change(config, changes)
        session.prepare(config, kind.gather(config))  # type: ignore[arg-type]
    else:
        session.reopen(config, resolved, changes)  # type: ignore[arg-type]
    with running():
        session.fit()
        session.close()
    return run


def _join(config: TrainingConfig) -> AbstractContextManager["World"]:
    from simmim.training.world import join  # which imports torch

    return join(config.system.timeout_minutes)


def _locked(
    run: Path, config: TrainingConfig | type[TrainingConfig]
) -> AbstractContextManager[object]:
    return Lock(run, f"simmim {config.command}") if leads() else nullcontext()


def check_data(config: TrainingConfig) -> None:
    """Raise ``ConfigError`` where no images are named."""
    if not config.data:
        raise ConfigError(
            f"no images given: simmim {config.command} DATA, where DATA is a folder of images."
        )


def of_earlier_attempt(config: TrainingConfig) -> Path | None:
    """The newest run folder of this very command, where there is one."""
    folders = sorted(Path("runs").glob(f"*-{config.folder_name}*"), reverse=True)
    for folder in [config.out] if config.out else folders:
        if (folder / CONFIG).is_file():
            saved, resolved = read_config(folder, type(config))
            if is_asked_for(config, saved, resolved):
                return folder
    return None


@dataclass
class ResumableRun:
    """A run that the command to go on is about; its folder may not be there yet."""

    run: Path


@contextmanager
def told_how_to_go_on(run: Path, command: str) -> Iterator[ResumableRun]:
    """Let whatever ends a run say with which command it is gone on with.

    Args:
        run: Its folder; another one may be put into what is given.
        command: That trains it.
    """
    told = ResumableRun(run)
    try:
        yield told
    except (Stopped, KeyboardInterrupt) as stopped:
        if (told.run / CONFIG).is_file():
            terminal.line(Console(quiet=not leads()), f"go on with: {go_on(told.run, command)}")
            how = "before or after its training; nothing is lost."
        else:
            how = "before anything was started."
        if isinstance(stopped, KeyboardInterrupt):
            raise KeyboardInterrupt(how) from None
        raise stopped if stopped.how else Stopped(stopped.number, how) from None
    except Exception as error:
        told_all = error
        if isinstance(error, TrainingError) and error.again is not None:
            again = go_on(told.run, command, *error.again)
            told_all = TrainingError(f"{error} Go on with: {again}")
            told_all.started = error.started
        _log_failure(told.run, told_all)
        if told_all is error:
            raise
        raise told_all from error


def _log_failure(run: Path, error: Exception) -> None:
    """Keep with what a run that had started has failed."""
    started = getattr(error, "started", True) and not isinstance(error, ReportedError)
    if leads() and started and (run / "log.txt").is_file():
        name = "" if isinstance(error, SimmimError) else f"{type(error).__name__}: "
        Log(run / "log.txt").write(f"{FAILED}{name}{' '.join(str(error).split())}\n")
