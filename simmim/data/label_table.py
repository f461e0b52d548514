"""A table that gives images labels: which of them it means, and what it says of them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simmim.data.image_names import ImageNames
from simmim.data.sources.classes import Reader, number, one_class, several_classes
from simmim.data.sources.index import in_order
from simmim.data.sources.listing import Listing
from simmim.data.sources.tables.rows import read_rows
from simmim.data.sources.tally import Tally
from simmim.errors import DataError

STRANGE = "name no image here"
UNCLEAR = "may mean any of several images"
LOOSE = "spell names otherwise than the images (case, accents or ending)"
BARE = "have no label"
"""What some rows do, in the order in which it is told."""


@dataclass(frozen=True)
class LabelForm:
    """What a label is.

    Attributes:
        read: From the column of labels.
        order: How different ones are listed.
        join: What two rows about one image say together; None: they must say the same.
    """

    read: Reader
    order: Callable[[list[Any]], list[Any]] = sorted
    join: Callable[[Any, Any], Any] | None = None


ONE_CLASS = LabelForm(one_class, in_order)
SEVERAL_CLASSES = LabelForm(several_classes, join=lambda a, b: tuple(sorted({*a, *b})))
NUMBER = LabelForm(number)


@dataclass
class LabelTable:
    """What a table says of images.

    Attributes:
        file: The table.
        images: What its paths may mean; a few bytes are held for each, and nothing for each row.
        form: What a label is.
        column: Name of the column of labels; None: one of the usual names.
        classes: The different labels, in order.
        numbers: int32, place in ``classes`` of the label of each image; -1: none.
        tally: Of labels that are none, and of further columns of them.
        rows: How many there are, and of them how many of each kind; "" is all.
        such: The first path of each kind.
    """

    file: Path
    images: Listing
    form: LabelForm = ONE_CLASS
    column: str | None = None
    classes: list[Any] = field(default_factory=list)
    numbers: np.ndarray = field(init=False)
    tally: Tally = field(default_factory=Tally)
    rows: Counter[str] = field(default_factory=Counter)
    such: dict[str, str] = field(default_factory=dict)
    _exact: np.ndarray = field(init=False)
    _known: dict[Any, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the table.

        Raises:
            DataError: No such file or column, a damaged row, or two labels for one image; the
                message names the line.
        """
        self.numbers = np.full(len(self.images), -1, np.int32)
        self._exact = np.zeros(len(self.images), bool)
        names = ImageNames(self.images, self.file)
        for line, given, label, _ in read_rows(self.file, self.tally, self.form.read, self.column):
            self._count("", given)
            meant = None if label is None else names.find(given)
            if label is None:
                self._count(BARE, given)
            elif meant is None or (not meant.exact and self._exact[meant.places].all()):
                self._count(STRANGE, given)  # or it is like an image that another row names exactly
            elif meant.unclear:
                self._count(UNCLEAR, given)
            else:
                if not meant.exact:
                    self._count(LOOSE, given)
                for place in meant.places:
                    self._give(place, label, f"{self.file}, line {line}: {given}", meant.exact)
        used = set(np.unique(self.numbers).tolist())
        self.classes = self.form.order(
            [name for name, number in self._known.items() if number in used]
        )
        order = {name: i for i, name in enumerate(self.classes)}
        self.numbers = np.array([*(order.get(name, -1) for name in self._known), -1])[self.numbers]

    def notes(self) -> list[str]:
        """What it leaves out or was guessed; see ``Labels``. Of a sample nothing can be said."""
        if len(self.images) < sum(map(len, self.images.indexes)):
            return []
        of = f"of {self.rows['']:,} rows of {self.file.name}"
        notes = self.tally.notes()
        notes += [
            f"{self.rows[what]:,} {of} {what}, such as {self.such[what]}"
            for what in (STRANGE, UNCLEAR, LOOSE, BARE)
            if self.rows[what]
        ]
        without = np.flatnonzero(self.numbers < 0)
        if len(without):
            count = len(self.numbers)
            notes.append(
                f"{self.file.name} labels {count - len(without):,} of {count:,} images; the other "
                f"{len(without):,} have no label, such as {self.images[int(without[0])]}"
            )
        return notes

    def _count(self, what: str, given: str) -> None:
        self.rows[what] += 1
        self.such.setdefault(what, given)

    def _give(self, place: int, label: Any, where: str, exact: bool) -> None:  # noqa: FBT001
        before = int(self.numbers[place])
        if exact < self._exact[place]:
            return
        if self.form.join is not None and before >= 0 and exact == self._exact[place]:
            label, before = self.form.join(label, list(self._known)[before]), -1
        number = self._known.setdefault(label, len(self._known))
        if before not in (-1, number) and exact == self._exact[place]:
            raise DataError(
                f"{where} has the label {label!r} here and {list(self._known)[before]!r} before; "
                f"an image has one label."
            )
        self.numbers[place], self._exact[place] = number, exact
