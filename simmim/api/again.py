"""Going on with a run: which one it is, and with which command."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from simmim.config.run import PretrainConfig
from simmim.config.saved import load
from simmim.errors import TrainingError
from simmim.report import terminal
from simmim.training.launch import go_on
from simmim.training.run import CONFIG
from simmim.training.stop import Stopped


def of_earlier_attempt(config: PretrainConfig, name: str) -> Path | None:
    """The newest run folder of this very command, where there is one."""
    folders = sorted(Path("runs").glob(f"*-{name}*"), reverse=True)
    for folder in [config.out] if config.out else folders:
        if (folder / CONFIG).is_file():
            saved, _ = load(folder / CONFIG)
            optim = replace(saved.optim, lr=config.optim.lr or saved.optim.lr)
            if replace(config, optim=replace(config.optim, lr=optim.lr)) == saved:
                return folder
    return None


@contextmanager
def told_how_to_go_on(run: Path, console: Console) -> Iterator[None]:
    """Let whatever ends a run say with which command it is gone on with.

    Args:
        run: Its folder.
        console: Where a stopped run says it; an error says it in its message.
    """
    try:
        yield
    except Stopped as stopped:
        if not (run / CONFIG).is_file():
            raise Stopped(stopped.number, "before anything was started.") from None
        terminal.line(console, f"go on with: {go_on(run)}")
        raise
    except TrainingError as error:
        if error.again is None:
            raise
        raise TrainingError(f"{error} Go on with: {go_on(run, *error.again)}") from error
