"""What a source leaves out, guesses or changes: counted as it is met, and said in sentences."""

import os
from collections import Counter

from simmim.data.formats.endings import EXTENSIONS, is_debris
from simmim.data.names import plain
from simmim.data.sources.kinds import kind_of, passed_over

KINDS = 1000
"""Kinds that are told apart in one sentence."""
LISTED = 5


class Tally:
    """Counts, for ``SourceInfo.notes``.

    A note is a sentence with places to fill in: {n} how many, {s}, {es}, {are} and {have} by their
    number, {such} the first of them.

    Attributes:
        others: Files that are no images, by kind.
    """

    def __init__(self) -> None:
        self.others: Counter[str] = Counter()
        self._counts: dict[str, Counter[str]] = {}
        self._such: dict[str, str] = {}

    def add(self, note: str, such: str, kind: str = "") -> None:
        """Count one more for a note; the commonest kinds are listed after its sentence."""
        kinds = self._counts.setdefault(note, Counter())
        kinds[kind if kind in kinds or len(kinds) < KINDS else "others"] += 1
        self._such.setdefault(note, such)

    def pass_over(self, name: str) -> None:
        """Count a file that is no image; of what systems leave, only what is called like one."""
        last = name.rpartition("/")[2]
        debris = next((part for part in name.split("/") if is_debris(part)), None)
        if debris is None:
            self.others[kind_of(last)] += 1
        elif os.path.splitext(last)[1].lower() in EXTENSIONS and not last.startswith("._"):  # noqa: PTH122
            self.others["hidden" if debris.startswith(".") else f"in {debris}"] += 1

    def merge(self, other: "Tally") -> None:
        """Add what another one has counted."""
        self.others.update(other.others)
        for note, kinds in other._counts.items():
            self._counts.setdefault(note, Counter()).update(kinds)
            self._such.setdefault(note, other._such[note])

    def notes(self) -> list[str]:
        """Return the sentences."""
        said = [self.sentence(note) for note in self._counts]
        return said + ([passed_over(self.others)] if self.others else [])

    def sentence(self, note: str) -> str:
        """Return the sentence of a note; empty where nothing was counted for it."""
        if note not in self._counts:
            return ""
        kinds = self._counts[note]
        n = kinds.total()
        fill = {"n": f"{n:,}", "s": "s" * (n != 1), "es": "es" * (n != 1)}
        fill |= {"are": "is", "have": "has"} if n == 1 else {"are": "are", "have": "have"}
        listed = [f"{count:,} {kind}" for kind, count in kinds.most_common() if kind]
        rest = ", …" * (len(listed) > LISTED)
        text = note.format(**fill, such=plain(self._such[note]))
        return text + f" ({', '.join(listed[:LISTED])}{rest})" * bool(listed)
