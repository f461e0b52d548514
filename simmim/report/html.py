"""The report: one HTML file that needs nothing but a browser."""

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from simmim.report import finetuned, summary
from simmim.report.pictures import Photo, data_uri, square, to_image, write_whole
from simmim.report.sections import EmbeddingMap, Report, Section
from simmim.report.words import percent, points, printable
from simmim.runs.record import read_run

LIMIT = 3_000_000
"""Bytes that a report should not exceed: small enough to send by mail."""

_THUMBNAIL, _COLUMNS = 64, 25
"""A map's thumbnails stand in one picture: so many pixels each, so many in a row."""

_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def write_report(path: Path, report: Report) -> Path:
    """Write ``report`` as one self-contained file, whole or not at all.

    Pictures are made smaller until the file is within ``LIMIT``, three times at most.
    """
    for scale in (1.0, 0.7, 0.5, 0.35):
        page = _render(report, scale).encode("utf-8", "backslashreplace")
        if len(page) <= LIMIT:
            break
    return write_whole(path, page)


def run_report(run: Path, sections: Sequence[Section] = ()) -> Path:
    """Write RUN/report.html from what the run folder holds, and return its path.

    Files that are missing or half written are left out, and the page says so.

    Args:
        run: The run folder.
        sections: More to show, such as an evaluation; it stands after the reconstructions.

    Raises:
        CheckpointError: There is no such folder.
    """
    record = read_run(run)
    if finetuned.is_finetuning(record):
        return write_report(run / "report.html", finetuned.describe(record))
    return write_report(run / "report.html", summary.describe(record, sections))


def _render(report: Report, scale: float) -> str:
    """The page's text, its pictures shrunk to ``scale`` of their usual side."""
    source = files("simmim.report").joinpath("template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "photo": lambda photo, side: _data_uri(photo, round(side * scale)),
        "sheet": lambda section: _sheet(section, round(_THUMBNAIL * scale)),
        "percent": percent,
        "points": points,
        "svg": Markup,  # drawn by `figures`, which escapes names
        "printable": printable,
        "unbroken": lambda text: re.sub(r"(?<=\d) (?=%)", "\u00a0", printable(text)),
    }
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = hashlib.sha256(script[1].encode()).digest() if script else b""
    return environment.from_string(source).render(
        report=report, columns=_COLUMNS, script_hash=base64.b64encode(digest).decode()
    )


def _sheet(section: EmbeddingMap, side: int) -> str:
    """All thumbnails of a map in one picture; the page shows a window of it."""
    kept = section.kept
    rows = -(-len(kept) // _COLUMNS)
    page = Image.new("RGB", (_COLUMNS * side, rows * side), "white")
    for place, index in enumerate(kept):
        row, column = divmod(place, _COLUMNS)
        page.paste(square(_image(section.photos[index]), side), (column * side, row * side))
    return data_uri(page, 72)


def _image(photo: Photo) -> Image.Image:
    """``photo`` as RGB; a grey square where a file has gone or broken since it was used."""
    try:
        return to_image(photo)
    except _UNREADABLE:
        return to_image(np.full((32, 32, 1), 0.5))


def _data_uri(photo: Photo, side: int) -> str:
    """``photo``, at most ``side`` pixels long, as the address of an image inside the page."""
    image = _image(photo)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_uri(image, 86)
