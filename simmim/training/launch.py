"""How this process was started, as torchrun or srun tells, and how a run is gone on with; light."""

import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from simmim.errors import ConfigError


class Place(NamedTuple):
    """Where a process stands among those of a run."""

    rank: int
    ranks: int
    local: int
    """Its rank on its machine."""


def own_place() -> Place:
    """This process's place, as torchrun tells, or Slurm's srun; (0, 1, 0) without them.

    A job's own script, which Slurm tells a number of tasks too, is none of them.
    """
    tells = os.environ.get
    if "WORLD_SIZE" not in os.environ and "SLURM_STEP_NUM_TASKS" in os.environ:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        return Place(*(int(tells(name, "0")) for name in names))
    return Place(
        int(tells("RANK", "0")), int(tells("WORLD_SIZE", "1")), int(tells("LOCAL_RANK", "0"))
    )


def rank_from_environment() -> tuple[int, int]:
    """Rank and number of processes; see ``own_place``.

    Raises:
        ConfigError: There are several, and it is not told where they meet.
    """
    rank, ranks, _ = own_place()
    if ranks > 1 and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"there are {ranks} processes, but MASTER_ADDR is not set. Start with "
            "`torchrun --nproc-per-node=N -m simmim pretrain …`, or under Slurm with "
            "`simmim launch slurm -- pretrain …`."
        )
    return rank, ranks


def share_cores() -> None:
    """Let idle threads sleep instead of spinning, before torch is imported.

    Loader and training share the cores: with spinning threads one busy process beside two training
    threads on two cores made a step five times as long.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def leads() -> bool:
    """Whether this process writes files and prints."""
    return own_place().rank == 0


def restarts() -> int:
    """How often torchrun has started the processes of this job anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def go_on(run: Path, command: str, *flags: str) -> str:
    """What goes on with a run as it was started, to be pasted into a shell.

    Args:
        run: The run folder.
        command: ``pretrain`` or another that trains.
        flags: Further ones.
    """
    command = shlex.join(["simmim", command, "--resume", str(run), *flags])
    ranks, here = os.environ.get("WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE")
    if ranks == "1" or ranks != here:  # on several machines the launcher's flags are not known
        return command
    return f"torchrun --nproc-per-node={ranks} -m {command}"
