"""Background processes that fill arrays, in order, and that can never hang the reader.

torch's DataLoader sends tensors through sockets that their worker serves, so that a stopped worker
blocks the reader where no timeout reaches. Here a worker writes into memory that is shared before
it starts, and only numbers of fixed size, small enough never to arrive in part, go through pipes.
"""

import contextlib
import itertools
import logging
import math
import pickle
import signal
import traceback
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

from simmim.data.processes import Place, Process, start
from simmim.errors import TrainingError

log = logging.getLogger(__name__)

REPORT_BYTES = 1 << 20
REBUILDS = 2
PLACE = 8
"""Bytes at the end of what a worker shares: the image that it reads."""
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
"""Signals that a decoder brings upon itself."""
ALIGNED = 64
"""Bytes that an array of a slot begins at a multiple of."""

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and type of the arrays of a slot, by name."""
Arrays = dict[str, torch.Tensor]
"""The arrays of a slot, by name."""


class Fill(Protocol):
    """What a worker does: a pure function of the task's number."""

    def __call__(self, task: int, out: Arrays, place: Place) -> Any:
        """Write the task's images to the first rows of the arrays; return a small report.

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


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Worker processes that do numbered tasks; worker k mod W does task k.

    Attributes:
        fill: Does one task.
        slot: The arrays that a task may fill.
        workers: Processes; 0 does the tasks in the caller's, when they are asked for.
        ahead: Tasks that each worker does ahead of the reader, below 256.
        timeout: Seconds without a result after which a worker counts as hung.
    """

    fill: Fill
    slot: Shapes
    workers: int
    ahead: int
    timeout: float

    def run(self, first: int, last: int | None) -> Generator[tuple[Arrays, Any]]:
        """Yield the arrays and the report of each task from ``first`` on, in order.

        They are good until the next ones are asked for; without workers they are the caller's for
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
                arrays = empty(self.slot)
                yield arrays, self.fill(task, arrays, place)
            return
        task, losses = first, []  # of each process that was lost: the image that crashed it, or -1
        while last is None or task < last:
            try:
                with contextlib.closing(self._results(task, last)) as results:
                    for result in results:
                        yield result
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

    def _results(self, first: int, last: int | None) -> Generator[tuple[Arrays, Any]]:
        """Start workers at task ``first`` and yield their results until one is lost."""
        crew: list[tuple[Process, list[Arrays]]] = []
        lead = self.workers * self.ahead
        try:
            for _ in range(self.workers):
                process = start(_work, self, self.ahead * self._slot_bytes + PLACE)
                crew.append((process, self.slots(process.shared)))
            for task in range(first, first + lead):
                _send(crew[(task - first) % self.workers][0], task, last)
            for task in itertools.count(first) if last is None else range(first, last):
                process, slots = crew[(task - first) % self.workers]
                slot, report = self._receive(process)
                yield slots[slot], report
                _send(process, task + lead, last)
        finally:
            for process, _ in crew:
                process.end()

    def _receive(self, process: Process) -> tuple[int, Any]:
        """Return the slot and the report of the worker's next task."""
        name = f"a loader process (pid {process.system.pid})"
        place = self.place(process.shared)
        if not wait(process.signs, self.timeout):
            raise _WorkerLostError(f"{name} gave no images for {self.timeout:g} s", place.at)
        # Where only the sentinel was ready, the pipe is at its end, and that raises here.
        try:
            message = process.pipe.recv_bytes()
        except (EOFError, OSError) as error:
            code, how = process.ending()
            crash = how if -code in CRASHES else ""
            raise _WorkerLostError(f"{name} {how}", place.at, crash) from error
        slot, size = message[0], int.from_bytes(message[1:], "little")
        report = pickle.loads(self.report(process.shared, slot, size))
        if isinstance(report, Exception):
            raise report
        return slot, report

    def slots(self, shared: Any) -> list[Arrays]:
        """View the slots in the shared memory as arrays; behind those of each is its report."""
        flat = torch.frombuffer(shared, dtype=torch.uint8)
        slots: list[Arrays] = []
        for begin in range(0, self.ahead * self._slot_bytes, self._slot_bytes):
            slots.append({})
            for name, (shape, dtype) in self.slot.items():
                size = math.prod(shape) * dtype.itemsize
                slots[-1][name] = flat[begin : begin + size].view(dtype).view(shape)
                begin += _room((shape, dtype))
        return slots

    def report(self, shared: Any, slot: int, size: int) -> memoryview:
        """View the first ``size`` bytes of the report of a slot."""
        begin = (slot + 1) * self._slot_bytes - REPORT_BYTES
        return memoryview(shared).cast("B")[begin : begin + size]

    def place(self, shared: Any) -> Place:
        """Return where the worker is: at the end of the shared memory."""
        return Place(memoryview(shared).cast("B")[self.ahead * self._slot_bytes :])

    @cached_property
    def _slot_bytes(self) -> int:
        return slot_bytes(self.slot) + REPORT_BYTES


def slot_bytes(slot: Shapes) -> int:
    """Bytes that all arrays of a slot take."""
    return sum(map(_room, slot.values()))


def _room(array: tuple[tuple[int, ...], torch.dtype]) -> int:
    shape, dtype = array
    return -(-math.prod(shape) * dtype.itemsize // ALIGNED) * ALIGNED


def empty(slot: Shapes) -> Arrays:
    """Return memory for images on their way to a device."""
    # Pinned memory goes to a GPU in the background; it is had only where CUDA is in use anyway.
    pinned = torch.cuda.is_initialized()
    return {
        name: torch.empty(shape, dtype=dtype, pin_memory=pinned)
        for name, (shape, dtype) in slot.items()
    }


def _send(process: Process, task: int, last: int | None) -> None:
    if last is None or task < last:
        # A worker that is gone is noticed when its result is due.
        with contextlib.suppress(OSError):
            process.pipe.send_bytes(task.to_bytes(8, "little"))


def _work(crew: Crew, shared: Any, pipe: Connection) -> None:
    """Do the tasks whose numbers come through ``pipe``."""
    slots, place = crew.slots(shared), crew.place(shared)
    for slot in itertools.cycle(range(crew.ahead)):
        task = int.from_bytes(pipe.recv_bytes(), "little")
        report = _report(crew.fill, task, slots[slot], place)
        crew.report(shared, slot, len(report))[:] = report
        pipe.send_bytes(bytes([slot]) + len(report).to_bytes(8, "little"))


def _report(fill: Fill, task: int, out: Arrays, place: Place) -> bytes:
    place.at = -1
    try:
        return pickle.dumps(fill(task, out, place))
    except Exception:  # raised again by the reader
        return pickle.dumps(RuntimeError(f"in a loader process:\n{traceback.format_exc()[-8000:]}"))
