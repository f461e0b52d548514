"""Background processes: how one is started, and a pool that does tasks in any order.

Unlike ``loading.workers``, which fills arrays in order for a training, the pool is for work that
returns small results: hashing, measuring, writing files. A process that is lost is replaced.
"""

import contextlib
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import torch

from simmim.data.signals import held_back, leave_to_parent

# A forked process starts in milliseconds and needs no `if __name__ == "__main__"` in the user's
# script. It runs no OpenMP threads and touches no device, so it may follow a parent that has.
METHOD = "fork" if sys.platform == "linux" else "spawn"
LOSSES = 3
"""Processes that one task may cost before it is given up."""
WATCH = 1.0
"""Seconds after which a process looks whether its parent still lives."""

Task = TypeVar("Task")
Work = Callable[[Task, "Place"], Any]
Serve = Callable[[Any, Any, Connection], None]


class Place:
    """Where a task is, told to whoever looks after its process is gone: one number."""

    def __init__(self, shared: Any) -> None:
        self._view = memoryview(shared).cast("B")

    @property
    def at(self) -> int:
        """The number last set; -1 at first."""
        return int.from_bytes(self._view[:8], "little", signed=True)

    @at.setter
    def at(self, value: int) -> None:
        self._view[:8] = value.to_bytes(8, "little", signed=True)


@dataclass(frozen=True)
class Process:
    """A background process.

    Attributes:
        system: What Python knows of it.
        pipe: The way to it.
        shared: Memory that it has in common with its parent.
    """

    system: Any
    pipe: Connection
    shared: Any

    @property
    def signs(self) -> tuple[Any, int]:
        """What to wait for: its pipe, and what tells that it has ended."""
        return self.pipe, self.system.sentinel

    def end(self) -> None:
        """End it; even a stopped process obeys."""
        self.system.kill()
        self.pipe.close()
        self.system.join(5)

    def ending(self) -> tuple[int, str]:
        """Return the status of one that has ended, below 0 for a signal, and say how it did."""
        self.system.join(5)
        code = self.system.exitcode or 0
        if code >= 0:
            return code, f"ended with status {self.system.exitcode}"
        hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        return code, f"was ended by {signal.Signals(-code).name}{hint}"


def start(serve: Serve, job: Any, size: int) -> Process:
    """Start a process that calls ``serve(job, shared, pipe)``, and ends when its parent has.

    Args:
        serve: Takes what comes through the pipe until that raises.
        job: What it needs; it can be pickled.
        size: Bytes that are shared.
    """
    context = multiprocessing.get_context(METHOD)
    ours, theirs = context.Pipe()
    # Anonymous memory, where forked, is not bounded by the size of /dev/shm.
    shared: Any = mmap.mmap(-1, size) if METHOD == "fork" else context.RawArray("B", size)
    system = context.Process(target=_begin, args=(serve, job, shared, theirs), daemon=True)
    with warnings.catch_warnings(), held_back():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
        system.start()
    theirs.close()
    return Process(system, ours, shared)


def _begin(serve: Serve, job: Any, shared: Any, pipe: Connection) -> None:
    leave_to_parent()
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_watch, args=(parent.pid,), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        serve(job, shared, pipe)


def _watch(parent: int) -> None:
    """End this process, whatever it does, once its parent has gone: nobody waits for it."""
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(1)


@dataclass(frozen=True)
class ProcessLoss:
    """The result of a task that ended its process several times.

    Attributes:
        at: What the task said last of its place.
        how: How the last process ended.
    """

    at: int
    how: str


@dataclass
class _Member(Generic[Task]):
    process: Process
    task: Task | None = None
    since: float = field(default_factory=time.monotonic)

    @property
    def place(self) -> Place:
        return Place(self.process.shared)


def do_all(
    work: Work[Task],
    tasks: Iterable[Task],
    workers: int,
    *,
    timeout: float = 900,
) -> Generator[tuple[Task, Any]]:
    """Yield each task with its result, as they get done.

    Args:
        work: Called with a task and a ``Place``; both it and its result can be pickled. What it
            raises is raised here.
        tasks: Small, and distinct.
        workers: Processes; 0 works in the caller's.
        timeout: Seconds after which a process that does not finish its task counts as lost.

    Yields:
        A task, and its result or, where three processes ended or hung over it, a ``ProcessLoss``.
    """
    if not workers:
        place = Place(bytearray(8))
        for task in tasks:
            place.at = -1
            yield task, work(task, place)
        return
    pool = _Pool(work, iter(tasks), timeout)
    try:
        for _ in range(workers):
            pool.hire()
        while busy := [member for member in pool.members if member.task is not None]:
            wait([sign for member in busy for sign in member.process.signs], 5)
            for member in busy:
                yield from pool.results(member)
    finally:
        for member in pool.members:
            member.process.end()


class _Pool(Generic[Task]):
    """The processes at work, and what is still to be done."""

    def __init__(self, work: Work[Task], waiting: Iterator[Task], timeout: float) -> None:
        self.members: list[_Member[Task]] = []
        self._work, self._waiting, self._timeout = work, waiting, timeout
        self._again: list[Task] = []
        self._losses: dict[Task, int] = {}

    def hire(self) -> None:
        """Start a process and give it a task."""
        self.members.append(_Member(start(_serve, self._work, 8)))
        self._give(self.members[-1])

    def results(self, member: _Member[Task]) -> Iterator[tuple[Task, Any]]:
        """Take the result of a process that is done; replace one that was lost."""
        task = member.task
        assert task is not None
        result, how = _receive(member, self._timeout)
        if how is None:
            self._give(member)
            yield task, result
        elif how:
            self.members.remove(member)
            member.process.end()
            self._losses[task] = self._losses.get(task, 0) + 1
            given_up = self._losses[task] >= LOSSES
            if not given_up:
                self._again.append(task)
            self.hire()
            if given_up:
                yield task, ProcessLoss(member.place.at, how)

    def _give(self, member: _Member[Task]) -> None:
        task = self._again.pop() if self._again else next(self._waiting, None)
        member.task, member.since, member.place.at = task, time.monotonic(), -1
        if task is not None:
            with contextlib.suppress(OSError):  # a process that is gone is noticed later
                member.process.pipe.send(task)


def _receive(member: _Member[Any], timeout: float) -> tuple[Any, str | None]:
    """Return the result and None; or how the process was lost, empty where it still works."""
    process, data = member.process, None
    with contextlib.suppress(EOFError, OSError):
        if process.pipe.poll(0):
            data = process.pipe.recv_bytes()
    if data is not None:
        result = pickle.loads(data)
        if isinstance(result, BaseException):
            raise result
        return result, None
    if process.system.is_alive():
        late = time.monotonic() - member.since > timeout
        return None, f"did not finish within {timeout:g} s" if late else ""
    return None, process.ending()[1]


def _serve(work: Work[Any], shared: Any, pipe: Connection) -> None:
    """Do what comes through ``pipe``."""
    place = Place(shared)
    while True:
        task = pipe.recv()
        try:
            result = work(task, place)
        except Exception as error:  # raised again by the reader
            error.add_note(f"in a worker process:\n{traceback.format_exc()[-8000:]}")
            result = error
        pipe.send_bytes(_pickled(result))


def _pickled(result: Any) -> bytes:
    try:
        data = pickle.dumps(result)
        if isinstance(result, BaseException):
            pickle.loads(data)
    except Exception:
        return pickle.dumps(RuntimeError(f"in a worker process: {result!r}"))
    return data
