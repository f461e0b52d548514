"""Images from Python: sequences and torch data sets as they are, other iterables drawn once.

What has a length and can be indexed stays where it is, and worker processes share it by being
forked. The rest, and everything where processes cannot be forked, goes to a file in the cache, so
that memory does not grow.
"""

import hashlib
import io
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from simmim.data.formats.decode import inspect
from simmim.data.formats.image_file import ImageFile, UnreadableError, from_array
from simmim.data.processes import METHOD
from simmim.data.sources.classes import caption_text, class_name
from simmim.data.sources.items import (
    caption_key,
    caption_value,
    digest_of,
    image_of,
    label_value,
    split_item,
)
from simmim.data.sources.places import cache_root
from simmim.data.sources.source import Entry, Reader, Source, SourceInfo
from simmim.data.sources.tables.columns import npy_bytes
from simmim.data.sources.tally import Tally
from simmim.errors import ConfigError, DataError

HASHED = 64
"""Items whose images are hashed, to tell whether data has changed."""
TARGETS = ("targets", "labels", "_labels")
"""Attributes of torch data sets that hold all labels."""
ENCODED, PIXELS = 0, 1
"""What a record of drawn items is: an image file, or a .npy file of (h, w, C)."""

_LIVE: dict[str, Any] = {}
"""Data of this process, by hashes; processes that were forked from it have it too."""


def data_source(data: Any) -> Source | None:
    """Return the source that Python data stands for; None for a path or URL.

    Args:
        data: A sequence, array or map-style data set of images (``items`` tells of which kinds),
            or any iterable of them.

    Raises:
        ConfigError: Nothing of the kind.
    """
    if isinstance(data, (str, Path)):
        return None
    what = type(data).__name__
    if isinstance(data, (bytes, bytearray, dict, set, frozenset, type)):
        raise ConfigError(
            f"a {what} is no collection of images in a fixed order; give a list of images, a torch "
            f"data set, or a path."
        )
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        source = LiveSource(data)
        if METHOD == "fork":
            return source
        return DrawnSource(source, f"{len(data):,} of a {what}", _tally=source._tally)
    if hasattr(data, "__iter__"):
        return DrawnSource(data, f"a {what}")
    raise ConfigError(f"a {what} cannot be iterated over; give images, or a path to them.")


@dataclass
class LiveSource(Source):
    """Lists what can be indexed, and stays in memory."""

    data: Any
    _tally: Tally = field(default_factory=Tally)

    def __iter__(self) -> Iterator[Any]:
        """Yield the items with their labels and captions as text."""
        for i in range(len(self.data)):
            image, label = split_item(self.data[i])
            label = self._labels[i] if self._labels else self._label(label, i)
            yield {"image": image, "label": label, "caption": self._caption(i)}

    def state(self) -> str:
        """See ``Source``: a hash over the labels and some of the images."""
        return self._facts[0]

    def info(self) -> SourceInfo:
        """See ``Source``."""
        digest, notes = self._facts
        _LIVE[digest] = self.data
        options: dict[str, Any] = {"live": digest}
        if self.classes:
            options["classes"] = self.classes
        where = f"{type(self.data).__name__} of {len(self.data):,} items"
        return SourceInfo("memory", where, [], options, notes + self._tally.notes())

    def entries(self) -> Iterator[Entry]:
        """See ``Source``."""
        _LIVE[self.state()] = self.data
        for i in range(len(self.data)):
            label = self._labels[i] if self._labels else None
            yield Entry(f"{i}", 0, i, 0, label, self._caption(i))

    def _caption(self, i: int) -> str | None:
        return caption_text(self._captions[i], self._tally, f"item {i}") if self._captions else None

    @cached_property
    def _captions(self) -> Sequence[Any]:
        """The caption of each item; [] where there are none."""
        features = getattr(self.data, "features", None)
        if isinstance(features, dict):  # of the library `datasets`, which has columns
            column = caption_key(features)
            return [] if column is None else self.data[column]
        if caption_key(self._first) is None:
            return []
        return [caption_value(_got(self.data, i)) for i in range(len(self.data))]

    @cached_property
    def _first(self) -> Any:
        return _got(self.data, 0)

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes, where the data set tells them."""
        inner = self.data
        while not hasattr(inner, "classes") and hasattr(inner, "dataset"):
            inner = inner.dataset
        names = getattr(inner, "classes", None) or _feature(self.data)[1]
        return [str(name) for name in names] if isinstance(names, (list, tuple)) else []

    @cached_property
    def _labels(self) -> list[str | None]:
        """The label of each item; [] where none has one."""
        count = len(self.data)
        given = _targets(self.data)
        if given is None or len(given) != count:
            if not count or _label_of(self.data, 0) is None:
                return []
            given = [_label_of(self.data, i) for i in range(count)]
        labels = [self._label(label, i) for i, label in enumerate(given)]
        return labels if any(label is not None for label in labels) else []

    def _label(self, label: Any, i: int) -> str | None:
        return class_name(label_value(label), self.classes, self._tally, f"item {i}")

    @cached_property
    def _facts(self) -> tuple[str, list[str]]:
        """A hash of the data, and notes."""
        count, notes = len(self.data), []
        digest = hashlib.sha256(f"{type(self.data).__qualname__} {count} {self._labels}".encode())
        digest.update(repr(list(self._captions)).encode("utf-8", "replace"))
        places = sorted({int(i) for i in np.linspace(0, count - 1, min(count, HASHED))})
        images = [_digest([self._first], 0), *(_digest(self.data, i) for i in places[1:])]
        if any(
            _digest(self.data, i) != first for i, first in zip(places[:4], images, strict=False)
        ):
            notes = [
                "its images differ each time they are asked for; random crops and flips are made "
                "here, so give the data set none of its own, or results do not repeat"
            ]
            images = []
        digest.update(b"".join(images))
        state = digest.hexdigest()
        _LIVE[state] = self.data
        return state, notes


@dataclass
class DrawnSource(Source):
    """Draws an iterable once, into a file that is called by the hash of what is in it."""

    data: Any
    what: str
    _places: "array[int]" = field(default_factory=lambda: array("q"))
    _labels: list[str | None] = field(default_factory=list)
    _captions: list[str | None] = field(default_factory=list)
    _bad: list[str] = field(default_factory=list)
    _tally: Tally = field(default_factory=Tally)

    def state(self) -> str:
        """See ``Source``."""
        return self._file.stem

    def info(self) -> SourceInfo:
        """See ``Source``."""
        where = f"{self.what}, drawn into {self._file}"
        options: dict[str, Any] = {}
        notes = self._tally.notes()
        if self._bad:
            notes += [f"{len(self._bad)} items are no images and are left out: {self._bad[0]}"]
        if getattr(self.data, "classes", None):
            options["classes"] = [str(name) for name in self.data.classes]
        return SourceInfo("memory", where, [str(self._file)], options, notes)

    def entries(self) -> Iterator[Entry]:
        """See ``Source``."""
        _ = self._file
        for i, label in enumerate(self._labels):
            kind, at, size = self._places[3 * i : 3 * i + 3]
            yield Entry(f"{i}", kind, at, size, label, self._captions[i])

    @cached_property
    def _file(self) -> Path:
        folder = cache_root() / "drawn"
        folder.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(".part", dir=folder)
        try:
            with os.fdopen(number, "wb") as stream:
                digest = self._draw(stream)
            file = folder / f"{digest}.bin"
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return file

    def _draw(self, stream: io.BufferedWriter) -> str:
        digest, at = hashlib.sha256(), 0
        for number, item in enumerate(self.data):
            image, label = split_item(item)
            try:
                found = image_of(image)
            except UnreadableError as error:
                self._bad.append(f"item {number}: {error.reason}")
                continue
            kind = ENCODED if isinstance(found, bytes) else PIXELS
            data = found if isinstance(found, bytes) else npy_bytes(found)
            stream.write(data)
            text = class_name(label_value(label), (), self._tally, f"item {number}")
            self._places.extend((kind, at, len(data)))
            self._labels.append(text)
            caption = caption_text(caption_value(item), self._tally, f"item {number}")
            self._captions.append(caption)
            digest.update(f"{kind} {len(data)} {text} {caption} ".encode("utf-8", "replace") + data)
            at += len(data)
        if not self._labels:
            first = f": {self._bad[0]}" if self._bad else ""
            raise DataError(f"{self.what} gave no images{first}.")
        return digest.hexdigest()


class MemoryReader(Reader):
    """Reads items of live data, or records of drawn data."""

    def __init__(self, info: SourceInfo) -> None:
        """Find the data.

        Raises:
            DataError: It was in the memory of a process that is gone.
        """
        self._file = info.parts[0] if info.parts else None
        self._data = None
        if self._file is None:
            if info.options["live"] not in _LIVE:
                raise DataError(
                    f"the {info.where} was in the memory of another process; hand it over again."
                )
            self._data = _LIVE[info.options["live"]]

    def open(self, entry: Entry) -> ImageFile:
        """See ``Reader``."""
        found = self._found(entry)
        if isinstance(found, np.ndarray):
            return from_array(found)
        return inspect(found)

    def read(self, entry: Entry) -> bytes:
        """See ``Reader``; pixels come as a .npy file of (h, w, C)."""
        found = self._found(entry)
        return found if isinstance(found, bytes) else npy_bytes(found)

    def _found(self, entry: Entry) -> bytes | np.ndarray:
        if self._data is not None:
            return image_of(_item(self._data, entry.at)[0])
        assert self._file is not None
        try:
            with Path(self._file).open("rb") as stream:
                data = os.pread(stream.fileno(), entry.size, entry.at)
        except FileNotFoundError as error:
            raise UnreadableError(f"cannot be read: {self._file} is gone from the cache") from error
        if len(data) < entry.size:
            raise UnreadableError(f"truncated: {self._file}")
        return np.load(io.BytesIO(data), allow_pickle=False) if entry.part == PIXELS else data


def _item(data: Any, i: int) -> tuple[Any, Any]:
    try:
        return split_item(data[i])
    except Exception as error:  # a user's data set raises whatever it likes
        text = " ".join(str(error).split())[:160]
        raise UnreadableError(f"the data set raised {type(error).__name__}: {text}") from error


def _got(data: Any, i: int) -> Any:
    """Return an item of a user's data set, which raises whatever it likes; None where it does."""
    try:
        return data[i]
    except Exception:
        return None


def _label_of(data: Any, i: int) -> Any:
    try:
        return _item(data, i)[1]
    except UnreadableError:
        return None


def _digest(data: Any, i: int) -> bytes:
    try:
        return digest_of(_item(data, i)[0])
    except (UnreadableError, OSError):
        return b"unreadable"


def _targets(data: Any) -> Any:
    """Return all labels at once, where the data set has them in a place that is known."""
    column = _feature(data)[0]
    if column is not None:
        return list(data[column])
    if hasattr(data, "dataset") and hasattr(data, "indices"):  # torch.utils.data.Subset
        inner = _targets(data.dataset)
        return None if inner is None else [inner[i] for i in data.indices]
    found = next((getattr(data, name) for name in TARGETS if hasattr(data, name)), None)
    return found if hasattr(found, "__len__") and hasattr(found, "__getitem__") else None


def _feature(data: Any) -> tuple[str | None, list[str]]:
    """Return the column of classes of a data set of the library `datasets`, and their names."""
    features = getattr(data, "features", None)
    if not isinstance(features, dict):
        return None, []
    for name, feature in features.items():
        names = getattr(feature, "names", None)
        if isinstance(names, list):
            return name, names
    return None, []
