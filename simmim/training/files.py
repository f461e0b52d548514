"""Writing files so that a reader finds the old or the new, never a torn one."""

import os
import shutil
from pathlib import Path

from simmim.errors import ResourceError


def sync(path: Path) -> None:
    """Ask the system to put a file or a folder on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def share(path: Path) -> None:
    """Give a file the permissions of any new file; safetensors makes its own private."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_text(path: Path, text: str) -> None:
    """Write ``path`` as a whole or not at all."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        temporary.write_text(text)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise ``ResourceError`` unless the disk of ``folder`` has ``needed`` bytes and a tenth more.

    Args:
        folder: Need not exist yet.
        needed: Bytes.
        what: What is to be written, for the message.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed * 1.1:
        raise ResourceError(
            f"{what} would take {needed * 1.1 / 1e6:,.0f} MB, and {place} has "
            f"{free / 1e6:,.0f} MB free. Free some space, or choose another disk with --out."
        )
