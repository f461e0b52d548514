"""What the values of label maps mean: from a list of classes, or from the values themselves."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from simmim.errors import DataError
from simmim.tensors.batch import IGNORE

FILES = ("classes.json", "class_dict.csv", "classes.csv")
"""Names of a list of classes beside the folders of images and masks."""
VOID = frozenset({"void", "ignore", "ignored", "unlabeled", "unlabelled"})
"""Names of classes that are none."""
EDGE = 255
"""The value that means no class where no list of classes has it."""
COLOUR = 1 << 24
"""What the values of masks in colour begin at; see ``read_map``."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassList:
    """A list of classes, as a file gives it.

    Attributes:
        names: By the value of each in a map of indices.
        ignored: Values that mean no class.
        colours: By value; {}: not told.
    """

    names: dict[int, str]
    ignored: frozenset[int] = frozenset()
    colours: dict[int, Colour] = field(default_factory=dict)


@dataclass(frozen=True)
class MapClasses:
    """What each value of a map means.

    Attributes:
        names: Of the classes.
        values: What stands for each class in a map of indices.
        lookup: Class index of each value that may be in a map; ``IGNORE``: none.
        colours: Of each class, to be shown with.
        notes: What was guessed.
        told: Names of the values, from 0, where the source of the maps tells them.
    """

    names: list[str]
    values: list[int]
    lookup: dict[int, int]
    colours: list[Colour]
    notes: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """All but the names, as JSON."""
        pairs = [list(pair) for pair in self.lookup.items()]
        told = {"told": self.told} if self.told else {}
        return {"values": self.values, "lookup": pairs, "colours": self.colours, **told}

    @classmethod
    def of(cls, names: Sequence[str], facts: Mapping[str, Any]) -> "MapClasses":
        """What ``facts`` wrote."""
        colours = [(red, green, blue) for red, green, blue in facts["colours"]]
        told = facts.get("told", [])
        return cls(list(names), facts["values"], dict(facts["lookup"]), colours, told=told)

    def for_names(self, told: Sequence[str]) -> "MapClasses":
        """The same classes, of maps whose values have these names; [] where they have none."""
        if list(told) == self.told:
            return self
        known = dict(zip(self.told, range(len(self.told)), strict=True))
        pairs = ((value, known.get(name)) for value, name in enumerate(told))
        lookup = {value: self.lookup[own] for value, own in pairs if own in self.lookup}
        return replace(self, lookup={**lookup, IGNORE: IGNORE})

    def classes_of(self, values: np.ndarray) -> np.ndarray:
        """Class indices of a map's values, ``IGNORE`` where they are none or not known."""
        known = np.array(sorted(self.lookup), np.int64)
        classes = np.array([self.lookup[value] for value in known.tolist()], np.int64)
        places = np.searchsorted(known, values).clip(0, len(known) - 1)
        return np.where(known[places] == values, classes[places], IGNORE)


def read_classes(file: Path) -> ClassList:
    """Read a list of classes.

    JSON: a list of names; names with colours, ``{"road": [128, 64, 128]}``; or ``{"classes": names,
    "ignore_index": 11, "colors": colours}``. CSV: a row for each class, with the columns ``name``
    and, where masks are in colour, ``r``, ``g`` and ``b``.

    Raises:
        DataError: It is none of these.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        found = _from_csv(text) if file.suffix.lower() == ".csv" else _from_json(json.loads(text))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(
            f"{file} is no list of classes ({error}): JSON with a list of names, or with "
            '{"classes": names, "ignore_index": N, "colors": [[r, g, b], …]}; or a CSV with the '
            "columns name, r, g, b."
        ) from error
    if len(set(found.names.values())) < len(found.names):
        raise DataError(f"{file} names a class twice.")
    return found


def named_classes(told: Sequence[str]) -> ClassList:
    """Return the classes of maps whose values have these names, from 0."""
    return _class_list(told, (), ())


def _from_json(document: Any) -> ClassList:
    ignored: Any = ()
    if isinstance(document, dict) and "classes" in document:
        names, ignored = document["classes"], document.get("ignore_index", ())
        colours = next((document[k] for k in ("colors", "colours", "palette") if k in document), ())
    elif isinstance(document, dict):
        names, colours = list(document), list(document.values())
    else:
        names, colours = document, ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("no names")
    ignored = [ignored] if isinstance(ignored, int) else ignored or ()
    return _class_list(names, ignored, colours)


def _from_csv(text: str) -> ClassList:
    rows = [
        {key.strip().lower(): value.strip() for key, value in row.items()}
        for row in csv.DictReader(text.splitlines())
    ]
    coloured = bool(rows) and {"r", "g", "b"} <= rows[0].keys()
    colours = [tuple(int(row[each]) for each in "rgb") for row in rows] if coloured else ()
    return _class_list([row["name"] for row in rows], (), colours)


def _class_list(names: Sequence[str], ignored: Iterable[int], colours: Sequence[Any]) -> ClassList:
    void = {value for value, name in enumerate(names) if name.strip().lower() in VOID}
    if colours and len(colours) != len(names):
        raise ValueError(f"{len(colours)} colours for {len(names)} names")
    told = {value: (int(r), int(g), int(b)) for value, (r, g, b) in enumerate(colours)}
    return ClassList(dict(enumerate(names)), frozenset({*void, *map(int, ignored)}), told)


def meaning(
    listed: ClassList | None, found: Mapping[int, str], ignore: int | None, where: str
) -> MapClasses:
    """Say what the values of maps mean.

    Args:
        listed: The list of classes, where there is one.
        found: The values in the maps, each with a map that has it.
        ignore: A further value that means no class.
        where: What the maps are of, for messages.

    Raises:
        DataError: A value or colour is not in the list, or there are fewer than two classes.
    """
    ignored = {IGNORE, *([] if ignore is None else [ignore])}
    if listed is None:
        classes = _by_values(set(found) - ignored, ignored, found, where)
    elif any(value >= COLOUR for value in found):
        classes = _by_colours(listed, found, where)
    else:
        classes = _by_indices(listed, found, ignored, where)
    lookup = {**classes.lookup, **dict.fromkeys(ignored, IGNORE)}
    if len(classes.names) < 2:
        raise DataError(
            f"the masks of {where} have {len(classes.names)} class; at least two are needed to "
            "learn to tell them apart."
        )
    return MapClasses(classes.names, classes.values, lookup, classes.colours, classes.notes)


def _by_values(
    values: set[int], ignored: set[int], found: Mapping[int, str], where: str
) -> MapClasses:
    notes = []
    coloured = [value for value in values if value >= COLOUR]
    if coloured:
        raise DataError(
            f"the masks of {where} are in colour, such as {found[coloured[0]]}, and nothing says "
            "what the colours mean: name a list of classes with their colours by --task.classes."
        )
    if min(values, default=0) < 0 or max(values, default=0) > 10_000:
        raise DataError(
            f"the masks of {where} have values from {min(values)} to {max(values)}, which are no "
            "numbers of classes: name a list of classes by --task.classes."
        )
    if values == {0, EDGE}:
        notes = [f"the masks have the values 0 and {EDGE}, taken for background and foreground"]
        lookup = {0: 0, EDGE: 1}
        return MapClasses(["background", "foreground"], [0, 1], lookup, _colours(2), notes)
    lookup: dict[int, int] = {}
    if EDGE in values:
        notes = [f"the value {EDGE} of the masks is taken for no class"]
        values, lookup = values - {EDGE}, {EDGE: IGNORE}
    kept = [value for value in range(max(values, default=-1) + 1) if value not in ignored]
    span = f"{min(kept, default=0)} to {max(kept, default=0)}"
    notes.append(f"no list of classes was found: they are named by their values, {span}")
    lookup |= {value: place for place, value in enumerate(kept)}
    return MapClasses(list(map(str, kept)), kept, lookup, _colours(len(kept)), notes)


def _by_indices(
    listed: ClassList, found: Mapping[int, str], ignored: set[int], where: str
) -> MapClasses:
    notes, none = [], {*listed.ignored, *ignored}
    if EDGE in found and EDGE not in listed.names and EDGE not in none:
        notes, none = [f"the value {EDGE} of the masks is taken for no class"], {*none, EDGE}
    kept = [value for value in listed.names if value not in none]
    wrong = sorted(value for value in found if value not in kept and value not in none)
    if wrong:
        raise DataError(
            f"the masks of {where} have values that the list of classes lacks: "
            f"{', '.join(map(str, wrong[:5]))}, such as in {found[wrong[0]]}. It names "
            f"{len(listed.names)} classes, 0 to {len(listed.names) - 1}. Mend the masks or the "
            "list, or name one value that means no class by --task.ignore."
        )
    lookup = {value: place for place, value in enumerate(kept)} | dict.fromkeys(none, IGNORE)
    return _listed(listed, kept, lookup, notes)


def _by_colours(listed: ClassList, found: Mapping[int, str], where: str) -> MapClasses:
    kept = [value for value in listed.names if value not in listed.ignored]
    lookup = {}
    for value, (red, green, blue) in listed.colours.items():
        place = kept.index(value) if value in kept else IGNORE
        lookup[COLOUR + (red << 16) + (green << 8) + blue] = place
        if red == green == blue:  # a map that is grey all over has one number for each pixel
            lookup[red] = place
    wrong = [value for value in found if value not in lookup and value != IGNORE]
    if wrong:
        value = max(wrong)
        shown = f"{(value >> 16) & 255}, {(value >> 8) & 255}, {value & 255}"
        shown = shown if value >= COLOUR else f"{value}, {value}, {value}"
        known = "no colours" if not listed.colours else f"{len(listed.colours)} others"
        raise DataError(
            f"the masks of {where} have {len(wrong):,} colours that the list of classes lacks: "
            f"({shown}) in {found[value]}. The list has {known}. Add the colour, or save masks "
            "without smoothing and not as JPEG."
        )
    return _listed(listed, kept, lookup, [])


def _listed(
    listed: ClassList, kept: list[int], lookup: dict[int, int], notes: list[str]
) -> MapClasses:
    left = [name for value, name in listed.names.items() if value not in kept]
    if left:
        notes = [*notes, f"what is {' or '.join(left)} in the masks is taken for no class"]
    usual = _colours(len(kept))
    colours = [listed.colours.get(value, usual[place]) for place, value in enumerate(kept)]
    return MapClasses([listed.names[v] for v in kept], kept, lookup, colours, notes)


def _colours(count: int) -> list[Colour]:
    """Colours that are told apart: those of Pascal VOC, in their order."""
    found = []
    for number in range(count):
        bits = [(number >> k) & 1 for k in range(9)]
        channels = [sum(bits[3 * k + c] << (7 - k) for k in range(3)) for c in range(3)]
        found.append((channels[0], channels[1], channels[2]))
    return found
