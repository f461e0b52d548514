"""From what the user calls DATA to a source, and from an index's facts to a reader."""

from importlib import import_module
from pathlib import Path
from typing import Any

from simmim.data.formats.endings import COMPRESSED, EXTENSIONS, TARS, is_debris
from simmim.data.sources.archive import TarSource, ZipSource
from simmim.data.sources.braces import expand_braces, has_braces
from simmim.data.sources.folder import FolderSource
from simmim.data.sources.kinds import is_image_file
from simmim.data.sources.places import check_exists, is_elsewhere
from simmim.data.sources.shards import INDEX, read_index
from simmim.data.sources.source import Reader, Source, SourceInfo
from simmim.errors import DataError

_HERE = "simmim.data.sources"
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""How files begin that gzip, bzip2, xz and zstd wrote."""

KINDS = {
    "folder": f"{_HERE}.folder:FolderReader",
    "tar": f"{_HERE}.archive:TarReader",
    "zip": f"{_HERE}.archive:ZipReader",
    "remote": f"{_HERE}.remote.storage:RemoteReader",
    "parquet": f"{_HERE}.tables.parquet:ParquetReader",
    "arrow": f"{_HERE}.tables.parquet:ArrowReader",
    "table": f"{_HERE}.tables.image_table:TableReader",
    "coco": f"{_HERE}.tables.image_table:TableReader",
    "coco-masks": f"{_HERE}.coco_masks:CocoMaskReader",
    "yolo": f"{_HERE}.tables.image_table:TableReader",
    "voc": f"{_HERE}.folder:FolderReader",
    "pairs": f"{_HERE}.pairs:PairsReader",
    "memory": f"{_HERE}.memory:MemoryReader",
    "tiles": "simmim.data.sources.tiles:TileReader",
}
"""Where the reader of each kind of source is; its module is imported when it is needed."""
COLUMNS = "tables.parquet:column_source"


def open_reader(info: SourceInfo) -> Reader:
    """Return a reader of a source.

    Raises:
        DataError: A kind that this version does not know, or an extra that is not installed.
    """
    if info.kind not in KINDS:
        raise DataError(f"{info.where} is a source of kind {info.kind!r}, which is not known here.")
    return _imported(KINDS[info.kind])(info)


def _imported(name: str) -> Any:
    """Return what is called MODULE:NAME, importing the module."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def source_of(where: str) -> Source:
    """Tell what kind of source the user means.

    Raises:
        DataError: Nothing is there that may be read, or nothing that holds images.
    """
    try:
        return _source_of(where)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or where}: {error.strerror}.") from error


def _source_of(where: str) -> Source:
    where = where.removeprefix("file://")
    if is_elsewhere(where):
        return _elsewhere(where)
    if has_braces(where):
        return _braces(where)
    check_exists(where)
    path = Path(where).absolute()
    return _folder(path) if path.is_dir() else _file(path)


def _elsewhere(where: str) -> Source:
    """A URL, or the name of a data set on a hub."""
    for name in ("remote.hub:hub_source", "remote.storage:remote_source"):
        source = _imported(f"{_HERE}.{name}")(where)
        if source is not None:
            return source
    raise DataError(
        f"{where} is no source that can be read. Give a folder, an archive, a table, or a URL such "
        "as s3://bucket/shards/."
    )


def _braces(where: str) -> Source:
    files = [Path(name).absolute() for name in expand_braces(where)]
    missing = [file for file in files if not file.is_file()]
    if missing and missing[0].is_dir():
        raise DataError(
            f"{where} means {missing[0]}, which is a folder; a pattern names tar or zip files. "
            "Name folders one by one."
        )
    if missing:
        raise DataError(f"{where} means {len(files)} files, and there is no {missing[0]}.")
    return _archives(where, files)


def _archives(where: str, files: list[Path]) -> Source:
    for endings, make in ((TARS, TarSource), ((".zip",), ZipSource)):
        if all(file.suffix.lower() in endings for file in files):
            return make(where, files)
    raise DataError(f"{where} must name tar files alone, or zip files alone.")


def _file(path: Path) -> Source:
    ending = path.suffix.lower()
    if ending in EXTENSIONS:
        return FolderSource(path)
    with path.open("rb") as stream:
        head = stream.read(512)
    is_tar = head[257:262] == b"ustar"  # its first bytes are a name, which may be any
    if ending in COMPRESSED or (head.startswith(PACKED) and not is_tar):
        raise DataError(
            f"{path} is compressed as a whole, so single images cannot be read in place: unpack "
            "it and give the folder, or the tar or zip file that is in it."
        )
    if ending in TARS or is_tar:
        return TarSource(str(path), [path])
    if ending == ".zip" or head[:4] == b"PK\x03\x04":
        return ZipSource(str(path), [path])
    if is_image_file(path):
        return FolderSource(path)
    for name in ("coco:coco_source", "tables.image_table:table_source", COLUMNS):
        source = _imported(f"{_HERE}.{name}")(str(path))
        if source is not None:
            return source
    raise DataError(
        f"{path} is not an image, a folder of images, an archive (.zip, .tar), or a list of images "
        "(.csv, .jsonl, .parquet, .arrow, COCO .json)."
    )


def _folder(path: Path) -> Source:
    shards = _shards(path)
    if shards is not None:
        return shards
    source = _imported(f"{_HERE}.{COLUMNS}")(str(path))
    if source is not None:
        return source
    source = _imported(f"{_HERE}.pairs:pairs_source")(str(path)) or FolderSource(path)
    table = import_module(f"{_HERE}.tables.image_table")
    metadata = table.find_metadata(path)
    if metadata is not None:
        if next(source.entries(), None) is None:
            return table.TableSource(metadata)
        source.labels = metadata
    return source


def _shards(path: Path) -> Source | None:
    """A folder written by ``simmim shard``, or one with tar or zip files and no images beside."""
    file = path / INDEX
    if file.is_file():
        index = read_index(file.read_bytes(), str(file), lambda name: (path / name).is_file())
        if index is not None:
            return TarSource(str(path), [path / name for name in index.files], index.classes)
    names: dict[str, list[Path]] = {".tar": [], ".zip": []}
    for file in sorted(path.iterdir()):
        ending = file.suffix.lower()
        if is_debris(file.name):
            continue
        if file.is_dir() or ending in EXTENSIONS:
            return None
        if ending in names and file.is_file():
            names[ending].append(file)
    found = [files for files in names.values() if files]
    return _archives(str(path), found[0]) if len(found) == 1 else None
