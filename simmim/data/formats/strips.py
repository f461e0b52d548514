"""Parts of a TIFF page, from no more of its strips or tiles than they touch."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from simmim.data.formats.image_file import Region, UnreadableError

Fetch = Callable[[int, int], bytes]
"""Returns so many bytes from a place in a file; fewer where the file ends before."""

KEPT = 64 * 2**20
"""Bytes of decoded strips that are kept, since neighbouring parts touch the same ones."""


class Strips:
    """Decodes parts of a page, strip by strip or tile by tile.

    Args:
        page: A page of tifffile whose axes are YX, YXS or SYX.
        fetch: Reads the file.
        most: Bytes that a strip may take when decoded.
        shift: How many bytes behind the page's own pixels those of another plane lie.
    """

    def __init__(self, page: Any, fetch: Fetch, most: int, shift: int = 0) -> None:
        self._page = page
        self._fetch = fetch
        self._most = most
        self._offsets = [offset + shift for offset in page.dataoffsets]
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._bytes = 0
        # These read the file at their first use, when it may be closed.
        self._decode = page.decode
        self._tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        self._planar = page.planarconfig == 2 and page.samplesperpixel > 1
        self._samples = 1 if self._planar else page.samplesperpixel
        if page.is_tiled:
            self._side = (page.tilelength, page.tilewidth)
        else:
            self._side = (page.rowsperstrip or page.imagelength, page.imagewidth)
        # Of strips that are not coded any rows and columns can be read by themselves.
        self._direct = (
            page.compression == 1
            and page.predictor == 1
            and page.fillorder == 1
            and not page.is_tiled
            and page.bitspersample == 8 * page.dtype.itemsize
        )

    def window(self, box: Region) -> np.ndarray:
        """Return the part (h, w, S) in the file's own type; what GDAL left out is its no-data."""
        top, left, height, width = box
        page = self._page
        planes = page.samplesperpixel if self._planar else 1
        out = np.empty((height, width, page.samplesperpixel), page.dtype)
        down, across = (-(-page.imagelength // self._side[0]), -(-page.imagewidth // self._side[1]))
        rows = range(top // self._side[0], (top + height - 1) // self._side[0] + 1)
        columns = range(left // self._side[1], (left + width - 1) // self._side[1] + 1)
        for plane in range(planes):
            target = out[..., plane : plane + 1] if self._planar else out
            for row in rows:
                for column in columns:
                    index = (plane * down + row) * across + column
                    self._copy(index, row * self._side[0], column * self._side[1], box, target)
        return out

    def _copy(self, index: int, y: int, x: int, box: Region, target: np.ndarray) -> None:
        """Copy what a strip that begins at row ``y``, column ``x`` shares with the box."""
        top, left, height, width = box
        first, last = max(top, y), min(top + height, y + self._side[0])
        begin, end = max(left, x), min(left + width, x + self._side[1])
        place = target[first - top : last - top, begin - left : end - left]
        if index >= len(self._offsets) or index >= len(self._page.databytecounts):
            raise UnreadableError("damaged: it lists fewer strips than it has")
        if self._page.databytecounts[index] == 0:
            place[:] = self._page.nodata
        elif self._direct:
            self._read_rows(index, (first - y, last - y), (begin, end), place)
        else:
            place[:] = self._strip(index)[first - y : last - y, begin - x : end - x]

    def _read_rows(
        self, index: int, rows: tuple[int, int], columns: tuple[int, int], place: np.ndarray
    ) -> None:
        page = self._page
        stored = page.dtype.newbyteorder(page.parent.byteorder)
        pixel = stored.itemsize * self._samples
        stride, start = page.imagewidth * pixel, self._offsets[index] + columns[0] * pixel
        for k, row in enumerate(range(*rows)):
            count = (columns[1] - columns[0]) * pixel
            data = self._fetch(start + row * stride, count)
            if len(data) < count or (row + 1) * stride > page.databytecounts[index]:
                raise UnreadableError("truncated: a strip ends too soon")
            place[k] = np.frombuffer(data, stored).reshape(-1, self._samples)

    def _strip(self, index: int) -> np.ndarray:
        """Return a decoded strip or tile (h, w, S), from among those kept if possible."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        page = self._page
        size = self._side[0] * self._side[1] * self._samples * page.dtype.itemsize
        if size > self._most:
            raise UnreadableError(
                f"too large: strips of {self._side[0]}×{self._side[1]} pixels, decoded whole; "
                f"write it with tiles or smaller strips"
            )
        data = self._fetch(self._offsets[index], page.databytecounts[index])
        array = self._decode(data, index, **self._tables)[0][0]
        self._kept[index] = array
        self._bytes += array.nbytes
        while self._bytes > KEPT and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return array
