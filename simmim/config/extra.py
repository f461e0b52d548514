"""Extras' configs: further losses on the same features."""

from dataclasses import dataclass
from typing import Literal

from simmim.config.checks import check_positive


@dataclass(frozen=True, kw_only=True)
class ExtraLoss:
    """What every further loss has."""

    kind: str = ""
    weight: float = 1.0
    """What its loss counts in the sum, in which the target's counts 1."""

    def __post_init__(self) -> None:
        check_positive(f"{self.kind}.weight", self.weight, zero=True)


@dataclass(frozen=True, kw_only=True)
class LayoutExtra(ExtraLoss):
    """The whole picture in little, from the mean of the features of what is visible."""

    kind: Literal["layout"] = "layout"
    cells: int = 4
    """Cells of the picture per column and per row; each has mean colours and a histogram."""
    bins: int = 9
    """Orientations of a histogram, over half a turn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("layout.cells", self.cells)
        check_positive("layout.bins", self.bins)


ExtraConfig = LayoutExtra
EXTRAS: dict[str, type[ExtraLoss]] = {"layout": LayoutExtra}
