"""Which files of a folder are images: by ending, else by content; the rest is counted."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from simmim.data.formats.endings import ARCHIVES, EXTENSIONS
from simmim.data.formats.heads import HEAD, begins_like_image
from simmim.data.formats.tiff import is_tiff

ORDINARY = re.compile(r".+(\.[a-z][a-z0-9]{0,4})", re.DOTALL)
"""A name with an ending such as programs give, which may be that of any format."""
INSIDE = re.compile(
    rf"({'|'.join(map(re.escape, sorted(EXTENSIONS, key=len, reverse=True)))})(?![a-z0-9])"
)
"""The ending of an image somewhere in a name, as in `x.jpg_large` or `x.jpg.1`."""
NONE = "without ending"
TRIED = 200
"""Files of a kind that are looked into, before nearly all of them tell what the others are."""
NEARLY = 0.99
NAMED = 5
"""Kinds of files that a note names."""


@dataclass
class FileKinds:
    """Tells the images among files, and counts the others.

    What has no ending of an image is judged by how it begins. A TIFF with another ordinary ending
    is none: camera raw files and slides are TIFFs whose first page is a small picture.

    Attributes:
        others: Files that are no images, by kind; whoever lists them may add other kinds.
        known: Images that only their content tells.
        example: The first of these.
    """

    others: Counter[str] = field(default_factory=Counter)
    known: int = 0
    example: str = ""
    _tried: Counter[str] = field(default_factory=Counter)
    _right: Counter[str] = field(default_factory=Counter)

    def images(self, folder: str, names: Iterable[str]) -> list[str]:
        """Return the names of the images among the files of a folder, sorted."""
        return [name for name in sorted(names) if self._is_image(folder, name)]

    def notes(self) -> list[str]:
        """See ``SourceInfo``."""
        notes = []
        if self.known:
            notes.append(
                f"{self.known:,} files have no ending of an image, and are taken for images by "
                f"their content, such as {self.example}"
            )
        return notes + ([passed_over(self.others)] if self.others else [])

    def _is_image(self, folder: str, name: str) -> bool:
        if os.path.splitext(name)[1].lower() in EXTENSIONS:  # noqa: PTH122 - once for each file
            return True
        kind = kind_of(name)
        tried, right = self._tried[kind], self._right[kind]
        if tried < TRIED or (1 - NEARLY) * tried < right < NEARLY * tried:
            is_image = _begins_like_image(f"{folder}/{name}", kind)
            self._tried[kind] += 1
            self._right[kind] += is_image
        else:
            is_image = right >= NEARLY * tried
        if is_image:
            self.known += 1
            self.example = self.example or name
        else:
            self.others[kind] += 1
        return is_image


def kind_of(name: str) -> str:
    """Return the ending of a name where it is an ordinary one, or what is most like one."""
    lower = name.lower()
    ordinary = ORDINARY.fullmatch(lower)
    if ordinary:
        return ordinary[1]
    inside = INSIDE.search(lower)
    return f"{inside[1]}…" if inside else NONE


def passed_over(others: Mapping[str, int]) -> str:
    """Say how many files of which kinds are passed over; names of a few kinds."""
    most = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    listed = [f"{count:,} {kind}" for kind, count in most[:NAMED]]
    if len(most) > NAMED:
        listed.append(f"{sum(count for _, count in most[NAMED:]):,} of other kinds")
    total = sum(others.values())
    hint = "; name archives themselves, or unpack them" if ARCHIVES & set(others) else ""
    return f"{total:,} file{'s' * (total != 1)} passed over: {', '.join(listed)}{hint}"


def is_image_file(file: Path) -> bool:
    """Tell whether a file is an image: by its ending, else by its content."""
    return bool(FileKinds().images(str(file.parent), [file.name]))


def _begins_like_image(path: str, kind: str) -> bool:
    try:
        with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - once for each file
            head = stream.read(HEAD)
    except OSError:
        return False
    return begins_like_image(head) and not (is_tiff(head) and kind != NONE and kind[-1] != "…")
