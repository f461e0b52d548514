"""Going on with a run: which one it is, and with which command."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from simmim.config.commands import FinetuneConfig
from simmim.config.run import PretrainConfig
from simmim.config.seal import read_sealed
from simmim.errors import CheckpointError, Stopped, TrainingError
from simmim.report import terminal
from simmim.runs.folder import CONFIG, is_asked_for, read_config
from simmim.runs.lock import LOCK, Lock
from simmim.training.launch import go_on, leads

FINETUNE = "finetune.json"
"""What a fine-tuning was asked to be, in its folder."""
_UNFINISHED = (FINETUNE, "environment.json", "metrics.jsonl", "quarantine.jsonl", "encoder.json",
               "encoder.safetensors", "classifier.safetensors", "classes.json")  # fmt: skip
"""What a fine-tuning writes before predictions.csv, which is last."""


def of_earlier_attempt(config: PretrainConfig, name: str) -> Path | None:
    """The newest run folder of this very command, where there is one."""
    folders = sorted(Path("runs").glob(f"*-{name}*"), reverse=True)
    for folder in [config.out] if config.out else folders:
        if (folder / CONFIG).is_file() and is_asked_for(config, *read_config(folder)):
            return folder
    return None


def was_stopped(config: FinetuneConfig) -> bool:
    """Whether ``--out`` holds what this very fine-tuning wrote before its end, and nothing else."""
    out = config.out
    if out is None or not (out / FINETUNE).is_file():
        return False
    names = {item.name for item in out.iterdir() if not item.name.startswith(".tmp-")}
    return names <= {LOCK, *_UNFINISHED} and _is_same(config, out)


def remove_stopped(config: FinetuneConfig) -> bool:
    """Remove what there is then: it keeps no checkpoints, so nothing can go on from it.

    Returns:
        Whether there was anything.

    Raises:
        ConfigError: It is still going on.
    """
    if config.out is None or not was_stopped(config):
        return False
    with Lock(config.out, "simmim finetune"):
        if not was_stopped(config):  # it has come to its end meanwhile
            return False
        for name in _UNFINISHED:
            (config.out / name).unlink(missing_ok=True)
    return True


def _is_same(config: FinetuneConfig, out: Path) -> bool:
    """Whether a fine-tuning in ``out`` has these settings, but those without effect on it."""
    try:
        saved = json.loads(read_sealed(out / FINETUNE, "").text)
    except CheckpointError:
        return False
    free = {"out", "workers", "max_bad"}
    asked = json.loads(json.dumps(asdict(config), default=str))
    return all(saved.get(name) == value for name, value in asked.items() if name not in free)


@dataclass
class Told:
    """The folder that the command to go on is about; it may not be there yet."""

    run: Path


@contextmanager
def told_how_to_go_on(run: Path) -> Iterator[Told]:
    """Let whatever ends a run say with which command it is gone on with.

    Args:
        run: Its folder; another one may be put into what is given.
    """
    told = Told(run)
    try:
        yield told
    except (Stopped, KeyboardInterrupt) as stopped:
        if (told.run / CONFIG).is_file():
            terminal.line(Console(quiet=not leads()), f"go on with: {go_on(told.run)}")
            how = "before or after its training; nothing is lost."
        else:
            how = "before anything was started."
        if isinstance(stopped, Stopped) and stopped.how is None:
            raise Stopped(stopped.number, how) from None
        raise
    except TrainingError as error:
        if error.again is None:
            raise
        raise TrainingError(f"{error} Go on with: {go_on(told.run, *error.again)}") from error
