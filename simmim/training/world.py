"""The processes of a run. Nothing else imports ``torch.distributed``."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simmim.errors import ConfigError

T = TypeVar("T")
_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class World:
    """One process among ``ranks``, each with its device."""

    rank: int
    ranks: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """``module``, such that its gradients are averaged over the processes."""
        if self.ranks == 1:
            return module
        devices = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # Newer versions have another name for it, which the older ones do not know.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)

    def total(self, values: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.ranks > 1:
            dist.all_reduce(values)
        return values

    def share(self, value: T) -> T:
        """What the first process has."""
        if self.ranks == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def any(self, flag: bool) -> bool:  # noqa: FBT001
        """Whether the flag is up in any process."""
        return bool(self.total(torch.tensor(int(flag), device=self.device)).item())


def rank_from_environment() -> tuple[int, int]:
    """Rank and number of processes, as torchrun tells; (0, 1) without it."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1 and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"WORLD_SIZE says {ranks} processes, but MASTER_ADDR is not set. Start with "
            "`torchrun --nproc-per-node=N -m simmim pretrain …`."
        )
    return int(os.environ.get("RANK", "0")), ranks


def pick_device() -> torch.device:
    """This process's accelerator, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@contextmanager
def join() -> Iterator[World]:
    """Join the processes that torchrun started, or be alone."""
    rank, ranks = rank_from_environment()
    device = pick_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks == 1:
        yield World(0, 1, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield World(rank, ranks, device)
    finally:
        dist.destroy_process_group()
