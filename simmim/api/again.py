"""Going on with a run: which one it is, and with which command."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from simmim.config.run import TrainingConfig
from simmim.errors import Stopped, TrainingError
from simmim.report import terminal
from simmim.runs.folder import CONFIG, is_asked_for, read_config
from simmim.training.launch import go_on, leads


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
class Told:
    """The folder that the command to go on is about; it may not be there yet."""

    run: Path


@contextmanager
def told_how_to_go_on(run: Path, command: str) -> Iterator[Told]:
    """Let whatever ends a run say with which command it is gone on with.

    Args:
        run: Its folder; another one may be put into what is given.
        command: That trains it.
    """
    told = Told(run)
    try:
        yield told
    except (Stopped, KeyboardInterrupt) as stopped:
        if (told.run / CONFIG).is_file():
            terminal.line(Console(quiet=not leads()), f"go on with: {go_on(told.run, command)}")
            how = "before or after its training; nothing is lost."
        else:
            how = "before anything was started."
        if isinstance(stopped, Stopped) and stopped.how is None:
            raise Stopped(stopped.number, how) from None
        raise
    except TrainingError as error:
        if error.again is None:
            raise
        told_all = TrainingError(f"{error} Go on with: {go_on(told.run, command, *error.again)}")
        told_all.started = error.started
        raise told_all from error
