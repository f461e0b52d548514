"""The run folder: who may write it, what is in it first, and putting it away again."""

import contextlib
import datetime
import itertools
import os
import platform
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, TypeVar

from simmim.config.resolved import Resolved
from simmim.config.run import TrainingConfig
from simmim.config.saved import dump, load, read, settings_hash, task_of
from simmim.config.seal import read_sealed, seal_json, seal_yaml
from simmim.errors import CheckpointError, ConfigError, SimmimError, Stopped, TrainingError
from simmim.runs.files import write_text
from simmim.runs.lock import LOCK, Lock
from simmim.runs.stop import listen

C = TypeVar("C", bound=TrainingConfig)

CONFIG = "config.yaml"

_LEFT = (LOCK, ".tmp-*")
"""What may be left of a process that ended before it wrote anything else."""
_WRITTEN = (CONFIG, "data.json", "environment.json", "images.json", "images-*.arrow",
            "val-*.arrow", "quarantine.jsonl", "log.txt", *_LEFT)  # fmt: skip
"""What is written before training starts."""


def check_free(folder: Path) -> None:
    """Raise ``ConfigError`` where ``folder`` holds another run or anything else."""
    if (folder / CONFIG).exists():
        raise ConfigError(f"{folder} holds another run. {_go_on(folder)}")
    if folder.is_symlink() and not folder.exists():
        raise ConfigError(f"--out {folder} is a link to {folder.readlink()}, which is not there.")
    _check_folders(folder)
    if folder.exists() and set(folder.iterdir()) - _listed(folder, _LEFT):
        raise ConfigError(f"--out {folder} is not empty. Choose another --out, or empty it.")


class RunFolder:
    """A run folder that this process alone writes; to be used by ``with``.

    Left with an error before ``started`` is set, it removes what it made, and nothing that others
    made: not so after a signal where config.yaml is written, so that a resume can go on, or where
    images were listed as unreadable.

    Attributes:
        path: The folder.
        saved: What config.yaml says of a run in it that was stopped between its preparation and
            its first checkpoint; None: it is to be prepared.
        started: Set when training starts.
    """

    def __init__(
        self,
        out: Path | None,
        name: str,
        what: str,
        *,
        further: Sequence[str] = (),
    ) -> None:
        """Take a folder that is new, or empty, or whose run has no checkpoint yet; see ``begin``.

        Args:
            out: The folder; None: ``runs/DATE-NAME``, numbered where that is taken.
            name: The last part of that.
            what: The command, for the message to a second process.
            further: Names in it that the command writes before training, besides those of a run.

        Raises:
            ConfigError: It is taken, or cannot be written.
        """
        self.saved: tuple[TrainingConfig, Resolved] | None = None
        self.started = False
        self._written = (*_WRITTEN, *further)
        self._made: list[Path] = []
        with listen() as self._stop, self._stop.waiting():
            self._take(out, name, what)

    def begin(self, config: TrainingConfig) -> None:
        """Write config.yaml, or find a run with the same settings, and take it up.

        Raises:
            ConfigError: The run there has others, or is damaged; or nothing can be written.
        """
        if _has_no_checkpoint(self.path):
            # An earlier process did all the rest.
            self._made, self._written = [], (LOCK,) if self._lock.new else ()
            try:
                saved, resolved = read_config(self.path, type(config))
            except SimmimError as error:
                raise ConfigError(f"{self.path} holds another run. {error}") from error
            if not is_asked_for(config, saved, resolved):
                raise ConfigError(
                    f"{self.path} holds a run with other settings, which was stopped before its "
                    f"first checkpoint. {_go_on(self.path)}"
                )
            if resolved is not None:
                self.saved = saved, resolved
                return
        with preparing(self.path):
            write_config(self.path, config, None)

    def __enter__(self) -> Self:
        try:
            self._stop.check()  # a signal that came while the folder was made
        except BaseException as error:
            self.__exit__(None, error, None)
            raise
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> None:
        resumable = isinstance(error, Stopped) and (self.path / CONFIG).is_file()
        stays = self.started or error is None or resumable or isinstance(error, TrainingError)
        if not (stays or getattr(error, "started", False)):
            own = self.path in self._made
            for item in self.path.iterdir() if own else _listed(self.path, self._written):
                with contextlib.suppress(OSError):
                    shutil.rmtree(item) if item.is_dir() else item.unlink()
            self._remove_made()
        self._lock.release()

    def _take(self, out: Path | None, name: str, what: str) -> None:
        try:
            with preparing(out or Path("runs")):
                if out is not None:
                    self._check(out)
                self.path = self._make(out, name)
            self._lock = Lock(self.path, what)
        except ConfigError:
            self._remove_made()
            raise
        try:
            self._check(self.path)  # another process may have been between
        except ConfigError:
            self._lock.release()
            raise

    def _check(self, folder: Path) -> None:
        if any(ord(letter) < 32 for letter in str(folder)):
            raise ConfigError(f"--out {str(folder)!r} has a line break in it; leave that out.")
        if not _has_no_checkpoint(folder):
            check_free(folder)

    def _make(self, out: Path | None, name: str) -> Path:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M")
        for number in itertools.count(1):
            end = f"-{number}" if number > 1 else ""
            path = Path("runs") / f"{stamp}-{name}{end}" if out is None else out
            _check_folders(path.parent)
            self._made = list(itertools.takewhile(lambda each: not each.exists(), path.parents))
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
            except FileExistsError:
                if out is not None:
                    return path
            else:
                self._made.insert(0, path)
                return path
        raise AssertionError  # there is always a next number

    def _remove_made(self) -> None:
        """Remove the folders that were made, where they are empty."""
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()


@contextlib.contextmanager
def preparing(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into ``ConfigError``, before a run has started."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"the run folder {folder} cannot be written ({error.strerror}); make room or leave to "
            "write there, or choose another --out."
        ) from error


def write_config(run: Path, config: TrainingConfig, resolved: Resolved | None) -> None:
    """Write config.yaml, first without and then with what was chosen."""
    write_text(run / CONFIG, seal_yaml(dump(config, resolved)))


def read_config(run: Path, kind: type[C]) -> tuple[C, Resolved | None]:
    """Read a run's config.yaml.

    Args:
        run: The run folder.
        kind: What the run is of: the config class of its task, or of any.

    Raises:
        CheckpointError: It is missing, is not as it was written, is older than the checkpoints, or
            is of another task.
        ConfigError: It is of another version of simmim.
    """
    file = run / CONFIG
    command = command_of(run)
    read_sealed(
        file,
        "Put it back as it was: the settings of a run are changed by flags alone "
        f"(simmim {command} --resume {shlex.quote(str(run))} --epochs 200). A new run may start "
        f"from an edited copy: simmim pretrain --config COPY.",
    )
    config, resolved = load(file)
    if resolved is None and not _has_no_checkpoint(run):
        raise CheckpointError(
            f"{file} lacks what was resolved for the run, and there are checkpoints: it is an "
            "older one. Put the newer one back."
        )
    if not isinstance(config, kind):
        raise CheckpointError(
            f"{run} is a run of `simmim {config.command}`, and not of `simmim {kind.command}`."
        )
    return config, resolved


def command_of(run: Path) -> str:
    """The command that trains a run, as far as its config.yaml can be read."""
    try:
        return task_of(read(run / CONFIG)).command
    except ConfigError:
        return "pretrain"


def is_asked_for(config: TrainingConfig, saved: TrainingConfig, resolved: Resolved | None) -> bool:
    """Whether a run, as its config.yaml tells, was begun with these settings."""
    asked = settings_hash(saved) if resolved is None else resolved.asked
    return asked == settings_hash(config)


def _has_no_checkpoint(folder: Path) -> bool:
    """Whether a run was prepared here, or began to be, that has saved nothing."""
    return (folder / CONFIG).is_file() and not any((folder / "checkpoints").glob("*step-*"))


def _go_on(folder: Path) -> str:
    run = shlex.quote(str(folder))
    command = command_of(folder)
    return (
        f"Go on with it by `simmim {command} --resume {run}`, choose another --out, or delete it."
    )


def _check_folders(path: Path) -> None:
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ConfigError(f"{path} cannot be written: {place} is a file. Choose another --out.")


def _listed(folder: Path, patterns: Sequence[str]) -> set[Path]:
    return {item for pattern in patterns for item in folder.glob(pattern)}


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file as a whole, with its hash."""
    write_text(path, seal_json(document))


def environment() -> dict[str, object]:
    """Versions and hardware, for environment.json."""
    import torch

    packages = ("simmim", "torch", "timm", "numpy", "safetensors", "pillow", "simplejpeg")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: version(name) for name in packages},
    }


def cpu_name() -> str:
    """The CPU's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
