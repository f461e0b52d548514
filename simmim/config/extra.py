"""Extras' configs: further losses on the same features. There is none yet."""

from dataclasses import dataclass
from typing import Never

from simmim.config.checks import check_positive


@dataclass(frozen=True, kw_only=True)
class ExtraLoss:
    """What every further loss has."""

    kind: str = ""
    weight: float = 1.0
    """What its loss counts in the sum, in which the target's counts 1."""

    def __post_init__(self) -> None:
        check_positive(f"{self.kind}.weight", self.weight, zero=True)


ExtraConfig = Never
EXTRAS: dict[str, type[ExtraLoss]] = {}
