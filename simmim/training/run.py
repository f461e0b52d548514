"""The run folder: who may write it, what is in it first, and putting it away again."""

import datetime
import json
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

from simmim.config.resolved import Resolved
from simmim.config.run import PretrainConfig
from simmim.config.saved import dump
from simmim.errors import ConfigError
from simmim.training.files import write_text

CONFIG = "config.yaml"


def default_folder(name: str) -> Path:
    """``runs/DATE-NAME``, numbered where that is taken."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M")
    folder, number = Path("runs") / f"{stamp}-{name}", 2
    while folder.exists():
        folder, number = Path("runs") / f"{stamp}-{name}-{number}", number + 1
    return folder


def check_free(folder: Path) -> None:
    """Raise ``ConfigError`` where ``folder`` holds another run or anything else."""
    if (folder / CONFIG).exists():
        raise ConfigError(
            f"{folder} holds another run. Go on with it by `simmim pretrain --resume {folder}`, "
            "choose another --out, or delete it."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out {folder} is not empty. Choose another --out, or empty it.")


def write_config(run: Path, config: PretrainConfig, resolved: Resolved | None) -> None:
    """Write config.yaml, first without and then with what was chosen."""
    write_text(run / CONFIG, dump(config, resolved))


class RunFolder:
    """A run folder that this process made, until training starts removable without a trace."""

    def __init__(self, path: Path, config: PretrainConfig) -> None:
        check_free(path)
        self.path = path
        self._made = path
        while not self._made.parent.exists():
            self._made = self._made.parent
        self._existed = path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_config(path, config, None)
        except OSError as error:
            raise ConfigError(
                f"the run folder {path} cannot be written ({error.strerror}); choose another --out."
            ) from error

    def discard(self) -> None:
        """Remove what was made, since nothing was started."""
        if not self._existed:
            shutil.rmtree(self._made, ignore_errors=True)
            return
        for item in self.path.iterdir():
            shutil.rmtree(item) if item.is_dir() else item.unlink()


def write_json(path: Path, value: object) -> None:
    """Write a JSON file as a whole."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def environment() -> dict[str, object]:
    """Versions and hardware, for environment.json."""
    import torch

    packages = ("simmim", "torch", "timm", "numpy", "safetensors", "pillow", "simplejpeg")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: version(name) for name in packages},
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
