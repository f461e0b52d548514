"""What a source leaves out, guesses or changes: counted as it is met, and said in sentences."""

import os
from collections import Counter

KINDS = 1000
"""Kinds that are told apart in one sentence."""
LISTED = 5


class Tally:
    """Counts, for ``SourceInfo.notes``.

    A note is a sentence with places to fill in: {n} how many, {s} and {are} by their number, {such}
    the first of them.
    """

    def __init__(self) -> None:
        self.images = 0
        self._unlabelled: list[str] = []
        self._missing = 0
        self._counts: dict[str, Counter[str]] = {}
        self._such: dict[str, str] = {}

    def add(self, note: str, such: str, kind: str = "") -> None:
        """Count one more for a note; the commonest kinds are listed after its sentence."""
        kinds = self._counts.setdefault(note, Counter())
        kinds[kind if kind in kinds or len(kinds) < KINDS else "others"] += 1
        self._such.setdefault(note, such)

    def image(self, name: str, label: str | None) -> None:
        """Count an image, with a label or without."""
        self.images += 1
        if label is None:
            self._missing += 1
            self._unlabelled = self._unlabelled or [name]

    def merge(self, other: "Tally") -> None:
        """Add what another one has counted."""
        self.images += other.images
        self._missing += other._missing
        self._unlabelled = self._unlabelled or other._unlabelled
        for note, kinds in other._counts.items():
            self._counts.setdefault(note, Counter()).update(kinds)
            self._such.setdefault(note, other._such[note])

    def notes(self) -> list[str]:
        """Return the sentences."""
        said = []
        if 0 < self._missing < self.images:
            many = f"{self._missing:,} of {self.images:,} images have no label"
            said.append(f"{many}, such as {_printable(self._unlabelled[0])}")
        for note, kinds in self._counts.items():
            n = kinds.total()
            fill = {"n": f"{n:,}", "s": "s" * (n != 1), "are": "is" if n == 1 else "are"}
            listed = [f"{count:,} {kind}" for kind, count in kinds.most_common() if kind]
            rest = ", …" * (len(listed) > LISTED)
            text = note.format(**fill, such=_printable(self._such[note]))
            said.append(text + f" ({', '.join(listed[:LISTED])}{rest})" * bool(listed))
        return said


def _printable(name: str) -> str:
    """A name that is no UTF-8 could not be printed."""
    return os.fsencode(name).decode(errors="backslashreplace")
