"""What a job on a cluster is asked to be."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from simmim.config.checks import check_positive
from simmim.config.run import budget_seconds


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """Write a script for Slurm's sbatch that trains a run to its end."""

    nodes: int = 1
    """Machines."""
    gpus: int = 1
    """GPUs of each machine, with a process for each; 0: one process on its CPUs."""
    cpus: int = 8
    """CPU cores of each process."""
    time: str = "24:00:00"
    """Longest time of an attempt, as Slurm writes it, or such as 90m or 2d."""
    partition: str | None = None
    """Where it runs; default: the cluster's own."""
    sbatch: dict[str, int | float | str | bool] = field(default_factory=dict)
    """Further options of sbatch, such as account=lab,mem=64G."""
    file: Path | None = None
    """Script to write; default: NAME.sbatch by the run's name. Never overwritten."""
    submit: bool = False
    """Submit it, too."""

    def __post_init__(self) -> None:
        for name in ("nodes", "cpus"):
            check_positive(f"--{name}", getattr(self, name))
        check_positive("--gpus", self.gpus, zero=True)
        self.limit()

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.nodes * max(1, self.gpus)

    def limit(self) -> str:
        """The time as Slurm takes it.

        Raises:
            ConfigError: It is none.
        """
        if re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", self.time):
            return self.time
        minutes, seconds = divmod(round(budget_seconds(self.time)), 60)
        return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
