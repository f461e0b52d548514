"""Which images there are, and which of them are held out."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simmim.data.sources.boxed import boxed_source
from simmim.data.sources.index import Index, Progress, build, is_index
from simmim.data.sources.kinds import passed_over
from simmim.data.sources.listing import Listing
from simmim.data.sources.masked import masked_source
from simmim.data.sources.open import source_of
from simmim.data.sources.places import cache_root
from simmim.data.sources.source import Source
from simmim.errors import ConfigError, DataError

log = logging.getLogger(__name__)


def find_images(
    *data: Any,
    tile: int | None = None,
    found: Progress | None = None,
    boxes: bool = False,
    maps: bool = False,
) -> Listing:
    """List the images of one or more sources, or open the list that was made before.

    A list is kept in the cache and made anew when its source has changed: a folder when a file was
    added, removed or renamed, an archive or a table when its size or time of change is another.

    Args:
        data: Folders, images, archives, tables or URLs, as docs/sources.md tells; saved lists of
            images; or Python data (``simmim.data.sources.memory``).
        tile: Cut each image into tiles of this side in pixels; None: images are taken whole.
        found: Told how many images were found so far, while a source is listed.
        boxes: Look for what tells boxes (``simmim.data.sources.boxed``).
        maps: Look for what tells label maps (``simmim.data.sources.masked``).

    Raises:
        DataError: Nothing is there, it may not be read, or it holds no image.
    """
    source_in = boxed_source if boxes else masked_source if maps else source_of
    indexes = [_index(each, found, source_in) for each in data]
    if tile is not None:
        indexes = [_tiles(index, tile, found) for index in indexes]
    return Listing(indexes)


def split_holdout(images: Listing, count: int | None) -> tuple[Listing, Listing]:
    """Split images into those trained on and those held out, both in the given order.

    The choice hangs on a hash of each name alone, so it survives a move of the folder, and images
    that are added later change little of it.

    Args:
        images: All of them.
        count: Images to hold out; None: min(64, 5 %) from 200 images up, else none.

    Raises:
        ConfigError: Nothing would be left to train on.
    """
    if count is None:
        count = min(64, len(images) // 20) if len(images) >= 200 else 0
    if count >= len(images):
        raise ConfigError(
            f"--holdout {count} leaves nothing to train on: there are {len(images)} images. "
            f"Hold out fewer, or none with --holdout 0."
        )
    held = sorted(images.lowest(count))
    return images.without(held), images.select(held)


def _index(data: Any, found: Progress | None, source_in: Callable[[str], Source]) -> Index:
    if not isinstance(data, (str, Path)):
        return _live(data, found)
    where = str(data)
    if where.endswith(".arrow") and is_index(Path(where)):
        return Index(Path(where))
    source = source_in(where)
    index = _opened(source, where, str(Path(where).absolute()), found)
    if not len(index):
        empty = "it is empty" if index.info.kind == "folder" else "nothing in it is called like one"
        what = passed_over(index.others) if index.others else empty
        raise DataError(f"{where} holds no images; {what}.")
    return index


def _live(data: Any, found: Progress | None) -> Index:
    """List data of this process; its reader finds it again here, and in processes forked later."""
    from simmim.data.sources.memory import data_source

    source = data_source(data)
    assert source is not None
    index = _opened(source, "Python data", json.dumps(source.state(), default=str), found)
    if not len(index):
        raise DataError(f"a {type(data).__name__} without images was given.")
    return index


def _tiles(index: Index, side: int, found: Progress | None) -> Index:
    from simmim.data.sources.tiles import TileSource

    source = TileSource(Listing([index]), side)
    tiles = _opened(source, f"tiles of {index.info.where}", f"{index.file} {side}", found)
    if not len(tiles):
        raise DataError(f"all tiles of {side} pixels of {index.info.where} are blank.")
    return tiles


def _opened(source: Source, where: str, key: str, found: Progress | None) -> Index:
    """Open the index of a source, or make it where there is none or the source has changed."""
    name = hashlib.sha256(f"{type(source).__name__} {key}".encode("utf-8", "surrogateescape"))
    file = cache_root() / "index" / f"{name.hexdigest()[:32]}.arrow"
    if file.exists():
        try:
            index = Index(file)
            if source.unchanged(index.state):
                return index
        except DataError as error:
            log.info("listing %s anew: %s", where, error)
    try:
        return build(source, file, found)
    except OSError as error:  # nowhere to keep it: a home that may not be written to
        log.warning("the list of images in %s cannot be kept in %s: %s", where, file.parent, error)
    folder = tempfile.mkdtemp(prefix="simmim-")
    index = build(source, Path(folder) / file.name, found)
    weakref.finalize(index, _remove, folder, os.getpid())
    return index


def _remove(folder: str, process: int) -> None:
    """Remove a folder, but not from a process that was forked from the one that uses it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
