"""One shard: written under another name, flushed, read back, and only then called by its own."""

import hashlib
import json
import os
import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from simmim.data.audit.duplicates import hash_image
from simmim.data.formats.decode import inspect, read_pixels
from simmim.data.formats.image_file import UnreadableError
from simmim.data.names import plain
from simmim.data.processes import Place
from simmim.data.shards.encode import Encoded, encode
from simmim.data.shards.plan import HASHED, Job, read_json, shard_name
from simmim.errors import TrainingError


@dataclass
class Shard:
    """What is known of a shard that was written; kept as JSON until all of them are.

    Attributes:
        file: Its name.
        images: How many it holds; where there are none, there is no file.
        bytes: Its size.
        sha256: Of the file.
        unreadable: Name and reason of the images that are not in it.
        left_out: Images whose files hold more than the picture that is kept; see ``ImageFile``.
    """

    file: str
    images: int = 0
    bytes: int = 0
    sha256: str = ""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    left_out: int = 0


def finished(job: Job, number: int) -> Shard | None:
    """What is known of a shard if it was written, verified and named; else None."""
    known = read_json(_record_file(job, number))
    if known is None:
        return None
    shard = Shard(**known)
    file = job.out / shard.file
    whole = not shard.images or (file.is_file() and file.stat().st_size == shard.bytes)
    return shard if whole else None


def write_shard(job: Job, number: int, place: Place) -> Shard:
    """Make a shard, unless it is there.

    Raises:
        OSError: The storage of the images or of the shards fails.
        TrainingError: What was written is not what is read back.
    """
    done = finished(job, number)
    if done is not None:
        return done
    shard = Shard(shard_name(number))
    with _new_file(job.work, shard.file) as (stream, partial):
        tar = _Tar(stream)
        shapes: list[tuple[int, ...]] = []
        for row in _rows(job, number):
            place.at = row
            try:
                image = _encode(job, row)
            except UnreadableError as error:
                shard.unreadable.append((plain(job.listing[row]), error.reason))
                continue
            for name, content in _members(job, row, image):
                tar.add(name, content)
            shapes.append(image.shape)
            shard.left_out += image.left_out
        tar.close()
        shard.images, shard.bytes, shard.sha256 = len(shapes), tar.bytes, tar.digest.hexdigest()
        _verify(partial, shard, shapes)
        if shard.images:
            partial.replace(job.out / shard.file)
    _flush_folder(job.out)
    write_whole(_record_file(job, number), json.dumps(asdict(shard)).encode())
    return shard


def hash_block(job: Job, number: int, place: Place) -> None:
    """Hash the images of a block, unless that was done."""
    file = job.hashes_file(number)
    if file.exists():
        return
    rows = range(number * HASHED, min((number + 1) * HASHED, len(job.listing)))
    perceptual = np.zeros((4, len(rows)), np.uint64)
    blank, valid = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    for i, row in enumerate(rows):
        place.at = row
        try:
            hashes = hash_image(read_pixels(inspect(job.listing.read(row))))
        except UnreadableError:
            continue  # said when its shard is written
        perceptual[:, i] = hashes[:4]
        blank[i], valid[i] = hashes.blank, True
    with _new_file(job.work, file.name) as (stream, partial):
        np.savez(stream, hashes=perceptual, blank=blank, valid=valid)
        stream.flush()
        partial.replace(file)


def write_whole(file: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, even after a loss of power."""
    with _new_file(file.parent, file.name) as (stream, partial):
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
        partial.replace(file)
    _flush_folder(file.parent)


def members_of(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of everything in a shard."""
    with tarfile.open(file, "r:") as tar:
        for member in tar:
            stream = tar.extractfile(member)
            assert stream is not None  # shards hold files only
            yield member.name, stream.read()


class _Tar:
    """Writes a tar file whose bytes hang on names and contents alone."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.digest = hashlib.sha256()
        self.bytes = 0

    def add(self, name: str, content: bytes) -> None:
        header = tarfile.TarInfo(name)  # no owner, no time
        header.size = len(content)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        self._write(content)
        self._write(bytes(-len(content) % tarfile.BLOCKSIZE))

    def close(self) -> None:
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.bytes % tarfile.RECORDSIZE))
        self.stream.flush()
        os.fsync(self.stream.fileno())

    def _write(self, data: bytes) -> None:
        self.stream.write(data)
        self.digest.update(data)
        self.bytes += len(data)


def _rows(job: Job, number: int) -> list[int]:
    kept, each = job.kept(), job.settings.per_shard
    return [int(row) for row in kept[number * each : (number + 1) * each]]


def _encode(job: Job, row: int) -> Encoded:
    settings = job.settings
    return encode(job.listing.read(row), settings.size, settings.format, settings.quality)


def _members(job: Job, row: int, image: Encoded) -> Iterator[tuple[str, bytes]]:
    """Yield the files of one sample: image, class number, and where it is from."""
    key = f"{row:09d}"
    facts: dict[str, Any] = {"name": plain(job.listing[row])}
    yield f"{key}.{image.ending}", image.data
    label = -1 if job.labels is None else int(job.labels[row])
    if label >= 0:
        facts["label"] = job.classes[label]
        yield f"{key}.cls", str(label).encode()
    facts |= {"height": image.height, "width": image.width}
    yield f"{key}.json", json.dumps(facts).encode()


def _verify(file: Path, shard: Shard, shapes: list[tuple[int, ...]]) -> None:
    """Read a shard back: the same bytes, and every image decodes to its shape."""
    with file.open("rb") as stream:
        same = hashlib.file_digest(stream, "sha256").hexdigest() == shard.sha256
    found: list[tuple[int, ...]] = []
    try:
        for name, content in members_of(file) if same else ():
            if not name.endswith((".cls", ".json")):
                found.append(read_pixels(inspect(content)).shape)
    except (tarfile.TarError, UnreadableError) as error:
        raise TrainingError(f"{shard.file} cannot be read back: {error}.") from error
    if not same or found != shapes:
        raise TrainingError(
            f"{shard.file} was read back other than it was written: the disk or the memory of this "
            "machine is faulty. Nothing wrong was kept; start the same command again elsewhere."
        )


@contextmanager
def _new_file(folder: Path, name: str) -> Iterator[tuple[IO[bytes], Path]]:
    """Open a file of another name, removed at the end unless it was renamed."""
    partial = folder / f".{name}.{socket.gethostname()}-{os.getpid()}.tmp"
    try:
        with partial.open("wb") as stream:
            yield stream, partial
    finally:
        partial.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Make names last: not all systems can, and then it is up to them."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(number)
    except OSError:
        pass
    finally:
        os.close(number)


def _record_file(job: Job, number: int) -> Path:
    return job.work / f"shard-{number:06d}.json"
