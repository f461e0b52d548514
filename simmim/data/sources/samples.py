"""Samples of WebDataset: which members of a tar are its images, and the label and caption of each.

They are those of the file whose name is the image's, whole or but for the last ending; where there
is none, of a shorter name, cut at a dot, down to the KEY, which is all before the first dot. A file
whose name goes on after that of an image (N.seg.png beside N.jpg) is no image but belongs to it.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from simmim.data.sources.classes import class_name
from simmim.data.sources.tally import Tally

BESIDE = "{n} file{s} beside the images of samples {are} not used as images, such as {such}"
SEVERAL = "{n} sample{s} of several images: all of them are used, such as {such}"
UNUSED = "{n} label{s} beside no image of that name, such as {such}"
CONFLICT = "{n} label{s} in .json and .cls contradict: that in .json is taken, such as {such}"
NO_JSON = "{n} .json file{s} cannot be read as JSON, such as {such}"


class Samples:
    """The labels and captions that are told among some members of a tar."""

    def __init__(self, prefix: str, tally: Tally) -> None:
        """Begin without any; ``tally`` is told what does not fit, with ``prefix`` before names."""
        self._prefix, self._tally = prefix, tally
        self._json: dict[str, str] = {}
        self._cls: dict[str, str] = {}
        self._captions: dict[str, str] = {}

    def tell(self, name: str, content: bytes) -> None:
        """Take in a file that tells something: NAME.json (its "label"), NAME.cls, or NAME.txt."""
        stem, _, ending = name.rpartition(".")
        whole = self._prefix + name
        if ending.lower() == "txt":
            self._captions[stem] = content.decode("utf-8-sig", "replace").strip()
            return
        if ending.lower() == "cls":
            told, value = self._cls, content.decode("utf-8-sig", "replace")
        else:
            told, value = self._json, self._value(whole, content)
        told.pop(stem, None)
        label = class_name(value, (), self._tally, whole)
        if label is not None:
            told[stem] = label

    def images(self, names: Sequence[str]) -> Iterator[tuple[str, str | None, str | None]]:
        """Yield those of the names of images that are used, and the label and caption of each."""
        images = self._without_others(names)
        first: dict[str, str] = {}
        for name in images:
            teller = self._teller(name)
            yield name, self._label(teller), self._caption(name)
            sample = teller or stem_of(name)
            if first.setdefault(sample, name) not in ("", name):
                self._tally.add(SEVERAL, f"{self._prefix}{first[sample]} and {name}")
                first[sample] = ""  # it is counted once
        for stem in self._json | self._cls:  # dicts, which keep their order
            if stem not in first:
                self._tally.add(UNUSED, f"{self._prefix}{stem}")
        self._contradictions()

    def captions_of(self, names: Sequence[str]) -> Iterator[str]:
        """Yield the names, but for the last ending, of the captions that images have."""
        for name in names:
            stem = next((each for each in _stems(name) if each in self._captions), None)
            if stem is not None:
                yield stem

    def _caption(self, name: str) -> str | None:
        stem = next(self.captions_of([name]), None)
        return None if stem is None else self._captions[stem] or None

    def _without_others(self, names: Sequence[str]) -> list[str]:
        """Leave out what lies beside an image, and the few files of such a kind that lie alone."""
        pictures = {stem_of(name) for name in names if not _is_array(name)}
        stems = pictures | {stem_of(name) for name in names}
        others: dict[str, str] = {}
        for name in names:
            image = self._image_of(name, stems, pictures)
            if image is not None:
                others[name] = name[len(image) :]
        beside = Counter(others.values())
        alone: dict[str, str] = {}
        for name in names:
            if name not in others and not self._is_labelled(name):
                rests = (name[len(each) :] for each in shorter(stem_of(name)))
                kind = next((rest for rest in rests if rest in beside), None)
                alone |= {name: kind} if kind else {}
        few = Counter(alone.values())
        others |= {name: kind for name, kind in alone.items() if few[kind] < beside[kind]}
        for name, kind in others.items():
            self._tally.add(BESIDE, self._prefix + name, kind)
        return [name for name in names if name not in others]

    def _image_of(self, name: str, stems: set[str], pictures: set[str]) -> str | None:
        """Return the name of the image that a file lies beside; None where there is none."""
        if _is_array(name) and stem_of(name) in pictures:
            return stem_of(name)
        if self._is_labelled(name):
            return None
        key = key_of(name)
        for each in shorter(stem_of(name)):
            # What a number follows may be half a name, such as 1.2 of 1.2.3, unless it is a sample.
            part = not name[len(each) + 1 :].partition(".")[0].isdecimal()
            if each in stems and (part or each == key or self._label(each)):
                return each
        return None

    def _teller(self, name: str) -> str | None:
        return next((each for each in _stems(name) if self._label(each)), None)

    def _is_labelled(self, name: str) -> bool:
        """Tell whether there is a label of this very name."""
        return self._teller(name) in (name, stem_of(name))

    def _label(self, stem: str | None) -> str | None:
        return None if stem is None else self._json.get(stem) or self._cls.get(stem)

    def _value(self, name: str, content: bytes) -> Any:
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            self._tally.add(NO_JSON, name)
            return None
        return found.get("label") if isinstance(found, dict) else None

    def _contradictions(self) -> None:
        """Tell where .json and .cls do not agree, which may name the same classes differently."""
        names: dict[str, Counter[str]] = {}
        for stem in self._json.keys() & self._cls.keys():
            names.setdefault(self._cls[stem], Counter())[self._json[stem]] += 1
        usual = {
            cls: cls if cls in counts else max(counts, key=lambda name: (counts[name], name))
            for cls, counts in names.items()
        }
        for stem, label in self._json.items():
            cls = self._cls.get(stem)
            if cls is not None and label != usual[cls]:
                self._tally.add(CONFLICT, f"{label!r} and {cls!r} of {self._prefix}{stem}")


def _stems(name: str) -> Iterator[str]:
    """Yield the names that a file about an image may have before its ending, the nearest first."""
    yield from (name, stem_of(name))
    yield from shorter(stem_of(name))


def stem_of(name: str) -> str:
    """Return a path without its last ending."""
    return name.rpartition(".")[0]


def shorter(stem: str) -> Iterator[str]:
    """Yield what of a path is before each dot of its last part, down to the first one."""
    start = stem.rfind("/") + 1
    dot = stem.rfind(".", start)
    while dot > start:
        yield stem[:dot]
        dot = stem.rfind(".", start, dot)


def key_of(name: str) -> str:
    """Return the path of a file up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _is_array(name: str) -> bool:
    return name.lower().endswith(".npy")
