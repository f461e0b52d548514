"""Background processes that do tasks in any order; one that is lost is replaced.

Unlike ``loading.workers``, which fills arrays in order for a training, this is for work that
returns small results: hashing, measuring, writing files.
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

METHOD = "fork" if sys.platform == "linux" else "spawn"
LOSSES = 3
"""Processes that one task may cost before it is given up."""
WATCH = 1.0
"""Seconds after which a process looks whether its parent still lives."""

Task = TypeVar("Task")
Work = Callable[[Task, "Place"], Any]


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
class Lost:
    """The result of a task that ended its process several times.

    Attributes:
        at: What the task said last of its place.
        how: How the last process ended.
    """

    at: int
    how: str


@dataclass
class _Member(Generic[Task]):
    process: Any
    pipe: Connection
    place: Place
    task: Task | None = None
    since: float = field(default_factory=time.monotonic)


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
        A task, and its result or, where three processes ended or hung over it, a ``Lost``.
    """
    if not workers:
        place = Place(bytearray(8))
        for task in tasks:
            place.at = -1
            yield task, work(task, place)
        return
    crew = _Crew(work, iter(tasks), timeout)
    try:
        for _ in range(workers):
            crew.hire()
        while busy := [member for member in crew.members if member.task is not None]:
            wait([thing for member in busy for thing in (member.pipe, member.process.sentinel)], 5)
            for member in busy:
                yield from crew.look_at(member)
    finally:
        for member in crew.members:
            _end(member)


class _Crew(Generic[Task]):
    """The processes at work, and what is still to be done."""

    def __init__(self, work: Work[Task], waiting: Iterator[Task], timeout: float) -> None:
        self.members: list[_Member[Task]] = []
        self._work, self._waiting, self._timeout = work, waiting, timeout
        self._again: list[Task] = []
        self._losses: dict[Task, int] = {}

    def hire(self) -> None:
        """Start a process and give it a task."""
        self.members.append(_start(self._work))
        self._give(self.members[-1])

    def look_at(self, member: _Member[Task]) -> Iterator[tuple[Task, Any]]:
        """Take the result of a process that is done; replace one that was lost."""
        task = member.task
        assert task is not None
        result, how = _receive(member, self._timeout)
        if how is None:
            self._give(member)
            yield task, result
        elif how:
            self.members.remove(member)
            _end(member)
            self._losses[task] = self._losses.get(task, 0) + 1
            given_up = self._losses[task] >= LOSSES
            if not given_up:
                self._again.append(task)
            self.hire()
            if given_up:
                yield task, Lost(member.place.at, how)

    def _give(self, member: _Member[Task]) -> None:
        task = self._again.pop() if self._again else next(self._waiting, None)
        member.task, member.since, member.place.at = task, time.monotonic(), -1
        if task is not None:
            with contextlib.suppress(OSError):  # a process that is gone is noticed later
                member.pipe.send(task)


def _receive(member: _Member[Any], timeout: float) -> tuple[Any, str | None]:
    """Return the result and None; or how the process was lost, empty where it still works."""
    data = None
    with contextlib.suppress(EOFError, OSError):
        if member.pipe.poll(0):
            data = member.pipe.recv_bytes()
    if data is not None:
        result = pickle.loads(data)
        if isinstance(result, BaseException):
            raise result
        return result, None
    if member.process.is_alive():
        late = time.monotonic() - member.since > timeout
        return None, f"did not finish within {timeout:g} s" if late else ""
    member.process.join(5)
    return None, ending(member.process.exitcode)


def ending(code: int | None) -> str:
    """Say how a process ended."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        return f"was ended by {name}{hint}"
    return f"ended with status {code}"


def _start(work: Callable[[Any, Place], Any]) -> _Member[Any]:
    context = multiprocessing.get_context(METHOD)
    ours, theirs = context.Pipe()
    shared: Any = mmap.mmap(-1, 8) if METHOD == "fork" else context.RawArray("B", 8)
    process = context.Process(target=_serve, args=(work, shared, theirs), daemon=True)
    with warnings.catch_warnings(), held_back():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
        process.start()
    theirs.close()
    return _Member(process, ours, Place(shared))


def _end(member: _Member[Any]) -> None:
    member.process.kill()
    member.pipe.close()
    member.process.join(5)


def _serve(work: Callable[[Any, Place], Any], shared: Any, pipe: Connection) -> None:
    """Do what comes through ``pipe`` until the parent is gone."""
    leave_to_parent()
    torch.set_num_threads(1)
    place = Place(shared)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_watch, args=(parent.pid,), daemon=True).start()
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            result = work(task, place)
        except Exception as error:  # raised again by the reader
            error.add_note(f"in a worker process:\n{traceback.format_exc()[-8000:]}")
            result = error
        with contextlib.suppress(OSError):
            pipe.send_bytes(_pickled(result))


def _pickled(result: Any) -> bytes:
    try:
        data = pickle.dumps(result)
        if isinstance(result, BaseException):
            pickle.loads(data)
    except Exception:
        return pickle.dumps(RuntimeError(f"in a worker process: {result!r}"))
    return data


def _watch(parent: int) -> None:
    """End this process, whatever it does, once its parent has gone: nobody waits for it."""
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(1)
