"""Images far larger than what is trained on, cut into tiles at their own scale.

Tiles lie on a regular grid that covers the image; those of the last row and column are moved
inwards, so that all have the full side. An image no larger than a tile on either side is kept as
it is, and the shorter side of a narrow one is kept whole.

A tile is left out as blank where

- at least ``NODATA`` of its pixels are not finite, beyond 1e30, or of the value that the file says
  to mean no data; or
- what is left of it is flat: in each channel, but for the ``FEW`` values farthest from the mean (at
  least one), the standard deviation is below ``FLAT`` of the range in use, and none lies further
  than ``FAR`` of it from the mean. Noise of paper, glass or sky passes for flat, an object of some
  ten pixels across does not.

The range in use is that of the image, see ``audit.ranges``: the least and the largest of the ranges
of its tiles, but for those of nearly one value, so that a few saturated or foreign pixels change
nothing, nor does a filler that the file does not tell.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from simmim.data.audit.ranges import measured_range, whole_depth
from simmim.data.formats.decode import (
    MAX_BYTES,
    MEASURED,
    StorageError,
    guard,
    read_part,
    read_window,
)
from simmim.data.formats.image_file import ImageFile, Region, UnreadableError
from simmim.data.formats.large import keep_whole
from simmim.data.sources.listing import Listing
from simmim.data.sources.open import open_reader
from simmim.data.sources.source import Entry, Reader, Source, SourceInfo
from simmim.data.sources.tables.columns import npy_bytes
from simmim.errors import ConfigError, DataError

RULE = 3
"""Changes when the same image would give other tiles, so that listings are made anew."""
NODATA, FLAT, FEW, FAR = 0.9, 0.01, 1e-4, 0.1
SINGLE = 0.99
"""Share of the values of a tile from which those that are alike say nothing of the range in use."""
LEAST_SIDE = 16
STAMPED = 20_000
"""Images up to which a change of each one's content makes a new list; beyond, of the folders."""
KEPT = 64 * 2**20
"""Bytes up to which a decoded image is kept for its next tile."""
OPEN = 4
"""Images that are kept open for their next tile."""
NAME = re.compile(r"@(\d+),(\d+),(\d+)x(\d+)\Z")


def grid(height: int, width: int, side: int) -> list[Region]:
    """Return the tiles of an image, row by row; see the module for the rule."""
    return [
        (top, left, min(side, height), min(side, width))
        for top in _starts(height, side)
        for left in _starts(width, side)
    ]


def _starts(length: int, side: int) -> list[int]:
    return [min(i * side, max(length - side, 0)) for i in range(max(1, -(-length // side)))]


class TileSource(Source):
    """Lists the tiles of all images of the indexes of a listing.

    A tile is called ``NAME@TOP,LEFT,HEIGHTxWIDTH``. An image that cannot be read is listed whole,
    so that the run names it and its reason.
    """

    def __init__(self, base: Listing, side: int) -> None:
        """Choose the side of the tiles, in pixels.

        Raises:
            ConfigError: Too small a side.
        """
        if side < LEAST_SIDE:
            raise ConfigError(f"--tile is the side of a tile in pixels, at least {LEAST_SIDE}.")
        self._indexes = base.indexes
        self._base = Listing(base.indexes)
        self._side = side
        self._blank = self._tiles = 0

    def state(self) -> dict[str, Any]:
        """See ``Source``."""
        if len(self._base) <= STAMPED:
            stamps = self._base.fingerprint()
        else:
            facts = [[asdict(index.info), index.state, len(index)] for index in self._indexes]
            stamps = sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        return {"rule": RULE, "side": self._side, "images": stamps}

    @property
    def packed(self) -> str:
        """See ``Index``: that of the images, where they are of one source."""
        return self._indexes[0].packed if len(self._indexes) == 1 else ""

    def info(self) -> SourceInfo:
        """See ``Source``."""
        bases = self._base.infos
        options: dict[str, Any] = {
            "side": self._side,
            "bases": [asdict(info) for info in bases],
            "prefixes": self._base.prefixes,
        }
        notes = [note for info in bases for note in info.notes]
        if self._blank:
            notes.append(f"{self._blank:,} of {self._tiles:,} tiles are blank and left out")
        if len(bases) == 1:
            told = bases[0].options
            options |= {key: told[key] for key in ("classes", "labels") if key in told}
        return SourceInfo("tiles", self._base.where, [], options, notes)

    def entries(self) -> Iterator[Entry]:
        """See ``Source``; every image is looked at once, the large ones by parts."""
        self._blank = self._tiles = 0
        found, i = 0, 0
        for which, index in enumerate(self._indexes):
            reader = open_reader(index.info)
            for row in range(len(index)):
                entry, name = index.entry(row), self._base[i]
                caption = index.value("caption", row)
                i += 1
                part = which + len(self._indexes) * entry.part
                for box in self._boxes(reader, entry, name):
                    found += 1
                    yield entry._replace(name=_called(name, box), part=part, caption=caption)
        if not found and i:
            raise DataError(
                f"all {self._tiles:,} tiles of {self._base.where} are blank: each is nearly of one "
                "value, or holds no data."
            )

    def _boxes(self, reader: Reader, entry: Entry, name: str) -> Iterator[Region | None]:
        """Yield the tiles of an image that are not blank; None for the whole image."""
        try:
            opened = reader.open_large(entry)
            if max(opened.height, opened.width) <= self._side:
                self._tiles += 1
                # A name that looks like a tile's is made one.
                yield (0, 0, opened.height, opened.width) if NAME.search(entry.name) else None
                return
            boxes = grid(opened.height, opened.width, self._side)
            kept = _not_blank(keep_whole(opened, MAX_BYTES), boxes)
        except UnreadableError:
            yield (0, 0, 1, 1) if NAME.search(entry.name) else None
            return
        except OSError as error:
            raise DataError(f"reading {name} failed several times: {error}.") from error
        self._tiles += len(boxes)
        self._blank += len(boxes) - len(kept)
        yield from kept


def _called(name: str, box: Region | None) -> str:
    return name if box is None else "{}@{},{},{}x{}".format(name, *box)


class TileReader(Reader):
    """Reads tiles through the readers of the images that they were cut from."""

    def __init__(self, info: SourceInfo) -> None:
        self._bases = [SourceInfo(**base) for base in info.options["bases"]]
        self._prefixes: list[str] = info.options["prefixes"]
        self._readers: dict[int, Reader] = {}
        self._opened: OrderedDict[tuple[Any, ...], ImageFile] = OrderedDict()

    def read(self, entry: Entry) -> bytes:
        """Return a whole image as it is stored, and a tile as a .npy file."""
        reader, base, box = self._find(entry)
        if box is None:
            return reader.read(base)
        return npy_bytes(read_window(self.open(entry), (0, 0, *box[2:])))

    def open(self, entry: Entry) -> ImageFile:
        """See ``Reader``; of the image only what the tile touches is read, where that can be."""
        reader, base, box = self._find(entry)
        if box is None:
            return reader.open(base)
        opened = self._open(reader, base)
        top, left, height, width = box
        if top + height > opened.height or left + width > opened.width:
            raise UnreadableError(
                f"the image has changed: it is {opened.height}×{opened.width} now"
            )

        def window(part: Region) -> np.ndarray:
            inner = (top + part[0], left + part[1], part[2], part[3])
            if opened.part is not None:
                return read_part(opened, 1, inner)
            return read_window(opened, inner)

        return ImageFile(
            opened.format,
            height,
            width,
            opened.channels,
            opened.dtype,
            lambda _: window((0, 0, height, width)),
            window=window,
        )

    def map(self, entry: Entry) -> np.ndarray | None:
        """See ``Reader``; that of the whole image is read for each tile."""
        reader, base, box = self._find(entry)
        values = reader.map(base)
        if values is None or box is None:
            return values
        opened, (top, left, height, width) = self._open(reader, base), box
        if values.shape != (opened.height, opened.width):
            rows, columns = values.shape
            raise UnreadableError(
                f"{rows}×{columns} pixels for an image of {opened.height}×{opened.width}"
            )
        return values[top : top + height, left : left + width]

    def stamp(self, entry: Entry) -> tuple[int, int] | None:
        """See ``Reader``: those of the image."""
        reader, base, _ = self._find(entry)
        return reader.stamp(base)

    def _find(self, entry: Entry) -> tuple[Reader, Entry, Region | None]:
        part, which = divmod(entry.part, len(self._bases))
        name = entry.name.removeprefix(self._prefixes[which])
        found = NAME.search(name)
        box = None
        if found is not None:
            top, left, height, width = map(int, found.groups())
            name, box = name[: found.start()], (top, left, height, width)
        if which not in self._readers:
            self._readers[which] = open_reader(self._bases[which])
        return self._readers[which], entry._replace(name=name, part=part), box

    def _open(self, reader: Reader, base: Entry) -> ImageFile:
        key = (id(reader), base, reader.stamp(base))
        opened = self._opened.get(key)
        if opened is None:
            opened = reader.open_large(base)
            if opened.part is None:
                opened = keep_whole(opened, KEPT)
            self._opened[key] = opened
            if len(self._opened) > OPEN:
                self._opened.popitem(last=False)
        self._opened.move_to_end(key)
        return opened


@dataclass(frozen=True)
class _TileValues:
    """What a tile is like, but for a few values; ``reach`` is the farthest from the mean.

    ``single`` tells that nearly all are one value; of a tile without data all else is 0.
    """

    low: float
    high: float
    deviation: float
    reach: float
    single: bool


def _not_blank(opened: ImageFile, boxes: list[Region]) -> list[Region]:
    """Return the boxes whose tiles are not blank; a tile that cannot be read is not."""
    tiles = [_tile_values(opened, box) for box in boxes]
    seen = [tile for tile in tiles if tile is not None and tile.deviation > 0]
    if not seen:
        return [box for box, tile in zip(boxes, tiles, strict=True) if tile is None]
    # A single value may be a filler far from all that was measured.
    seen = [tile for tile in seen if not tile.single] or seen
    low, high = min(tile.low for tile in seen), max(tile.high for tile in seen)
    low, high = whole_depth(low, high, opened.dtype)

    def blank(tile: _TileValues) -> bool:
        used = high - low
        flat = tile.deviation < FLAT * used and tile.reach <= FAR * used
        return flat or tile.deviation == 0

    return [box for box, tile in zip(boxes, tiles, strict=True) if tile is None or not blank(tile)]


def _tile_values(opened: ImageFile, box: Region) -> _TileValues | None:
    """Look at a tile, as it is stored; None where it cannot be decoded."""
    window = opened.window
    if window is None:
        raise TypeError("an image without windows")
    try:
        array: np.ndarray = guard(lambda: window(box))
    except StorageError:
        raise
    except UnreadableError:
        return None
    if array.dtype.kind == "f":
        valid = (np.abs(array) <= MEASURED).all(-1)
    else:
        valid = (array != opened.nodata).any(-1) if opened.nodata is not None else None
    if valid is not None and not valid.all():
        if valid.mean() <= 1 - NODATA:
            return _TileValues(0, 0, 0, 0, single=True)
        values = array[valid].T
    else:
        values = array.reshape(-1, array.shape[-1]).T
    return _measured(values, opened.dtype)


def _measured(values: np.ndarray, dtype: str) -> _TileValues:
    """Measure (C, n) values."""
    low, high, widest, single = 0.0, 255.0, 255.0, False
    if dtype != "uint8":
        some = values[:, :: max(1, values.shape[1] // 2**14)]
        low, high = measured_range(some, sparse=False)
        single = any((some == end).mean() > SINGLE for end in (some.min(), some.max()))
        widest = 65535.0 if dtype == "uint16" else np.inf
    few = max(1, int(FEW * values.shape[1]))
    # So much the few that are farthest can add to the variance of the others.
    added = 2 * few / values.shape[1] * widest**2
    deviation = reach = 0.0
    for channel in values if values.max() > values.min() else ():
        away = channel.astype(np.float32)
        away -= away.mean()
        with np.errstate(over="ignore"):  # a filler such as 1e20
            spread = float(np.mean(np.square(away)))
        if spread < (FLAT * widest) ** 2 + added:
            order = np.argpartition(np.abs(away), len(away) - few)[: len(away) - few]
            most = away[order].astype(np.float64)
            most -= most.mean()
            spread, reach = most.var(), max(reach, float(np.abs(most).max()))
        deviation = max(deviation, float(np.sqrt(spread)))
        if deviation >= FLAT * widest:
            break  # it is not flat, and the next is not asked for
    return _TileValues(low, high, deviation, reach, single)
