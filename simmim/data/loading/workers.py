"""Background processes that fill arrays, in order, and that can never hang the reader.

torch's DataLoader sends tensors through sockets that their worker serves, so that a stopped worker
blocks the reader where no timeout reaches. Here a worker writes into memory that is shared before
it starts, and only numbers of fixed size, small enough never to arrive in part, go through pipes.
"""

import contextlib
import itertools
import logging
import math
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

from simmim.data.processes import Place, ending
from simmim.data.signals import held_back, leave_to_parent
from simmim.errors import TrainingError

log = logging.getLogger(__name__)

# A forked worker starts in milliseconds and needs no `if __name__ == "__main__"` in the user's
# script. It runs no OpenMP threads and touches no device, so it may follow a parent that has.
METHOD = "fork" if sys.platform == "linux" else "spawn"
REPORT_BYTES = 1 << 20
REBUILDS = 2
PLACE = 8
"""Bytes at the end of what a worker shares: the image that it reads."""
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
"""Signals that a decoder brings upon itself."""
WATCH = 2.0
"""Seconds after which an idle worker looks whether its parent still lives."""


class Fill(Protocol):
    """What a worker does: a pure function of the task's number."""

    def __call__(self, task: int, out: torch.Tensor, place: Place) -> Any:
        """Write the task's images to the first rows of ``out``; return a small report.

        ``place`` is told which image is read, for the case that the process does not survive it.
        """
        ...

    def name(self, at: int) -> str:
        """Return the name of the image that ``place`` was told of."""
        ...

    def leave_out(self, at: int, reason: str) -> None:
        """Take that image for unreadable from now on."""
        ...


class _WorkerLostError(Exception):
    """A worker died or hung; the text says which and how.

    Attributes:
        at: The image that it read, or -1.
        crash: How it ended, where that was its own doing.
    """

    def __init__(self, text: str, at: int, crash: str = "") -> None:
        super().__init__(text)
        self.at, self.crash = at, crash


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    buffer: memoryview
    slots: list[torch.Tensor]
    place: Place


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Worker processes that do numbered tasks; worker k mod W does task k.

    Attributes:
        fill: Does one task.
        slot: Shape of the array that a task may fill.
        dtype: Type of the array.
        workers: Processes; 0 does the tasks in the caller's, when they are asked for.
        ahead: Tasks that each worker does ahead of the reader, below 256.
        timeout: Seconds without a result after which a worker counts as hung.
    """

    fill: Fill
    slot: tuple[int, ...]
    dtype: torch.dtype
    workers: int
    ahead: int
    timeout: float

    def run(self, first: int, last: int | None) -> Generator[tuple[torch.Tensor, Any]]:
        """Yield the array and the report of each task from ``first`` on, in order.

        The array is good until the next one is asked for; without workers it is the caller's for
        good. Closing the generator ends the workers.

        Args:
            first: Number of the first task.
            last: Number after the last task; None never ends.

        An image that crashes its decoder three times is left out, and the work goes on.

        Raises:
            TrainingError: A worker was killed from outside, or hung, three times at the same task.
        """
        if not self.workers:
            place = Place(bytearray(8))
            for task in itertools.count(first) if last is None else range(first, last):
                array = empty(self.slot, self.dtype)
                yield array, self.fill(task, array, place)
            return
        task, losses = first, []  # of each process that was lost: the image that crashed it, or -1
        while last is None or task < last:
            try:
                with contextlib.closing(self._results(task, last)) as results:
                    for array, report in results:
                        yield array, report
                        task, losses = task + 1, []
            except _WorkerLostError as error:
                losses.append(error.at if error.crash else -1)
                if len(losses) > REBUILDS and set(losses) == {error.at} != {-1}:
                    self.fill.leave_out(error.at, f"the process that reads it {error.crash}")
                    losses = []
                elif len(losses) > REBUILDS:
                    image = f", reading {self.fill.name(error.at)}" if error.at >= 0 else ""
                    raise TrainingError(
                        f"{error}{image}, for the third time at the same place. Look at the memory "
                        f"(`dmesg | grep -i kill`) and at the storage; fewer --workers need less "
                        f"of both, --workers 0 none."
                    ) from error
                log.warning("%s; starting anew", error)

    def _results(self, first: int, last: int | None) -> Generator[tuple[torch.Tensor, Any]]:
        """Start workers at task ``first`` and yield their results until one is lost."""
        crew: list[_Worker] = []
        lead = self.workers * self.ahead
        try:
            self._start(crew)
            for task in range(first, first + lead):
                _send(crew[(task - first) % self.workers], task, last)
            for task in itertools.count(first) if last is None else range(first, last):
                worker = crew[(task - first) % self.workers]
                slot, report = self._receive(worker)
                yield worker.slots[slot], report
                _send(worker, task + lead, last)
        finally:
            for worker in crew:
                worker.process.kill()  # even a stopped process obeys this one
                worker.pipe.close()
            for worker in crew:
                worker.process.join(5)

    def _start(self, crew: list[_Worker]) -> None:
        context = multiprocessing.get_context(METHOD)
        size = self.ahead * (math.prod(self.slot) * self.dtype.itemsize + REPORT_BYTES) + PLACE
        for _ in range(self.workers):
            ours, theirs = context.Pipe()
            # Anonymous memory, where forked, is not bounded by the size of /dev/shm.
            shared = mmap.mmap(-1, size) if METHOD == "fork" else context.RawArray("B", size)
            process = context.Process(target=_work, args=(self, shared, theirs), daemon=True)
            with warnings.catch_warnings(), held_back():
                warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
                process.start()
            theirs.close()
            view = memoryview(shared).cast("B")
            crew.append(
                _Worker(process, ours, view[:-PLACE], self.slots(shared), Place(view[-PLACE:]))
            )

    def _receive(self, worker: _Worker) -> tuple[int, Any]:
        """Return the slot and the report of the worker's next task."""
        name = f"a loader process (pid {worker.process.pid})"
        if not wait([worker.pipe, worker.process.sentinel], self.timeout):
            raise _WorkerLostError(f"{name} gave no images for {self.timeout:g} s", worker.place.at)
        # Where only the sentinel was ready, the pipe is at its end, and that raises here.
        try:
            message = worker.pipe.recv_bytes()
        except (EOFError, OSError) as error:
            worker.process.join(5)
            code, how = worker.process.exitcode, ending(worker.process.exitcode)
            crash = how if code is not None and -code in CRASHES else ""
            raise _WorkerLostError(f"{name} {how}", worker.place.at, crash) from error
        slot, size = message[0], int.from_bytes(message[1:], "little")
        begin = self.report_at(len(worker.buffer), slot)
        report = pickle.loads(worker.buffer[begin : begin + size])
        if isinstance(report, Exception):
            raise report
        return slot, report

    def slots(self, shared: Any) -> list[torch.Tensor]:
        """View the beginning of ``shared`` as one array for each task ahead."""
        flat = torch.frombuffer(shared, dtype=torch.uint8)
        flat = flat[: flat.numel() - self.ahead * REPORT_BYTES - PLACE]
        return list(flat.view(self.dtype).view(self.ahead, *self.slot))

    def report_at(self, size: int, slot: int) -> int:
        """Return where in ``size`` shared bytes the report of ``slot`` is: after the arrays."""
        return size - (self.ahead - slot) * REPORT_BYTES


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return memory for images on their way to a device."""
    # Pinned memory goes to a GPU in the background; it is had only where CUDA is in use anyway.
    return torch.empty(shape, dtype=dtype, pin_memory=torch.cuda.is_initialized())


def _send(worker: _Worker, task: int, last: int | None) -> None:
    if last is None or task < last:
        # A worker that is gone is noticed when its result is due.
        with contextlib.suppress(OSError):
            worker.pipe.send_bytes(task.to_bytes(8, "little"))


def _work(crew: Crew, shared: Any, pipe: Connection) -> None:
    """Do the tasks whose numbers come through ``pipe`` until the parent is gone."""
    leave_to_parent()
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    view = memoryview(shared).cast("B")
    slots, view, place = crew.slots(shared), view[:-PLACE], Place(view[-PLACE:])
    for slot in itertools.cycle(range(crew.ahead)):
        try:
            while not pipe.poll(WATCH):
                if parent is None or os.getppid() != parent.pid:
                    return
            task = int.from_bytes(pipe.recv_bytes(), "little")
            report = _report(crew.fill, task, slots[slot], place)
            begin = crew.report_at(len(view), slot)
            view[begin : begin + len(report)] = report
            pipe.send_bytes(bytes([slot]) + len(report).to_bytes(8, "little"))
        except (EOFError, OSError):
            return


def _report(fill: Fill, task: int, out: torch.Tensor, place: Place) -> bytes:
    place.at = -1
    try:
        return pickle.dumps(fill(task, out, place))
    except Exception:  # raised again by the reader
        return pickle.dumps(RuntimeError(f"in a loader process:\n{traceback.format_exc()[-8000:]}"))
