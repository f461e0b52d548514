"""Shards in object storage: a real S3 server on loopback, behind a proxy that injects faults."""

import io
import itertools
import json
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from storage_server import Faults, local

from simmim.config.augment import AugmentConfig
from simmim.config.resolved import PixelFormat
from simmim.data.formats.image_file import UnreadableError
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream
from simmim.data.loading.quarantine import Quarantine
from simmim.data.loading.workers import Arrays, Crew
from simmim.data.sources.archive import TarReader, ZipReader, ZipSource
from simmim.data.sources.find import find_images
from simmim.data.sources.remote import transfer
from simmim.data.sources.remote.storage import RemoteReader, RemoteSource, remote_source
from simmim.data.sources.source import Entry
from simmim.errors import DataError

pytest.importorskip("s3fs", reason="needs the extra `remote`")
pytest.importorskip("moto", reason="needs a server of the S3 protocol")


@pytest.mark.parametrize(
    "where", ["s3://pictures/train/shard-{000..002}.tar", "s3://pictures/train", "{}/train/"]
)
def test_remote_shards_are_listed_and_read_as_local_ones(
    where: str, faults: Faults, bucket: str, shards: Path
):
    source = remote_source(where.format(bucket) if where[0] == "{" else where)
    assert source is not None
    entries = list(source.entries())
    here = local(shards)
    assert entries == list(here.entries())
    assert {entry.label for entry in entries} == {"dress", "shoes"}
    assert source.info().kind == "remote"
    assert source.info().parts == [f"{bucket}/train/shard-{i:03d}.tar" for i in range(3)]
    ours, theirs = RemoteReader(source.info()), TarReader(here.info())
    for entry in entries[::7]:
        assert ours.read(entry) == theirs.read(entry)


def test_only_headers_and_what_lies_between_close_ones_is_fetched(
    faults: Faults, bucket: str, moto: int, tmp_path: Path
):
    import s3fs

    file = tmp_path / "large.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(file, "w") as tar:
        for i in range(4):
            member = tarfile.TarInfo(f"{i}.npy")
            member.size = 3_000_000
            tar.addfile(member, io.BytesIO(rng.bytes(member.size)))
    system = s3fs.S3FileSystem(skip_instance_cache=True)
    system.put_file(str(file), "pictures/large/large.tar")
    faults.number = 0
    source = RemoteSource("s3://pictures/large/large.tar")
    assert [entry.size for entry in source.entries()] == [3_000_000] * 4
    assert faults.number <= 6
    entry = list(source.entries())[2]
    assert RemoteReader(source.info()).read(entry) == file.read_bytes()[entry.at :][:3_000_000]


def test_an_index_beside_the_shards_tells_which_belong_to_it(faults: Faults, bucket: str):
    import s3fs

    system = s3fs.S3FileSystem(skip_instance_cache=True)
    for name in ("a.tar", "b.tar", "other.tar"):
        system.copy("pictures/train/shard-000.tar", f"pictures/made/{name}")
    index = {"format": 1, "shards": [{"file": "b.tar"}, {"file": "a.tar"}], "classes": ["z", "a"]}
    system.pipe_file("pictures/made/index.json", json.dumps(index).encode())
    source = RemoteSource(f"{bucket}/made")
    assert [entry.name[:6] for entry in source.entries()] == ["b.tar/"] * 20 + ["a.tar/"] * 20
    assert source.info().options["classes"] == ["z", "a"]
    index["shards"].append({"file": "c.tar"})
    system.pipe_file("pictures/made/index.json", json.dumps(index).encode())
    with pytest.raises(
        DataError, match=r"names 3 shards, and 1 of them are missing, such as .*c.tar"
    ):
        list(RemoteSource(f"{bucket}/made/").entries())
    system.pipe_file("pictures/made/index.json", json.dumps(index | {"format": 9}).encode())
    with pytest.raises(DataError, match="format 9"):
        list(RemoteSource(f"{bucket}/made/").entries())


@dataclass(frozen=True)
class FirstBytes:
    """Fills a row with the sum and the length of each image's bytes."""

    reader: RemoteReader | TarReader
    entries: list[Entry]

    def __call__(self, task: int, out: Arrays, place: Any) -> int:
        chunk = self.entries[4 * task : 4 * task + 4]
        if isinstance(self.reader, RemoteReader):
            self.reader.prefetch(chunk)
        for row, entry in enumerate(chunk):
            data = np.frombuffer(self.reader.read(entry), np.uint8)
            out["bytes"][row] = torch.tensor([int(data.sum()), len(data)])
        return len(chunk)


def rows(reader: Any, entries: list[Entry], workers: int) -> torch.Tensor:
    crew = Crew(
        fill=FirstBytes(reader, entries),
        slot={"bytes": ((4, 2), torch.int64)},
        workers=workers,
        ahead=2,
        timeout=60,
    )
    return torch.cat([arrays["bytes"].clone() for arrays, _ in crew.run(0, len(entries) // 4)])


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_arrives_through_faults_in_forked_workers_too(
    workers: int, faults: Faults, bucket: str, shards: Path
):
    faults.plan = ("", "503", "torn", "", "reset", "cut", "", "", "503", "503", "", "") + ("",) * 12
    faults.plan = (*faults.plan, "stall")
    source = RemoteSource(f"{bucket}/train/")
    entries = list(source.entries())
    here = local(shards)
    assert entries == list(here.entries())
    entries = entries[::2][:28]
    # This process has asked the storage already, so its connections are there to be forked.
    assert RemoteReader(source.info()).read(entries[0])
    found = rows(RemoteReader(source.info()), entries, workers)
    assert torch.equal(found, rows(TarReader(here.info()), entries, 0))
    assert min(faults.counts[fault] for fault in ("503", "torn", "reset", "cut", "stall")) >= 1


def batches(where: str, pixels: PixelFormat, workers: int) -> list[torch.Tensor]:
    images = find_images(where)
    stream = TrainStream(
        ImageSet(images, pixels),
        augment=AugmentConfig(),
        size=(32, 32),
        seed=5,
        batch_size=16,
        micro_batch=8,
        workers=workers,
        quarantine=(quarantine := Quarantine(None, 0.0, images)),
    )
    found = [batch.images for batch in itertools.islice(stream.start(0), 3)]
    stream.close()
    assert quarantine.count == 0
    return found


def test_batches_are_those_of_the_same_shards_on_the_disk(
    faults: Faults, bucket: str, shards: Path, pixels: PixelFormat
):
    local = batches(str(shards / "shard-{000..002}.tar"), pixels, 0)
    faults.plan = ("", "503", "", "", "cut", "", "reset", "", "", "torn")
    remote = batches(f"{bucket}/train/shard-{{000..002}}.tar", pixels, 2)
    assert all(torch.equal(a, b) for a, b in zip(remote, local, strict=True))
    assert sum(faults.counts.values()) > 30
    images = find_images(f"{bucket}/train/shard-{{000..002}}.tar")
    assert {images.label(i) for i in range(len(images))} == {"dress", "shoes"}


@pytest.mark.parametrize("fault", ["503", "cut", "torn", "reset"])
def test_a_fault_that_stays_ends_with_a_clear_error_in_time(
    fault: str, faults: Faults, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    source = RemoteSource(f"{bucket}/train/")
    entries = list(source.entries())
    monkeypatch.setattr(transfer, "PATIENCE", 0.4)
    faults.plan = (fault,)
    begin = time.monotonic()
    with pytest.raises(OSError, match=r"shard-000\.tar: the storage failed for") as caught:
        RemoteReader(source.info()).read(entries[0])
    assert time.monotonic() - begin < 5
    assert not isinstance(caught.value, UnreadableError)
    if fault == "503":
        assert "reduce your request rate" in str(caught.value)
    if fault == "cut":
        assert f"of {entries[0].size:,} bytes" in str(caught.value)
    with pytest.raises(DataError, match=r"cannot list .*the storage failed"):
        list(RemoteSource(f"{bucket}/train/shard-000.tar").entries())


def test_a_prefix_of_files_and_a_zip_file_are_read(
    faults: Faults, bucket: str, photos: Path, shards: Path
):
    source = RemoteSource(f"{bucket}/photos")
    entries = list(source.entries())
    files = sorted(photos.glob("dress/*"))[:5]
    assert [entry.name for entry in entries] == [f"dress/{file.name}" for file in files]
    assert source.info().notes == ["1 file passed over: 1 .txt"]
    reader = RemoteReader(source.info())
    reader.prefetch(entries[:3])
    assert [reader.read(entry) for entry in entries] == [file.read_bytes() for file in files]
    assert reader.open(entries[0]).format == "JPEG"

    source = RemoteSource(f"{bucket}/train/all.zip")
    here = ZipSource("", [shards / "all.zip"])
    entries = list(source.entries())
    assert entries == list(here.entries())
    ours, theirs = RemoteReader(source.info()), ZipReader(here.info())
    assert [ours.read(entry) for entry in entries] == [theirs.read(entry) for entry in entries]


def test_the_state_changes_with_an_object_and_not_by_itself(faults: Faults, bucket: str):
    import s3fs

    system = s3fs.S3FileSystem(skip_instance_cache=True)
    system.pipe_file("pictures/state/a.png", b"one")
    where = f"{bucket}/state/"
    before = RemoteSource(where).state()
    assert RemoteSource(where).state() == before
    system.pipe_file("pictures/state/a.png", b"two")
    assert RemoteSource(where).state() != before


def test_threads_share_a_reader(faults: Faults, bucket: str, shards: Path):
    source = RemoteSource(f"{bucket}/train/")
    entries = list(source.entries())
    reader = RemoteReader(source.info())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(reader.read, entries))
    theirs = TarReader(local(shards).info())
    assert found == [theirs.read(entry) for entry in entries]


def test_an_image_is_read_whole(faults: Faults, bucket: str, photos: Path):
    source = RemoteSource(f"{bucket}/photos/")
    entries = list(source.entries())
    image = RemoteReader(source.info()).open(entries[0])
    with Image.open(min(photos.glob("dress/*"))) as expected:
        assert (image.width, image.height) == expected.size


def test_samples_links_and_odd_names_are_read_as_on_the_disk(
    faults: Faults, bucket: str, tmp_path: Path
):
    import s3fs

    system = s3fs.S3FileSystem(skip_instance_cache=True)
    files = {f"s{i % 2}.{i}.jpg": b"image" for i in range(4)}
    files |= {f"s{i % 2}.{i}.seg.png": b"mask" for i in range(4)}
    files |= {f"._s{i % 2}.{i}.cls": b"system" for i in range(4)}
    files |= {f"s{i % 2}.{i}.cls": f"{i}".encode() for i in (0, 1, 3, 4)}
    for part in "ab":
        with tarfile.open(tmp_path / f"{part}.tar", "w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            for name, to in (("more/s.jpg", "s0.2.jpg"), ("more/t.jpg", "nowhere.jpg")):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = tarfile.LNKTYPE, to
                tar.addfile(member)
        system.put_file(str(tmp_path / f"{part}.tar"), f"pictures/samples/{part}.tar")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        for name in ("cat\\1.jpg", "dog\\2.jpg", "__MACOSX\\cat\\._1.jpg"):
            archive.writestr(name, name)
    system.put_file(str(tmp_path / "w.zip"), "pictures/windows/w.zip")
    for name in ("b.jpg", "._a.tar", "w.zip"):
        system.pipe_file(f"pictures/samples/{name}", b"x")

    for where, here in (
        ("samples/", local(tmp_path)),
        ("windows/w.zip", ZipSource("", [tmp_path / "w.zip"])),
    ):
        source = RemoteSource(f"{bucket}/{where}")
        for _ in range(2):  # a second listing says nothing twice
            entries = list(source.entries())
            assert entries == list(here.entries())
            assert source.info().notes[:3] == here.info().notes[:3]
    images = find_images(f"{bucket}/samples/")
    assert [images.label(i) for i in range(len(images))] == ["0", "1", None, "3", None] * 2
    assert images.read(4) == b"image"
    assert images[4] == "a.tar/more/s.jpg"
    assert [note.partition(",")[0] for note in images.infos[0].notes] == [
        "2 links cannot be followed: not to a member of the archive",
        "8 files beside the images of samples are not used as images",
        "2 labels beside no image of that name",
        "2 files passed over: 1 .jpg",
    ]
    for i in range(2):
        system.copy("pictures/samples/a.tar", f"pictures/pieces/shard-{i}.tar")
    assert find_images(f"{bucket}/pieces").indexes[0].folders == {"": 8, "more": 2}
    assert find_images(f"{bucket}/windows/w.zip") == ["cat/1.jpg", "dog/2.jpg"]
