"""Extras' configs: further losses on the same features. There is none yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Never

from simmim.config.checks import check_positive
from simmim.errors import ConfigError


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


def check_once(extras: Sequence[ExtraLoss]) -> None:
    """Raise ``ConfigError`` where a kind is there twice: its flags would be of both."""
    kinds = [extra.kind for extra in extras]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ConfigError(f"the extra {kind} is given {kinds.count(kind)} times, not once.")
