"""Images in object storage and on web servers: shards, zip files, and folders of files.

Of an archive only the headers are read when it is listed, and of an image only its bytes. There is
no copy on the local disk: `--cache auto` keeps what was decoded, and a download keeps the rest.
"""

import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from urllib.parse import unquote, urlsplit

from simmim.data.formats.decode import MAX_FILE
from simmim.data.formats.endings import TARS, is_debris, is_image
from simmim.data.formats.image_file import UnreadableError
from simmim.data.sources.archive import TarReader, ZipReader
from simmim.data.sources.braces import expand_braces
from simmim.data.sources.members import tar_members, zip_members
from simmim.data.sources.remote.transfer import (
    Object,
    RangedFile,
    as_data_error,
    find_objects,
    object_at,
    read_range,
    read_whole,
    scheme_of,
)
from simmim.data.sources.shards import INDEX, are_shards, read_index
from simmim.data.sources.source import Entry, Reader, Source, SourceInfo
from simmim.data.sources.tally import Tally
from simmim.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

Listed = tuple[list[Entry], Tally, list[str]]
"""The images of an archive, what is told of it, and where it is damaged."""

AT_ONCE = 16
"""Requests on their way at once, in each process."""
SHARDS_AT_ONCE = 8
"""Shards listed at once; the entries of so many are held."""


def remote_source(where: str) -> "RemoteSource | None":
    """Return the source that a URL, a pattern of URLs, or a prefix in a bucket stands for.

    Nothing is asked of the storage yet. ``file://`` is not for this module.

    Raises:
        ConfigError: The pattern stands for too many files.
    """
    if scheme_of(where) in ("", "file", "local"):
        return None
    return RemoteSource(where)


@dataclass
class RemoteSource(Source):
    """Lists the images in remote shards or zip files, or the image files below a prefix."""

    where: str
    _objects: list[Object] | None = None
    _passed: list[str] = field(default_factory=list)
    _classes: list[str] = field(default_factory=list)
    _tally: Tally = field(default_factory=Tally)
    _damage: list[str] = field(default_factory=list)

    def state(self) -> list[list[Any]]:
        """See ``Source``: URL, size and version of each object."""
        return [list(each) for each in self._found()]

    @property
    def packed(self) -> str:
        """See ``Index``."""
        if self._kind() == "files":
            return ""
        return "shards" if are_shards([_path(each.url) for each in self._found()]) else "archive"

    @property
    def others(self) -> Counter[str]:
        """Files that are no images, by kind."""
        return self._tally.others

    def info(self) -> SourceInfo:
        """See ``Source``."""
        urls = [each.url for each in self._found()]
        options: dict[str, Any] = {"holds": self._kind()}
        if self._classes:
            options["classes"] = self._classes
        if options["holds"] == "files":
            urls = [_folder(urls, self.where)]
        return SourceInfo("remote", self.where, urls, options, self._damage + self._tally.notes())

    def entries(self) -> Iterator[Entry]:
        """See ``Source``; a shard damaged further on gives the images before that place."""
        self._tally, self._damage = Tally(), []
        objects, kind = self._found(), self._kind()
        for name in self._passed:
            self._tally.pass_over(name)
        folder = _folder([each.url for each in objects], self.where)
        if kind == "files":
            for each in objects:
                yield Entry(each.url.removeprefix(folder), 0, 0, each.size)
            return

        def one(item: tuple[int, Object]) -> Listed:
            part, each = item
            name = _path(each.url).removeprefix(_path(folder))
            prefix = f"{name}/" if len(objects) > 1 else ""
            return self._listed(each, part, prefix, whole=len(objects) == 1)

        try:
            for entries, tally, damage in _ahead(one, enumerate(objects), SHARDS_AT_ONCE):
                self._tally.merge(tally)
                self._damage += damage
                yield from entries
        except (UnreadableError, OSError) as error:
            raise as_data_error(self.where, error) from error

    def _kind(self) -> str:
        endings = {_path(each.url).lower().rpartition(".")[2] for each in self._found()}
        if endings == {"tar"}:
            return "tar"
        return "zip" if endings == {"zip"} else "files"

    def _found(self) -> list[Object]:
        if self._objects is None:
            try:
                self._objects = self._search()
            except (UnreadableError, OSError) as error:
                raise as_data_error(self.where, error) from error
        return self._objects

    def _search(self) -> list[Object]:
        urls = list(dict.fromkeys(expand_braces(self.where)))
        archives = [url.lower() for url in map(_path, urls)]
        if all(url.endswith((*TARS, ".zip")) or is_image(url) for url in archives):
            return list(_ahead(object_at, urls, AT_ONCE))
        if scheme_of(self.where) in ("http", "https"):
            raise DataError(
                f"{self.where} names no tar, zip or image file, and web servers cannot be listed; "
                f"name the shards, as in https://host/shard-{{000000..000127}}.tar."
            )
        found = [each for url in urls for each in _below(url)]
        indexed = self._indexed({each.url: each for each in found})
        if indexed:
            return indexed
        folder = _folder([each.url for each in found], self.where)
        names = {each.url.removeprefix(folder): each for each in found}
        ours = [name for name in names if not is_debris(name)]
        chosen = (
            [name for name in ours if name.lower().endswith(TARS)]
            or [name for name in ours if name.lower().endswith(".zip")]
            or [name for name in ours if is_image(name)]
        )
        if not chosen:
            names = ", ".join(each.url.rpartition("/")[2] for each in found[:5])
            what = f"{len(found):,} objects, such as {names}" if found else "nothing"
            raise DataError(
                f"{self.where} holds no tar, zip or image files; found: {what}. Other formats, "
                f"such as Parquet, are read once they are downloaded."
            )
        self._passed = sorted(names.keys() - set(chosen))
        return [names[name] for name in chosen]

    def _indexed(self, found: dict[str, Object]) -> list[Object]:
        """Return the shards of the index that `simmim shard` wrote; [] where there is none."""
        url = f"{self.where.rstrip('/')}/{INDEX}"
        if url not in found:
            return []
        folder = url.removesuffix(INDEX)
        index = read_index(read_whole(url, MAX_FILE), url, lambda name: folder + name in found)
        if index is None:
            return []
        self._classes = index.classes
        return [found[folder + name] for name in index.files]

    def _listed(self, each: Object, part: int, prefix: str, *, whole: bool) -> Listed:
        stream = cast("Any", RangedFile(each.url, each.size))
        entries, tally, damage = [], Tally(), []
        try:
            if self._kind() == "zip":
                with zipfile.ZipFile(stream) as archive:
                    return list(zip_members(archive, part, prefix, tally)), tally, []
            for entry in tar_members(stream, stream.pread, part, prefix, tally):
                entries.append(entry)  # noqa: PERF402 - what came before an error is kept
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise DataError(f"{each.url} is not a whole zip file: {error}.") from error
        except tarfile.TarError as error:
            if whole and not entries:
                raise DataError(f"{each.url} is not a whole tar file: {error}.") from error
            damage = [f"{each.url} is damaged after {len(entries):,} images ({error})"]
        return entries, tally, damage


class RemoteReader(Reader):
    """Reads images of a remote source by requests for their bytes."""

    def __init__(self, info: SourceInfo) -> None:
        make = {"tar": _RemoteTar, "zip": _RemoteZip, "files": _RemoteFiles}
        self._inner = make[info.options["holds"]](info)
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[tuple[int, str], Future[bytes]] = {}
        self._process = os.getpid()

    def prefetch(self, entries: Sequence[Entry]) -> None:
        """Ask for images that will be read next, some 32 of them, all at once.

        What was asked for before, and is not among them, is dropped.
        """
        self._begin_anew_if_forked()
        self._pool = self._pool or ThreadPoolExecutor(AT_ONCE, thread_name_prefix="remote")
        keys = {(entry.part, entry.name): entry for entry in entries}
        for key in [key for key in self._coming if key not in keys]:
            self._coming.pop(key).cancel()
        for key, entry in keys.items():
            if key not in self._coming:
                self._coming[key] = self._pool.submit(self._inner.read, entry)

    def read(self, entry: Entry) -> bytes:
        """See ``Reader``."""
        self._begin_anew_if_forked()
        coming = self._coming.pop((entry.part, entry.name), None)
        return self._inner.read(entry) if coming is None else coming.result()

    def _begin_anew_if_forked(self) -> None:
        if self._process != os.getpid():  # threads do not survive a fork
            self._process, self._pool, self._coming = os.getpid(), None, {}


class _RemoteTar(TarReader):
    def _piece(self, part: int, at: int, size: int) -> bytes:
        return read_range(self._parts[part], at, size)


class _RemoteZip(ZipReader):
    def _piece(self, part: int, at: int, size: int) -> bytes:
        return read_range(self._parts[part], at, size)


class _RemoteFiles:
    def __init__(self, info: SourceInfo) -> None:
        self._folder = info.parts[0]

    def read(self, entry: Entry) -> bytes:
        if entry.size > MAX_FILE:
            raise UnreadableError(f"too large: a file of more than {MAX_FILE >> 30} GB")
        url = self._folder + entry.name
        if entry.size < 0 or scheme_of(url) in ("http", "https"):
            return read_whole(url, MAX_FILE)
        return read_range(url, 0, entry.size)


def _below(url: str) -> list[Object]:
    """List what is below a prefix as if it were a folder, or the one object of that name."""
    return find_objects(url if url.endswith("/") else f"{url}/") or find_objects(url)


def _folder(urls: list[str], where: str = "") -> str:
    """Return ``where`` if it is a folder of all URLs, else the longest that is, with its slash."""
    given = f"{where.rstrip('/')}/"
    if all(url.startswith(given) for url in urls):
        return given
    first, last = min(urls), max(urls)
    same = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    return first[: first.rfind("/", 0, same) + 1]


def _path(url: str) -> str:
    """Return the path of a URL, without a query such as that of a signed one."""
    if scheme_of(url) in ("http", "https"):
        parts = urlsplit(url)
        return f"{parts.netloc}{unquote(parts.path)}"
    return url.partition("://")[2]


def _ahead(work: Callable[[Item], Result], items: Iterable[Item], most: int) -> Iterator[Result]:
    """Yield the results in order, with ``most`` at work ahead of the reader."""
    waiting: list[Future[Result]] = []
    with ThreadPoolExecutor(most) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == most:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
