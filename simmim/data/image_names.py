"""Which image a path in a table means, however the table writes it."""

import os
import posixpath
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

import numpy as np

from simmim.data.formats.endings import EXTENSIONS
from simmim.data.parts import Tree
from simmim.data.sources.listing import Listing
from simmim.data.sources.source import SourceInfo
from simmim.data.sources.tiles import NAME

WHOLE, INNER, REAL, BARE = "whole", "inner", "real", "bare"
"""Ways to name an image: as it is listed; without its source, where there are several; by its real
path, whatever links lead there; by its file name alone."""
ON_DISK = frozenset({"folder", "pairs", "table", "coco", "coco-masks"})
"""Kinds of sources whose names are paths below their first part."""


class Meant(NamedTuple):
    """What a path in a table means.

    Attributes:
        places: Of the images; several are the same file.
        exact: Whether the path is spelled as they are.
        unclear: Whether it may mean any of several images.
    """

    places: list[int]
    exact: bool
    unclear: bool


class ImageNames:
    """Finds images by paths.

    Sixteen bytes per image are held for each way in which any path had to be looked for.
    """

    def __init__(self, images: Listing, table: Path) -> None:
        """Prepare to find images.

        Args:
            images: Those that may be meant.
            table: Where the paths come from, which may be relative to its folder.
        """
        self._images = images
        self._tiled = [info.kind == "tiles" for info in images.infos]
        self._roots = [_root(info) for info in images.infos]
        self._ways = [WHOLE, *[INNER] * (len(self._roots) > 1), REAL, BARE]
        wrappers = [_wrapper(index.inner or {}) for index in images.indexes]
        wrapped = [posixpath.join(*both) for both in zip(self._roots, wrappers, strict=True)]
        bases = [*self._roots, str(table.absolute().parent), *wrapped, os.getcwd()]  # noqa: PTH109
        self._bases = list(dict.fromkeys(bases))
        self._hashes = cache(self._hashes_of)

    def find(self, given: str) -> Meant | None:
        """Return what a path means; None where it means none of the images."""
        given = given.removeprefix("file://")
        texts = [given, given.replace("\\", "/")]
        for exact in (True, False):
            if not exact:
                texts += map(unquote, texts[:2])
            for way in self._ways:
                for text in dict.fromkeys(texts):
                    places = self._look_up(text, way, exact=exact)
                    if places:
                        return Meant(places, exact, self._differ(places, exact and way == REAL))
        return None

    def _differ(self, places: list[int], same: bool) -> bool:  # noqa: FBT001
        """Tell whether these are several images, not tiles of one, or one that is listed twice."""
        return not same and len({NAME.sub("", self._images[place]) for place in places}) > 1

    def _look_up(self, text: str, way: str, *, exact: bool) -> list[int]:
        for key in self._keys(text, way):
            hashes, places = self._hashes(way, exact)
            number = hash(key if exact else _loose(key))
            start, end = np.searchsorted(hashes, number), np.searchsorted(hashes, number, "right")
            if end > start:
                return sorted(places[start:end].tolist())
        return []

    def _keys(self, text: str, way: str) -> list[str]:
        if way == REAL:
            return [_real_path(posixpath.join(base, text)) for base in self._bases]
        return [] if way == BARE and "/" in text else [posixpath.normpath(text)]

    def _hashes_of(self, way: str, exact: bool) -> tuple[np.ndarray, np.ndarray]:  # noqa: FBT001
        """Return the sorted hashes of all names, and the places of the images that have them."""
        names = self._names(way)
        keys = names if exact else map(_loose, names)
        hashes = np.fromiter(map(hash, keys), np.int64, len(self._images))
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def _names(self, way: str) -> Iterator[str]:
        several = len(self._roots) > 1
        for i, name in enumerate(self._images):
            which = self._images.source_of(i) if several else 0
            name = NAME.sub("", name) if self._tiled[which] else name
            inner = name.partition("/")[2] if several else name
            if way == REAL:
                yield _real_path(posixpath.join(self._roots[which], inner))
            elif way == BARE:
                yield name.rpartition("/")[2]
            else:
                yield posixpath.normpath(name if way == WHOLE else inner)


@lru_cache(1 << 16)
def _real_folder(folder: str) -> str:
    try:
        return os.path.realpath(folder)
    except ValueError:  # a path that no file can have
        return folder


def _real_path(path: str) -> str:
    folder, _, name = path.rpartition("/")
    path = f"{_real_folder(folder)}/{name}"
    return os.path.realpath(path) if os.path.islink(path) else path  # noqa: PTH114


def _root(info: SourceInfo) -> str:
    """Return the folder that the names of a source are below; an archive's is its unpacked copy."""
    if info.kind == "tiles":
        return _root(SourceInfo(**info.options["bases"][0]))
    if not info.parts:
        return ""
    return info.parts[0] if info.kind in ON_DISK else str(Path(info.parts[0]).with_suffix(""))


def _wrapper(inner: dict[str, int]) -> str:
    """Return the folder that all images of a source lie in, if there is one."""
    tree, path = Tree.of(inner), []
    while (name := tree.only()) is not None:
        tree = tree.folders[name]
        path.append(name)
    return "/".join(path)


def _loose(name: str) -> str:
    """Return a name without what systems take for the same: case, the form of accents, ending."""
    plain = normalize("NFC", name).casefold()
    stem, dot, last = plain.rpartition(".")
    return stem if dot + last in EXTENSIONS else plain
