"""Writing files so that a reader finds the old or the new, never a torn one."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simmim.errors import ConfigError, ResourceError


def sync(path: Path) -> None:
    """Ask the system to put a file or a folder on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no fsync of a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def share(path: Path) -> None:
    """Give a file the permissions of any new file; safetensors makes its own private."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_text(path: Path, text: str) -> None:
    """Write ``path`` as a whole or not at all, in UTF-8; odd bytes of names are escaped."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to write beside ``path``, which then takes its place, on the disk."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def copy(file: Path, to: Path) -> None:
    """Copy a file whole or not at all; where the disk can, the copy shares its blocks."""
    with replacing(to) as temporary, file.open("rb") as source, temporary.open("wb") as target:
        try:
            while os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
                pass
        except (OSError, AttributeError):  # another disk, an old kernel, no Linux
            source.seek(0)
            target.seek(0)
            shutil.copyfileobj(source, target, 1 << 20)


def read_lines(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects in a log of JSON lines, and how many of its lines are none.

    Raises:
        OSError: There is no such file, or it cannot be read.
    """
    found, lost = [], 0
    for line in file.read_bytes().split(b"\n"):
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            found.append(row)
        else:
            lost += bool(line.strip())
    return found, lost


FAILED = "failed: "
"""Begins the last line of a run's log.txt where its last attempt has failed."""


class Log:
    """A text file for rich's Console; what cannot be written is left out, and nothing stops."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def write(self, text: str) -> int:
        """Append ``text``."""
        with contextlib.suppress(OSError), self.file.open("ab") as stream:
            stream.write(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def check_can_write(file: Path) -> None:
    """Raise ``ConfigError`` where ``file`` cannot be made or replaced."""
    folder = file.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{file}: there is no folder {file.parent}.")
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; name a file.")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{file}: nothing may be written to {folder}. Name another place.")


def nearest_folder(folder: Path) -> Path:
    """The folder, or the nearest one above that exists."""
    place = folder.absolute()
    while not place.is_dir():
        place = place.parent
    return place


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise ``ResourceError`` unless the disk of ``folder`` has ``needed`` bytes and a tenth more.

    Args:
        folder: Need not exist yet.
        needed: Bytes.
        what: What is to be written, for the message.
    """
    place = nearest_folder(folder)
    free = shutil.disk_usage(place).free
    if free < needed * 1.1:
        raise ResourceError(
            f"{what} would take {needed * 1.1 / 1e6:,.0f} MB, and {place} has "
            f"{free / 1e6:,.0f} MB free. Free some space, or choose another disk with --out."
        )
