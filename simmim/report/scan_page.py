"""The page of ``simmim scan``: one HTML file that needs nothing but a browser."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from simmim.data.audit.facts import Facts, ImagePair
from simmim.data.audit.image_facts import EXAMPLES
from simmim.report.pictures import data_uri, square, to_image, write_whole
from simmim.report.scan_text import balance, kinds, scaling, sizes, volume
from simmim.report.words import count, percent, printable

SIDE = 168
"""Pixels of a picture's side on the page."""
ROWS = 200
"""Most rows of a table."""


@dataclass(frozen=True)
class Shot:
    """A picture and what stands below it; None where the image is gone by now."""

    picture: np.ndarray | None
    caption: str


@dataclass(frozen=True)
class SheetRow:
    """An image on the contact sheet: itself, views of it, and the same with patches hidden."""

    name: str
    shots: list[Shot]


@dataclass(frozen=True)
class Pictures:
    """All pictures of the page; each list may be shorter than that of the facts.

    Attributes:
        sheet: The contact sheet.
        masked: What the masks of it are, in words.
        duplicates: Pairs beside one another; so ``leaks``.
        odd: By what is odd.
        blank: Images without content.
    """

    sheet: list[SheetRow] = field(default_factory=list)
    masked: str = ""
    duplicates: list[tuple[ImagePair, Shot, Shot]] = field(default_factory=list)
    leaks: list[tuple[ImagePair, Shot, Shot]] = field(default_factory=list)
    odd: list[tuple[str, int, list[Shot]]] = field(default_factory=list)
    blank: list[Shot] = field(default_factory=list)


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its number, and its share of the longest."""

    name: str
    number: int
    share: float


def write_page(path: Path, facts: Facts, pictures: Pictures) -> Path:
    """Write the page, whole or not at all."""
    folder = files("simmim.report")
    style = re.search(
        r"<style>(.*?)</style>",
        folder.joinpath("template.html").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert style is not None
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "photo": _picture,
        "printable": printable,
        "percent": percent,
        "volume": volume,
    }
    source = folder.joinpath("scan.html").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        facts=facts,
        pictures=pictures,
        style=Markup(style[1]),
        title=", ".join(facts.where),
        words={
            "sizes": sizes(facts),
            "kinds": kinds(facts),
            "balance": balance(facts),
            "scaling": scaling(facts),
        },
        remarks=remarks(facts),
        sides=side_bars(facts),
        reasons=bars(facts.reasons.items()),
        classes=bars(facts.classes.items()),
        rows=ROWS,
        json=_json(facts),
    )
    return write_whole(path, page.encode("utf-8", "backslashreplace"))


def remarks(facts: Facts) -> list[str]:
    """What should be looked into before training, most harmful first; empty where all is well."""
    found = []
    for part, n in facts.leaked.items():
        found.append(
            f"{n:,} of the {count(facts.parts[part], 'image')} in {part} "
            f"{'is' if n == 1 else 'are'}, exactly or nearly, in another part too: results "
            "measured there would be too good."
        )
    if facts.unreadable:
        share = percent(facts.unreadable / facts.looked_at, 1)
        found.append(f"{count(facts.unreadable, 'image')} cannot be read ({share}).")
    if facts.misfits:
        found.append(
            f"{count(facts.misfits, 'image')} {'does' if facts.misfits == 1 else 'do'} not fit the "
            "rest (floats among integers, or other channels): training passes over them as "
            "unreadable."
        )
    if facts.conflicts:
        found.append(
            f"Different classes among like images: {count(facts.conflicts, 'group')} of them."
        )
    if facts.exact + facts.near:
        found.append(
            f"{facts.exact:,} exact and {facts.near:,} near duplicates; simmim shard leaves those "
            "of DATA out with --dedupe exact or near."
        )
    if facts.blank[0]:
        found.append(f"{count(facts.blank[0], 'image')} without content.")
    if len(facts.types) > 1:
        found.append(f"Values of different types: {', '.join(facts.types)}.")
    if facts.looked_at < facts.images:
        found.append(
            f"Only {facts.looked_at:,} of {facts.images:,} images were looked at; of duplicates, a "
            "sample shows far fewer than there are."
        )
    return found


def side_bars(facts: Facts) -> list[Bar]:
    """The histogram of shorter sides."""
    ends = [low for low, _ in facts.histogram[1:]]
    names = [f"{low:,} – {end - 1:,}" for (low, _), end in zip(facts.histogram, ends, strict=False)]
    if facts.histogram:
        names.append(f"from {facts.histogram[-1][0]:,}")
    return bars(zip(names, (n for _, n in facts.histogram), strict=True))


def bars(rows: Iterable[tuple[str, int]]) -> list[Bar]:
    """Bars for names and numbers."""
    pairs = list(rows)
    most = max((number for _, number in pairs), default=1) or 1
    return [Bar(name, number, number / most) for name, number in pairs]


def _json(facts: Facts) -> Markup:
    few = replace(
        facts,
        bad=facts.bad[:EXAMPLES],
        duplicates=facts.duplicates[:EXAMPLES],
        leaks=facts.leaks[:EXAMPLES],
    )
    # Inside a script element no text may end it.
    return Markup(json.dumps(few.as_dict()).replace("<", "\\u003c"))


def _picture(shot: Shot) -> str:
    picture = np.full((8, 8, 1), 0.9) if shot.picture is None else shot.picture
    return data_uri(square(to_image(picture), SIDE), 82)
