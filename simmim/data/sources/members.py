"""What is in a tar or zip file: the images among its members, found without reading them."""

import posixpath
import tarfile
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from stat import S_ISLNK
from typing import IO, cast

from simmim.data.formats.endings import is_debris, is_image
from simmim.data.sources.samples import Samples, key_of, stem_of
from simmim.data.sources.source import Entry
from simmim.data.sources.tally import Tally

HELD = 1 << 18
"""Members of a tar that are looked at together; with labels, they take some 120 MB."""
MAX_TEXT = 1 << 20
"""Most bytes of a member that tells a label or a caption."""
CAPTION = ".txt"
MAX_PATH = 1 << 12
"""Most bytes of a member that is a link."""

TWICE = "{n} image{s} {are} overwritten by a later one of the same name, such as {such}"
LOST = "{n} link{s} cannot be followed: not to a member of the archive, such as {such}"
SPARSE = "{n} sparse member{s} cannot be read in place: pack without --sparse, such as {such}"
BACKSLASHES = "backslashes in names of {n} zip file{s} are taken for slashes, such as {such}"
NO_LABELS = "{n} .cls file{s} {are} not read: labels are taken from tar files alone, such as {such}"

Place = tuple[int, int]
"""Place of the first byte of a member, and its bytes."""
Members = dict[str, Place | str]
"""Members by name: their places, or the paths that links lead to."""
Search = Callable[[set[str]], dict[str, Place | None]]
"""Returns the places of those members, by path, that there are; of a folder None."""


def tar_members(
    stream: IO[bytes], read: Callable[[int, int], bytes], part: int, prefix: str, tally: Tally
) -> Iterator[Entry]:
    """Yield the images of a tar file, with the labels and captions that its other members tell.

    ``samples`` tells what belongs together; it is found within so many members that are held.

    Args:
        stream: The tar file, seekable; only headers are read from it.
        read: Returns so many bytes from a place.
        part: The number of this file in its source.
        prefix: What comes before the names of members.
        tally: Told what is left out or does not fit together.

    Raises:
        tarfile.TarError: A header is damaged; what came before it was yielded.
    """
    held, search, damage = _Held(read, part, prefix, tally), None, None
    try:
        for member in _headers(stream, read):
            if held.ends_before(member):
                search = _search(stream, read)
                yield from held.images(search)
                held = _Held(read, part, prefix, tally)
            held.add(member)
    except tarfile.TarError as error:
        damage = error
    yield from held.images(search)
    if damage is not None:
        raise damage


def zip_members(archive: zipfile.ZipFile, part: int, prefix: str, tally: Tally) -> Iterator[Entry]:
    """Yield the images of a zip file by their names; the arguments are those of ``tar_members``.

    Backslashes are taken for slashes where no name has a slash: old programs of Windows write so.
    """
    members: Members = {}
    infos = archive.infolist()
    flat = not any("/" in info.filename for info in infos)
    for info in infos:
        name = info.filename.replace("\\", "/") if flat else info.filename
        name = name.removeprefix("./")
        if name.endswith("/"):
            continue
        if name in members and is_image(name):
            tally.add(TWICE, prefix + name)
        members[name] = _link(archive, info, name) or (info.header_offset, info.compress_size)
        if name.lower().endswith(".cls") and not is_debris(name):
            tally.add(NO_LABELS, prefix + name)
    changed = [info.filename for info in infos if flat and "\\" in info.filename]
    if changed:
        tally.add(BACKSLASHES, prefix + changed[0])
    for name, place in sorted(_followed(members, None, prefix, tally).items()):
        if is_image(name):
            yield Entry(prefix + name, part, *place)
        elif not name.lower().endswith(".cls"):
            tally.pass_over(name)


def _headers(stream: IO[bytes], read: Callable[[int, int], bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield all members, also of archives that were put one after another into a file."""
    at = 0
    while at is not None:
        stream.seek(at)
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # which would grow with the file
                member.name = member.name.removeprefix("./")
                yield member
            at = _next(tar.offset, read)


def _next(end: int, read: Callable[[int, int], bytes]) -> int | None:
    """Return where another archive begins after the end of one; None where none does."""
    data = read(end, 2 * tarfile.RECORDSIZE)
    zeros = len(data) - len(data.lstrip(b"\0"))
    if zeros < min(len(data), tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError(f"no header at byte {end:,}")
    begin = zeros - zeros % tarfile.BLOCKSIZE
    return end + begin if data[begin + 257 : begin + 262] == b"ustar" else None


def _search(stream: IO[bytes], read: Callable[[int, int], bytes]) -> Search:
    def search(paths: set[str]) -> dict[str, Place | None]:
        found: dict[str, Place | None] = {}
        try:
            for member in _headers(stream, read):
                path = PurePosixPath(posixpath.normpath(member.name))
                found |= {str(folder): None for folder in path.parents if str(folder) in paths}
                if str(path) in paths and member.isfile() and not member.issparse():
                    found[str(path)] = member.offset_data, member.size
        except tarfile.TarError:  # told where the images are listed
            pass
        return found

    return search


class _Held:
    """Members of a tar that are looked at together."""

    def __init__(
        self, read: Callable[[int, int], bytes], part: int, prefix: str, tally: Tally
    ) -> None:
        self._read, self._part, self._prefix, self._tally = read, part, prefix, tally
        self._members: Members = {}
        self._samples = Samples(prefix, tally)
        self._last = ""

    def ends_before(self, member: tarfile.TarInfo) -> bool:
        """Tell whether there are enough members, and the next belongs to another sample."""
        many = len(self._members)
        return many >= HELD and (key_of(member.name) != key_of(self._last) or many >= 2 * HELD)

    def add(self, member: tarfile.TarInfo) -> None:
        """Take in a member, and read it if it tells a label or a caption."""
        name = self._last = member.name
        if member.issparse():
            if is_image(name):
                self._tally.add(SPARSE, self._prefix + name)
        elif member.isfile():
            self._put(name, (member.offset_data, member.size))
            self._tell(name, (member.offset_data, member.size))
        elif member.issym():
            self._put(name, _from(name, member.linkname))
        elif member.islnk() and posixpath.normpath(member.linkname) != posixpath.normpath(name):
            self._put(name, posixpath.normpath(member.linkname))

    def images(self, search: Search | None) -> Iterator[Entry]:
        """Yield the images; ``search`` finds members that are not held, where there are such."""
        places = _followed(self._members, search, self._prefix, self._tally)
        for name, place in places.items():
            if self._members[name] != place:
                self._tell(name, place)
        names = [name for name in places if is_image(name)]
        used = {places[name] for name in names}  # also what links lead to
        captions = set(self._samples.captions_of(names))
        for name, place in places.items():
            told = stem_of(name) in captions if name.lower().endswith(CAPTION) else _tells(name)
            if not (is_image(name) or place in used or told):
                self._tally.pass_over(name)
        for name, label, caption in self._samples.images(names):
            yield Entry(self._prefix + name, self._part, *places[name], label, caption)

    def _put(self, name: str, value: Place | str) -> None:
        if name in self._members and is_image(name):
            self._tally.add(TWICE, self._prefix + name)
        self._members[name] = value

    def _tell(self, name: str, place: Place) -> None:
        if _tells(name) and place[1] <= MAX_TEXT:
            self._samples.tell(name, self._read(*place))


def _tells(name: str) -> bool:
    return name.lower().endswith((".json", ".cls", CAPTION)) and not is_debris(name)


def _link(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> str | None:
    """Return the path that a member of a zip leads to; None where it is no link."""
    if not S_ISLNK(info.external_attr >> 16) or info.file_size > MAX_PATH:
        return None
    try:
        return _from(name, archive.read(info).decode())
    except (zipfile.BadZipFile, zlib.error, RuntimeError, ValueError):
        return None


def _from(name: str, target: str) -> str:
    """Return the path that a symbolic link means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


def _followed(
    members: Members, search: Search | None, prefix: str, tally: Tally
) -> dict[str, Place]:
    """Return the places of members; a link has that of what it leads to, over other links too."""
    if not any(isinstance(value, str) for value in members.values()):
        return cast("dict[str, Place]", members)
    paths: Members = {posixpath.normpath(name): value for name, value in members.items()}
    ends = {name: _end(value, paths) for name, value in members.items()}
    missing = {end for end in ends.values() if isinstance(end, str)}
    far = search(missing) if missing and search is not None else {}
    listed, places = sorted(paths), {}
    for name, end in ends.items():
        place = far.get(end) if isinstance(end, str) else end
        if place is not None:
            places[name] = place
        elif not (is_debris(name) or end in far or _is_folder(str(end), listed)):
            tally.add(LOST, f"{prefix}{name} → {members[name]}")
    return places


def _end(value: Place | str, paths: Members) -> Place | str:
    """Follow a link: to a place, or to a path that is not there or leads to itself."""
    passed: set[str] = set()
    while isinstance(value, str) and value in paths and value not in passed:
        passed.add(value)
        value = paths[value]
    return value


def _is_folder(path: str, paths: list[str]) -> bool:
    """Tell whether any of the sorted paths lies below ``path``: its images are listed there."""
    at = bisect_left(paths, f"{path}/")
    return path == "." or (at < len(paths) and paths[at].startswith(f"{path}/"))
