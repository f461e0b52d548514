"""What a value that stands for a label or a caption means."""

from collections.abc import Sequence
from typing import Any

from simmim.data.sources.tally import Tally

MINUS = "{n} label{s} {are} -1, which means none, such as that of {such}"
BEYOND = "{n} label{s} {are} beyond the named classes and taken for none, such as {such}"
NO_CLASS = "{n} label{s} {are} no name or whole number and taken for none, such as {such}"
CAPTIONS = ("caption", "captions", "text", "txt", "description", "alt_text", "prompt")
"""Names of a column or key of captions, the likeliest first."""
SEVERAL = "of several captions of an image the first is taken: of {n} image{s}, such as {such}"


def class_name(value: Any, classes: Sequence[str], tally: Tally, where: str) -> str | None:
    """Return the class that a label stands for, or None: of null, "", NaN and -1.

    Args:
        value: A name or a number; a fraction, or a list, is none.
        classes: What whole numbers are places in; [] where they are names themselves.
        tally: Told of labels that are none although they are something.
        where: What has this label.
    """
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (int, str)):
        tally.add(NO_CLASS, f"{str(value)[:40]} of {where}")
        return None
    text = str(value).strip()
    if text in ("-1", "-1.0"):
        tally.add(MINUS, where)
        return None
    if classes and isinstance(value, int):
        if 0 <= value < len(classes):
            return classes[value]
        tally.add(BEYOND, f"{value} of {where}")
        return None
    return text or None


def caption_text(value: Any, tally: Tally, where: str) -> str | None:
    """Return the caption that a value is, or None: of null, "", and what is no text.

    Args:
        value: A text, or a list of texts, of which the first is taken.
        tally: Told of lists of several.
        where: What has this caption.
    """
    if isinstance(value, (list, tuple)):
        if len(value) > 1:
            tally.add(SEVERAL, where)
        value = value[0] if value else None
    return (value.strip() or None) if isinstance(value, str) else None
