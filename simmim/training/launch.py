"""How this process was started, as torchrun tells, and how a run is gone on with; light."""

import os
import shlex
import sys
from pathlib import Path

from simmim.errors import ConfigError


def rank_from_environment() -> tuple[int, int]:
    """Rank and number of processes, as torchrun tells; (0, 1) without it."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1 and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"WORLD_SIZE says {ranks} processes, but MASTER_ADDR is not set. Start with "
            "`torchrun --nproc-per-node=N -m simmim pretrain …`."
        )
    return int(os.environ.get("RANK", "0")), ranks


def share_cores() -> None:
    """Let idle threads sleep instead of spinning, before torch is imported.

    Loader and training share the cores: with spinning threads one busy process beside two training
    threads on two cores made a step five times as long.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def leads() -> bool:
    """Whether this process writes files and prints."""
    return os.environ.get("RANK", "0") == "0"


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
