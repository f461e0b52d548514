"""What a task has to say in the report on a fine-tuning."""

from collections.abc import Sequence
from dataclasses import dataclass

from simmim.report.sections import Section, Tile


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The task's own part of a report.

    Attributes:
        tone: Of the verdict: good, caution, bad or neutral.
        verdict: How good it is, in a sentence or two.
        labels: What was learned from, as in "fine-tuned on 80 images, with labels".
        tiles: The figures.
        sections: Curves and results, before what stands on the page of every run.
        commands: What one may do with it, each with what it does.
    """

    tone: str
    verdict: str
    labels: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    commands: Sequence[tuple[str, str]]
