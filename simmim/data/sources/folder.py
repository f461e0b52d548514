"""A folder of images, of any nesting; or one image."""

import os
import posixpath
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from simmim.data.formats.decode import read_file
from simmim.data.formats.endings import EXTENSIONS, is_debris
from simmim.data.formats.image_file import ImageFile
from simmim.data.sources.classes import caption_text
from simmim.data.sources.kinds import FileKinds
from simmim.data.sources.source import Entry, Reader, Source, SourceInfo
from simmim.data.sources.tables.rows import read_rows
from simmim.data.sources.tally import Tally
from simmim.errors import DataError

SETTLED = 2.0
"""Seconds after which a folder's time of change tells of all changes: files' clocks are coarse."""
SEARCHED = 20_000
"""Files in hidden folders and debris that are looked at, to say how many images are there."""
UNUSED = "{n} caption{s} {are} of no image in the folder, such as that of {such}"


@dataclass
class FolderSource(Source):
    """Lists the images below a folder.

    Hidden files and folders, and what systems leave beside files, are passed over. Links are
    followed, but no folder is entered twice, and one that is reached both directly and by a link is
    listed where it really is. The order is that of the paths; what is reached by links to folders
    comes last.
    """

    root: Path
    labels: Path | None = None
    """A table that gives labels to its images."""
    remarks: list[str] = field(default_factory=list)
    """What else should be known of it."""
    _kinds: FileKinds = field(default_factory=FileKinds)
    _tally: Tally = field(default_factory=Tally)
    _searched: int = 0
    _first: list[str] = field(default_factory=list)
    _seen: dict[str, int] = field(default_factory=dict)
    _entered: set[tuple[int, int]] = field(default_factory=set)
    _linked: list[tuple[str, str]] = field(default_factory=list)

    def entries(self) -> Iterator[Entry]:
        """See ``Source``; a folder that may not be read is an error, not an empty one."""
        for found in (self._first, self._seen, self._entered, self._linked):
            found.clear()  # of an earlier listing
        self._kinds, self._searched, self._tally = FileKinds(), 0, Tally()
        if self.root.is_file():
            yield Entry(self.root.name)
            return
        captions = self._captions()
        told = bool(captions)
        for entry in self._all():
            # The 1 makes the index keep captions even if the first images have none.
            yield entry._replace(at=1, caption=captions.pop(entry.name, None)) if told else entry
        for name in captions:
            self._tally.add(UNUSED, name)

    def _all(self) -> Iterator[Entry]:
        yield from self._walk(str(self.root), "")
        while self._linked:
            # Real folders came first, so a link back into the tree finds them entered already.
            yield from self._walk(*self._linked.pop(0))

    def _captions(self) -> dict[str, str]:
        """Return the captions that the table gives, by name."""
        if self.labels is None:
            return {}
        told = {
            posixpath.normpath(row.path): caption_text(row.caption, self._tally, row.path)
            for row in read_rows(self.labels)
        }
        return {name: caption for name, caption in told.items() if caption is not None}

    @property
    def folders(self) -> list[str]:
        """See ``Source``; filled by ``entries``."""
        return self._first

    @property
    def others(self) -> Counter[str]:
        """Files that are no images, by kind."""
        return self._kinds.others

    def info(self) -> SourceInfo:
        """See ``Source``."""
        folder = self.root.parent if self.root.is_file() else self.root
        options = {} if self.labels is None else {"labels": str(self.labels)}
        notes = [*self.remarks, *self._kinds.notes(), *self._tally.notes()]
        return SourceInfo("folder", str(self.root), [str(folder)], options, notes)

    def state(self) -> dict[str, int]:
        """Return when each folder that was entered last changed, in nanoseconds; so the table."""
        if self.labels is not None:
            self._seen[str(self.labels)] = self.labels.stat().st_mtime_ns
        return self._seen

    def unchanged(self, state: dict[str, int]) -> bool:
        """Tell whether no folder of an earlier listing has gained or lost a file since."""
        if not state or (self.labels is not None and str(self.labels) not in state):
            return False
        try:
            return all(os.stat(path).st_mtime_ns == then for path, then in state.items())  # noqa: PTH116
        except OSError:
            return False

    def _walk(self, folder: str, prefix: str) -> Iterator[Entry]:
        """Yield what lies below ``folder``, except through links to folders."""
        pending = [(folder, prefix)]
        while pending:
            path, prefix = pending.pop()
            if not path:  # a file that waited for its turn among folders
                yield Entry(prefix)
                continue
            files, folders = self._list(path, prefix)
            if not folders:
                yield from (Entry(prefix + name) for name in sorted(files))
                continue
            # Sorted by whole paths: "a-b" comes before "a/b", which comes before "ab".
            waiting = [("", prefix + name) for name in files]
            waiting += [(f"{path}/{name}", f"{prefix}{name}/") for name in folders]
            pending += sorted(waiting, key=lambda item: item[1], reverse=True)

    def _list(self, path: str, prefix: str) -> tuple[list[str], list[str]]:
        """Return the names of the images and of the folders in ``path``."""
        files, folders = [], []
        try:
            status = self._stamp(path)
            identity = (status.st_dev, status.st_ino)
            if identity in self._entered:
                return [], []
            self._entered.add(identity)
            with os.scandir(path) as entries:
                for entry in entries:
                    if is_debris(entry.name):
                        self._count_debris(entry)
                    elif is_folder(entry):
                        if entry.is_symlink():
                            self._linked.append((entry.path, f"{prefix}{entry.name}/"))
                        else:
                            folders.append(entry.name)
                    elif is_file(entry):
                        files.append(entry.name)
                    else:
                        self.others["broken link" if entry.is_symlink() else "pipe or device"] += 1
        except OSError as error:
            raise DataError(f"cannot read the folder {path}: {error.strerror}.") from error
        self._linked.sort()
        if not prefix:
            self._first += sorted(folders)
            files = [name for name in files if self.labels is None or name != self.labels.name]
        return self._kinds.images(path, files), folders

    def _stamp(self, path: str) -> os.stat_result:
        """Remember when a folder last changed."""
        status = os.stat(path)  # noqa: PTH116 - a Path per folder is slow on large trees
        settled = time.time() - status.st_mtime > SETTLED
        self._seen[path] = status.st_mtime_ns if settled else -1
        return status

    def _count_debris(self, debris: os.DirEntry[str]) -> None:
        """Count the images in hidden files and folders and in debris, as long as that is quick."""
        kind = "hidden" if debris.name.startswith(".") else f"in {debris.name}"
        count = 0
        if not is_folder(debris):
            count = _may_be_image(debris.name)
        elif self._searched >= SEARCHED:
            kind, count = f"whole {debris.name}", 1
        else:
            for _, _, names in os.walk(debris.path):
                self._searched += 1 + len(names)
                count += sum(map(_may_be_image, names))
                if self._searched >= SEARCHED:
                    break
        if count:
            self.others[kind] += count


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder, or a link to one; one to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _may_be_image(name: str) -> bool:
    # What macOS puts into ._x.jpg is not the image but what else it knows of x.jpg.
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("._")  # noqa: PTH122


def is_file(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a file, or a link to one; one to itself is none."""
    try:
        return entry.is_file()
    except OSError:
        return False


class FolderReader(Reader):
    """Reads files."""

    def __init__(self, info: SourceInfo) -> None:
        self.folder = Path(info.parts[0])

    def path(self, entry: Entry) -> Path:
        """The file of an image."""
        return self.folder / entry.name

    def read(self, entry: Entry) -> bytes:
        """See ``Reader``."""
        return read_file(self.path(entry))

    def stamp(self, entry: Entry) -> tuple[int, int]:
        """Size and time of change of the file, which a cache of its pixels hangs on."""
        try:
            status = self.path(entry).stat()
        except OSError:
            return 0, 0
        return status.st_size, status.st_mtime_ns

    def open_large(self, entry: Entry) -> ImageFile:
        """Open the file where it is, for reading parts of it, however large it is."""
        from simmim.data.formats.large import inspect_file

        return inspect_file(self.path(entry))
