"""One writer of a run folder: a lock that ends with its process, however that ends."""

import contextlib
import datetime
import errno
import logging
import os
import socket
import time
from functools import cache
from pathlib import Path
from typing import Self

from simmim.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
"""The file in a run folder that is locked; it says who holds it, and may stay behind."""

_NAMED = 0.5
"""Seconds in which whoever has just taken a lock has surely written who it is."""

log = logging.getLogger(__name__)
_held: set[int] = set()


class Lock:
    """The right to write a run folder, until it is released or the process ends.

    On a file system that cannot lock, nothing is kept out, and a warning says so.

    Attributes:
        file: What is locked.
        new: Whether it was not there before.
    """

    def __init__(self, folder: Path, what: str) -> None:
        """Take the lock; never waits for another to release it.

        Args:
            folder: The run folder.
            what: The command, for the message to others.

        Raises:
            ConfigError: Another process holds it, or nothing can be written there.
        """
        _watch_forks()
        self.file = folder / LOCK
        self.new = not self.file.exists()
        try:
            while True:
                self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                _held.add(self._descriptor)
                self._take(folder)
                if self._still_there():
                    break
                self.release()  # whoever held it has removed the folder meanwhile
        except OSError as error:
            raise ConfigError(
                f"the run folder {folder} cannot be written ({error.strerror}); choose another "
                "place."
            ) from error
        now = datetime.datetime.now().isoformat(" ", "seconds")
        text = f"{what}, process {os.getpid()} on {socket.gethostname()}, since {now}\n"
        with contextlib.suppress(OSError):  # a full disk; the lock holds all the same
            os.pwrite(self._descriptor, text.encode(), 0)
            os.truncate(self._descriptor, len(text.encode()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others write."""
        if self._descriptor in _held:  # not so in a process that was forked
            _held.remove(self._descriptor)
            os.close(self._descriptor)

    def _take(self, folder: Path) -> None:
        if fcntl is None:
            return
        try:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # perhaps ``holder_of``, for a moment
                time.sleep(_NAMED)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 500, 0).decode("utf-8", "replace").strip()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                log.warning(
                    "%s is on a file system that cannot lock (%s), so nothing keeps a second "
                    "process from the same run; the last was %s",
                    folder, error.strerror, holder or "never",
                )  # fmt: skip
                return
            self.release()
            raise ConfigError(
                f"{folder} is in use by {holder or 'another process'}. Wait for that to end, or "
                "stop it: two processes would spoil each other's run."
            ) from error

    def _still_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.file.stat())
        except FileNotFoundError:
            return False


def holder_of(folder: Path) -> str | None:
    """Who writes a run folder now, in words; None: nobody, or it cannot be told here."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return os.pread(descriptor, 500, 0).decode("utf-8", "replace").strip() or "another process"
    except OSError:  # a file system that cannot lock
        return None
    finally:
        os.close(descriptor)
    return None


@cache
def _watch_forks() -> None:
    """A forked process, such as a loader's, may live longer: it gives up its share of the locks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_give_up)


def _give_up() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()
