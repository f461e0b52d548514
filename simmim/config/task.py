"""Tasks' configs: what the new head of a fine-tuning answers."""

from dataclasses import dataclass
from typing import Literal

from simmim.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Tell which class an image is of."""

    kind: Literal["classify"] = "classify"
    smoothing: float = 0.1
    """Label smoothing: the share of certainty spread over all classes; 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"task.smoothing is a share from 0 to 1, got {self.smoothing:g}.")


TaskConfig = Classification
TASKS: dict[str, type] = {"classify": Classification}
