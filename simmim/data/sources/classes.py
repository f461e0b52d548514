"""What a value that stands for a label or a caption means."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from simmim.data.sources.tally import Tally

MINUS = "{n} label{s} {are} -1, which means none, such as that of {such}"
BEYOND = "{n} label{s} {are} beyond the named classes and taken for none, such as {such}"
NO_CLASS = "{n} label{s} {are} no name or whole number and taken for none, such as {such}"
CAPTIONS = ("caption", "captions", "text", "txt", "description", "alt_text", "prompt")
"""Names of a column or key of captions, the likeliest first."""
Reader = Callable[[Any, Tally, str], Any]
"""How a label in a list is read: to None where there is none; raises ``ValueError``."""
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


def one_class(value: Any, tally: Tally, where: str) -> str | None:
    """Return the one class that a label in a list stands for; see ``class_name``.

    Raises:
        ValueError: There are several.
    """
    if isinstance(value, (dict, list)):
        raise ValueError("several labels; an image has one (--task multilabel: any number)")  # noqa: TRY004
    return class_name(value, (), tally, where)


def several_classes(value: Any, tally: Tally, where: str) -> tuple[str, ...] | None:
    """Return the classes that a label in a list stands for, or None: of null and NaN.

    Args:
        value: A list of names, or a text with ``|``, ``;`` or a comma between them; an empty one
            stands for none of the classes.
        tally: Told of labels that are none although they are something.
        where: What has these labels.

    Raises:
        ValueError: It is neither.
    """
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return None
    if isinstance(value, dict):
        raise ValueError(f"{str(value)[:40]!r}, which is no list of names")  # noqa: TRY004
    each = re.split(r"[|;,]", value) if isinstance(value, str) else value
    each = each if isinstance(each, list) else [each]
    names = (class_name(one, (), tally, where) for one in each)
    return tuple(sorted({name for name in names if name is not None}))


def number(value: Any, tally: Tally, where: str) -> float | None:  # noqa: ARG001
    """Return the number that a label in a list is, or None: of null, "" and NaN.

    Raises:
        ValueError: It is no number, or has no end.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.inf
    if math.isinf(found) or isinstance(value, bool):
        raise ValueError(f"{str(value)[:40]!r}, which is no number")
    return None if math.isnan(found) else found


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
