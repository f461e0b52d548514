"""Zip and tar files and shards are read in place: the same images, whatever they are packed in."""

import io
import json
import os
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simmim.data.formats.image_file import UnreadableError
from simmim.data.labels import labels_of
from simmim.data.sources import members
from simmim.data.sources.find import find_images
from simmim.errors import DataError


def png(value: int, side: int = 5) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (side, side), value).save(stream, "PNG")
    return stream.getvalue()


FILES = {f"{kind}/{i}.png": png(10 * i + len(kind)) for kind in ("cat", "horse") for i in range(3)}
OTHERS = {"cat/.hidden.png": b"x", "notes.txt": b"x", "__MACOSX/cat/._0.png": b"x"}


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def pack(file: Path, how: str, files: dict[str, bytes]) -> Path:
    file.parent.mkdir(exist_ok=True)
    if how.startswith("zip"):
        method = zipfile.ZIP_STORED if how == "zip-stored" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return file
    formats = {"tar-pax": tarfile.PAX_FORMAT, "tar-gnu": tarfile.GNU_FORMAT}
    with tarfile.open(file, "w", format=formats.get(how, tarfile.USTAR_FORMAT)) as tar:
        for name, data in files.items():
            add(tar, name, data)
    return file


@pytest.mark.parametrize("how", ["zip", "zip-stored", "tar", "tar-pax", "tar-gnu"])
def test_an_archive_is_read_like_the_folder_in_it(how: str, tmp_path: Path):
    long = {} if how == "tar" else {f"horse/{'ü' * 90}/{'y' * 100}.png": png(77)}
    file = pack(tmp_path / f"photos.{how[:3]}", how, FILES | OTHERS | long)
    images = find_images(file)
    assert images == list(FILES | long)
    for i, name in enumerate(images):
        assert images.read(i) == (FILES | long)[name]
        assert (
            images.open(i).read(1)[0, 0, 0]
            == np.array(Image.open(io.BytesIO(images.read(i))))[0, 0]
        )
    labels = labels_of(images)
    assert labels is not None
    assert labels.classes == ["cat", "horse"]
    assert [label for _, label in labels.pairs()] == [0, 0, 0, *[1] * (3 + len(long))]


def test_several_archives_in_a_folder_or_by_braces(tmp_path: Path):
    parts = list(FILES.items())
    for i in range(3):
        pack(tmp_path / f"part-{i:02}.tar", "tar", dict(parts[2 * i : 2 * i + 2]))
    folder, braces = find_images(tmp_path), find_images(str(tmp_path / "part-{00..02}.tar"))
    assert folder == [f"part-{i // 2:02}.tar/{name}" for i, (name, _) in enumerate(parts)]
    assert folder == braces
    assert [folder.read(i) for i in range(6)] == [data for _, data in parts]
    with pytest.raises(DataError, match=r"means 4 files, and there is no .*part-03\.tar"):
        find_images(str(tmp_path / "part-{00..03}.tar"))
    two = find_images(tmp_path / "part-00.tar", tmp_path / "part-02.tar")
    assert len(two) == 4
    assert two.read(3) == parts[5][1]


def test_a_list_of_an_archive_follows_its_file(tmp_path: Path):
    file = pack(tmp_path / "a.tar", "tar", FILES)
    assert len(find_images(file)) == 6
    pack(file, "tar", dict(list(FILES.items())[:2]))
    assert len(find_images(file)) == 2


@pytest.mark.parametrize("teller", ["cls", "json", "both"])
def test_shards_tell_labels_beside_their_images(teller: str, tmp_path: Path):
    names = {"0": "zebra", "1": "ape", "2": "bee"}
    with tarfile.open(tmp_path / "shard-000000.tar", "w") as tar:
        for i in range(6):
            number = str(i % 3)
            add(tar, f"{i:06}.png", png(i))
            if teller != "json":
                add(tar, f"{i:06}.cls", number.encode())
            if teller != "cls":
                add(tar, f"{i:06}.json", json.dumps({"label": names[number]}).encode())
        add(tar, "last.png", png(9))
    images = find_images(tmp_path)
    assert len(images) == 7
    told = list(names) if teller == "cls" else list(names.values())
    assert [images.label(i) for i in range(7)] == [*told, *told, None]
    labels = labels_of(images)
    assert labels is not None
    assert labels.classes == sorted(told)
    assert len(list(labels.pairs())) == 6


def test_an_index_beside_shards_gives_the_order_of_classes(tmp_path: Path):
    with tarfile.open(tmp_path / "shard-000000.tar", "w") as tar:
        for i, label in enumerate(["b", "a", "b"]):
            add(tar, f"{i}.png", png(i))
            add(tar, f"{i}.json", json.dumps({"label": label}).encode())
    index = {"format": 1, "shards": [{"file": "shard-000000.tar"}], "classes": ["b", "a"]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    labels = labels_of(find_images(tmp_path))
    assert labels is not None
    assert labels.classes == ["b", "a"]
    assert [label for _, label in labels.pairs()] == [0, 1, 0]
    (tmp_path / "index.json").write_text(json.dumps({**index, "format": 9}))
    with pytest.raises(DataError, match="format 9"):
        find_images(tmp_path)
    index["shards"].append({"file": "shard-000001.tar"})
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"1 of them are missing, such as shard-000001\.tar"):
        find_images(tmp_path)


def test_a_damaged_tar_gives_what_comes_before_the_damage(tmp_path: Path):
    file = pack(tmp_path / "a.tar", "tar", FILES)
    data = bytearray(file.read_bytes())
    third = data.index(b"cat/2.png")
    data[third : third + 512] = b"\xa5" * 512
    file.write_bytes(data)
    images = find_images(file)
    assert images == ["cat/0.png", "cat/1.png"]
    assert "damaged after 2 images" in images.infos[0].notes[0]
    file.write_bytes(data[: third + 100])
    assert find_images(file) == ["cat/0.png", "cat/1.png"]
    file.write_bytes(b"\xa5" * 10_000)
    with pytest.raises(DataError, match="not a whole tar file"):
        find_images(file)


def test_archives_one_after_another_in_a_file_are_all_read(tmp_path: Path):
    pieces = list(FILES.items())
    for i in range(3):
        pack(tmp_path / f"{i}", "tar", dict(pieces[2 * i : 2 * i + 2]))
    whole = b"".join((tmp_path / f"{i}").read_bytes() for i in range(3))
    file = tmp_path / "all.tar"
    file.write_bytes(whole + b"what others put after the end")
    images = find_images(file)
    assert images == list(FILES)
    assert [images.read(i) for i in range(6)] == list(FILES.values())
    assert not images.infos[0].notes
    file.write_bytes(whole.rstrip(b"\0"))
    assert find_images(file) == list(FILES)


def test_what_cannot_be_had_of_an_archive_is_the_images_fault(tmp_path: Path):
    file = pack(tmp_path / "a.zip", "zip-stored", FILES)
    images = find_images(file)
    data = bytearray(file.read_bytes())
    at = data.index(FILES["cat/1.png"])
    data[at + 40] ^= 1
    flags = data.index(b"PK\x03\x04", at)
    struct.pack_into("<H", data, flags + 6, 1)
    method = data.index(b"PK\x03\x04", flags + 4)
    struct.pack_into("<H", data, method + 8, 12)
    gone = data.index(b"PK\x03\x04", method + 4)
    data[gone] = 0
    file.write_bytes(data)
    reasons = {}
    for i in range(len(images)):
        try:
            images.read(i)
        except UnreadableError as error:
            reasons[i] = error.reason
    assert [reasons[i].split(":")[0].split(";")[0] for i in sorted(reasons)] == [
        "damaged",
        "encrypted",
        "compressed by bzip2",
        "damaged",
    ]
    os.truncate(file, 60)
    with pytest.raises(UnreadableError, match=r"truncated|no such member"):
        images.read(5)
    file.unlink()
    assert "cannot be read" in reason_of(find_images_again(images), 0)


def find_images_again(images):
    """A new process would open the file anew."""
    return images.select(range(len(images)))


def reason_of(images, i: int) -> str:
    with pytest.raises(UnreadableError) as caught:
        images.read(i)
    return caught.value.reason


def test_what_is_compressed_as_a_whole_is_refused_with_advice(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        add(tar, "a.png", png(1))
    with pytest.raises(DataError, match="unpack it"):
        find_images(tmp_path / "a.tar.gz")
    (tmp_path / "b.tgz").write_bytes((tmp_path / "a.tar.gz").read_bytes())
    with pytest.raises(DataError, match="unpack it"):
        find_images(tmp_path / "b.tgz")


def test_an_archive_without_images_says_so(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no images; 1 file passed over: 1 \.txt"):
        find_images(pack(tmp_path / "a.tar", "tar", {"a.txt": b"x"}))
    with pytest.raises(DataError, match="holds no images"):
        find_images(pack(tmp_path / "a.zip", "zip", {"a.txt": b"x"}))


class _Stream(io.RawIOBase):
    """What cannot be sought in, so that checksums come after the content."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += data
        return len(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_checksums_of_a_streamed_zip_are_checked_too(method: int, tmp_path: Path):
    stream = _Stream()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    file = tmp_path / "streamed.zip"
    file.write_bytes(stream.data)
    assert [find_images(file).read(i) for i in range(len(FILES))] == list(FILES.values())
    at = stream.data.index(FILES["cat/0.png"]) + 30 if method == zipfile.ZIP_STORED else 60
    stream.data[at] ^= 1
    file.write_bytes(stream.data)
    with pytest.raises(UnreadableError, match=r"checksum|in the zip"):
        find_images(file).read(0)
    assert find_images(file).read(1) == FILES["cat/1.png"]


def test_a_member_that_inflates_beyond_all_measure_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("simmim.data.sources.archive.INFLATED", 10_000)
    file = pack(tmp_path / "bomb.zip", "zip", {"a.png": bytes(20_000), "b.png": png(3)})
    with pytest.raises(UnreadableError, match="too large: it inflates to more than"):
        find_images(file).read(0)
    assert find_images(file).read(1) == png(3)


def linked(tar: tarfile.TarFile, name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    tar.addfile(member)


@pytest.mark.parametrize("held", [1 << 18, 2])
def test_links_in_a_tar_are_what_they_lead_to(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(members, "HELD", held)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        linked(tar, "./before.png", "all/2.png")
        for i in range(3):
            add(tar, f"./all/{i}.png", png(i))
            add(tar, f"./blobs/{i}", png(10 + i))
        linked(tar, "all/0.png", "./all/0.png", tarfile.LNKTYPE)  # packed twice
        linked(tar, "hard/0.png", "./all/0.png", tarfile.LNKTYPE)
        linked(tar, "soft/1.png", "../all/1.png")
        linked(tar, "content/2.png", "./../blobs/2")
        linked(tar, "soft", "all")
        linked(tar, "gone.png", "nowhere.png")
        linked(tar, "gone.hard.png", "nowhere.png", tarfile.LNKTYPE)
        linked(tar, "outside.png", "/etc/all/1.png")
        linked(tar, "circle.png", "circle.png")
        linked(tar, "outside", "../photos")
        linked(tar, "._gone.png", "nowhere.png")
    expected = {
        **{"before.png": png(2), **{f"all/{i}.png": png(i) for i in range(3)}},
        **{"hard/0.png": png(0), "soft/1.png": png(1), "content/2.png": png(12)},
    }
    images = find_images(tmp_path / "a.tar")
    assert {name: images.read(i) for i, name in enumerate(images)} == expected
    assert images.infos[0].notes[0] == (
        "5 links cannot be followed: not to a member of the archive, such as gone.png → nowhere.png"
    )
    if held > 2:
        assert images.infos[0].notes[1:] == ["2 files passed over: 2 without ending"]


def test_links_to_links_and_to_labels(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "classes/cat.cls", b"cat")
        for i in range(2):
            add(tar, f"{i}.png", png(i))
            linked(tar, f"{i}.cls", "classes/cat.cls", tarfile.LNKTYPE if i else tarfile.SYMTYPE)
        linked(tar, "new/2.png", "../1.png")
        linked(tar, "new/3.png", "2.png")
    images = find_images(tmp_path / "a.tar")
    assert images == ["0.png", "1.png", "new/2.png", "new/3.png"]
    assert images.read(3) == png(1)
    assert [images.label(i) for i in range(4)] == ["cat", "cat", None, None]


@pytest.mark.parametrize("how", ["zip", "tar"])
def test_of_members_of_one_name_the_last_counts(how: str, tmp_path: Path):
    if how == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("a/0.png", png(0))
            for i in (1, 2):
                with pytest.warns(UserWarning, match="Duplicate name"):
                    archive.writestr("a/0.png", png(i))
    else:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for i in range(3):
                add(tar, "a/0.png", png(i))
    images = find_images(tmp_path / f"a.{how}")
    assert images == ["a/0.png"]
    assert images.read(0) == png(2)
    assert images.infos[0].notes == [
        "2 images are overwritten by a later one of the same name, such as a/0.png"
    ]


def test_sparse_members_are_said_to_be_left_out(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.png", png(1))
        member = tarfile.TarInfo("1.png")
        member.pax_headers = {"GNU.sparse.size": "9", "GNU.sparse.map": "0,5"}
        member.size = 5
        tar.addfile(member, io.BytesIO(b"12345"))
    images = find_images(tmp_path / "a.tar")
    assert images == ["0.png"]
    assert images.infos[0].notes == [
        "1 sparse member cannot be read in place: pack without --sparse, such as 1.png"
    ]


def test_backslashes_in_a_zip_are_slashes_where_it_has_none(tmp_path: Path):
    flat = {name.replace("/", "\\"): data for name, data in (FILES | OTHERS).items()}
    file = pack(tmp_path / "windows.zip", "zip", {"cat\\": b"", **flat})
    images = find_images(file)
    assert images == list(FILES)
    assert [images.read(i) for i in range(6)] == list(FILES.values())
    labels = labels_of(images)
    assert labels is not None
    assert labels.classes == ["cat", "horse"]
    assert images.infos[0].notes == [
        r"backslashes in names of 1 zip file are taken for slashes, such as cat\ "[:-1],
        "2 files passed over: 1 .txt, 1 hidden",
    ]
    mixed = pack(tmp_path / "mixed.zip", "zip", {"a\\b.png": png(1), "c/d.png": png(2)})
    assert find_images(mixed) == ["a\\b.png", "c/d.png"]
    assert not find_images(mixed).infos[0].notes


def test_links_and_labels_in_a_zip(tmp_path: Path):
    file = pack(tmp_path / "a.zip", "zip", {"all/0.png": png(0), "all/0.cls": b"1"})
    with zipfile.ZipFile(file, "a") as archive:
        for name, to in (("cat/1.png", "../all/0.png"), ("cat/2.png", "../none.png")):
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, to)
    images = find_images(file)
    assert images == ["all/0.png", "cat/1.png"]
    assert images.read(1) == png(0)
    assert images.infos[0].notes == [
        "1 .cls file is not read: labels are taken from tar files alone, such as all/0.cls",
        "1 link cannot be followed: not to a member of the archive, such as cat/2.png → none.png",
    ]
