"""The processes of a run, and what they tell each other."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from simmim.config.run import SystemConfig
from simmim.errors import ReportedError, ResourceError, SimmimError, TrainingError
from simmim.runs.stop import listen
from simmim.training.launch import own_place, rank_from_environment, restarts
from simmim.training.pulse import WATCHED, Pulse

T = TypeVar("T")
_joined = itertools.count()
_ASSEMBLY = timedelta(minutes=30)
"""How long the processes wait for the last of them to begin."""


@dataclass(frozen=True)
class World:
    """One process among ``ranks``, each with its device."""

    rank: int
    ranks: int
    device: torch.device
    pulse: Pulse | None = None
    """Signs of life of the others; None without others."""
    patience: float = 60 * SystemConfig.timeout_minutes
    """Seconds for which a process that gives no sign of life is waited for."""

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.ranks > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """What each process has, by rank, however long one of them is busy before."""
        if self.ranks == 1:
            return [value]
        self.meet()
        values = [value] * self.ranks
        dist.all_gather_object(values, value)
        return values

    def concatenate(self, part: Tensor) -> Tensor:
        """The parts (n, …) of all processes, of the same shape, by rank: (ranks · n, …)."""
        if self.ranks == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.ranks)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def write(self, work: Callable[[], T]) -> T:
        """Let the first process write, while the others wait, and return what it returns.

        Raises:
            SimmimError: In all processes, what the first failed with.
        """
        value = error = None
        if self.leads:
            try:
                value = work()
            except SimmimError as found:
                error = found
            except OSError as found:
                error = ResourceError(str(found))
        self.meet()
        value, error = self.share((value, error))
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def share(self, value: T) -> T:
        """What the first process has."""
        if self.ranks == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def any(self, flag: bool) -> bool:  # noqa: FBT001
        """Whether the flag is up in any process."""
        if self.ranks == 1:
            return flag
        return bool(self.total(torch.tensor(int(flag))).item())

    def meet(self) -> None:
        """Wait for all processes, however long one of them is busy while the others wait.

        Raises:
            TrainingError: One of them gives no sign of life.
        """
        if self.pulse is None:
            return
        with listen() as stop:
            gone = self.pulse.meet(lambda: self.patience if stop.number is None else WATCHED)
        if gone:
            self._lose(gone)

    def fail(self, error: SimmimError) -> NoReturn:
        """Raise in the first process what all have found; the others leave without a word."""
        if self.leads:
            raise error
        raise ReportedError

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise ``TrainingError`` where an exchange fails since another process is gone."""
        try:
            yield
        except RuntimeError as error:
            exchange = isinstance(error, dist.DistError) or "gloo" in str(error)
            if self.pulse is None or not exchange:
                raise
            with listen() as stop:
                stop.waits = True  # whoever started the processes ends all of them now
                try:
                    gone = self.pulse.silent()
                except RuntimeError:
                    gone = [0]  # with whom the store has gone
            self._lose([rank for rank in gone if rank != self.rank])

    def _lose(self, gone: list[int]) -> NoReturn:
        """Raise ``TrainingError`` in the first process that is left."""
        which = " and ".join(str(rank) for rank in gone)
        what = f"process {which} of {self.ranks} (counted from 0) has ended or hangs"
        if not gone:
            what = f"the {self.ranks} processes could not reach each other, though all of them live"
        error = TrainingError(
            f"{what}, and the others cannot go on without it. What it printed last may tell why; "
            "where memory ran out, `dmesg | grep -i kill` does."
        )
        if self.rank == min(set(range(self.ranks)) - set(gone)):
            raise error
        raise ReportedError


ALONE = World(0, 1, torch.device("cpu"))
"""No other process."""


def pick_device() -> torch.device:
    """This process's accelerator, or the CPU."""
    if torch.cuda.is_available():
        # Where Slurm shows each process its own GPU alone, that is the first one.
        return torch.device("cuda", own_place().local % torch.cuda.device_count())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@contextmanager
def join(timeout_minutes: float = SystemConfig.timeout_minutes) -> Iterator[World]:
    """Join the processes that torchrun or srun started, or be alone.

    Args:
        timeout_minutes: How long a process that does not answer is waited for.
    """
    rank, ranks = rank_from_environment()
    device = pick_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks == 1:
        yield World(0, 1, device)
        return
    # What lies on the CPU is exchanged there, and waits for no GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = _meeting_place(rank, ranks)
    wait = timedelta(minutes=timeout_minutes)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=wait)
    pulse = Pulse(store.clone(), rank, ranks)
    try:
        world = World(rank, ranks, device, pulse, wait.total_seconds())
        with world.watched():
            yield world
    finally:
        pulse.stop()
        dist.destroy_process_group()


def _meeting_place(rank: int, ranks: int) -> dist.Store:
    """The store in which the processes find each other, empty after a restart.

    torchrun hands the store of its own to every attempt, with what the processes of the one before
    wrote into it.
    """
    store, _, _ = next(dist.rendezvous("env://", rank, ranks, timeout=_ASSEMBLY))
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return dist.PrefixStore(f"simmim/{run}/{restarts()}/{next(_joined)}", store)


def what_bits_depend_on(world: World) -> dict[str, str | int]:
    """A resumed run ends with the same bits where all of these are the same."""
    capability = torch.backends.cpu.get_cpu_capability()
    if world.device.type == "cuda":
        capability = torch.cuda.get_device_name(world.device)
    return {
        "torch": torch.__version__,
        "device": f"{world.device.type} {capability}",
        "threads": torch.get_num_threads(),
        "processes": world.ranks,
        "optimizer": "AdamW fused",
    }
