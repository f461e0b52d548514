"""What in a folder is an image, what is not, and how that is told."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim.data.formats.endings import is_debris, is_image
from simmim.data.sources.find import find_images
from simmim.data.sources.folder import SEARCHED, FolderSource
from simmim.data.sources.kinds import TRIED, is_image_file
from simmim.errors import DataError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")


def encoded(form: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(stream, form)
    return stream.getvalue()


def put(folder: Path, name: str, content: bytes = b"x") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def notes(folder: Path) -> list[str]:
    return find_images(folder).infos[0].notes


def test_debris_is_known_at_any_depth_and_names_like_it_are_not():
    debris = ("a/@eaDir/1.jpg/T.jpg", "$RECYCLE.BIN/$R1.jpg", "lost+found/1.png", "x/Thumbs.db")
    hidden = (".Trash-1000/files/1.jpg", "a/._1.jpg", "./.snapshot/1.jpg", "__MACOSX/a/1.jpg")
    assert all(is_debris(path) for path in (*debris, *hidden))
    ours = ("a/1.jpg", "./a/1.jpg", "../a/1.jpg", "@home/1.jpg", "recycle/1.jpg", "snapshot/1.jpg")
    assert not any(is_debris(path) or not is_image(path) for path in ours)
    assert not any(is_image(path) for path in (*debris, *hidden, "a/jpg", ".jpg"))


def test_what_systems_leave_beside_images_is_passed_over_and_counted(tmp_path: Path):
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg"):
        put(tmp_path, name)
        put(tmp_path, str(Path(name).parent / "._x.jpg"))
        for size in "SM":
            put(tmp_path, f"{Path(name).parent}/@eaDir/{Path(name).name}/THUMB_{size}.jpg")
    for name in ("$RECYCLE.BIN/S-1-5/a.jpg", "System Volume Information/x", "lost+found/#12"):
        put(tmp_path, name)
    for name in (".ipynb_checkpoints/1.jpg", "cat/.2.jpg", "Thumbs.db", ".DS_Store", "DICOMDIR"):
        put(tmp_path, name)
    images = find_images(tmp_path)
    assert images == ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg"]
    said = "11 files passed over: 8 in @eaDir, 2 hidden, 1 in $RECYCLE.BIN"
    assert notes(tmp_path) == [said]


def test_debris_beside_shards_makes_no_folder_of_images(tmp_path: Path):
    put(tmp_path, "@eaDir/a.jpg")
    put(tmp_path, "1.jpg")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "1.jpg", "1.jpg")
    (tmp_path / "1.jpg").unlink()
    assert find_images(tmp_path).infos[0].kind == "tar"


def test_hidden_files_without_images_are_not_worth_a_word(tmp_path: Path):
    for name in ("1.jpg", ".DS_Store", ".git/config", "._1.jpg", ".x/notes.txt"):
        put(tmp_path, name)
    assert notes(tmp_path) == []


def test_debris_is_counted_as_long_as_that_is_quick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("simmim.data.sources.folder.SEARCHED", 6)
    for folder in "abc":
        put(tmp_path, f"{folder}/1.jpg")
        for i in range(4):
            put(tmp_path, f"{folder}/@eaDir/{i}.jpg")
    assert SEARCHED > 1000
    assert notes(tmp_path) == ["9 files passed over: 8 in @eaDir, 1 whole @eaDir"]


def test_files_without_an_ending_are_told_by_their_content(tmp_path: Path):
    odd = ["img001", "x.jpg_large", "y.jpg.1", "photo.JPG.jpeg~", "IMG.jpeg?raw", "z.jpg ", "a.php"]
    odd += ["1.2.840.10008", "Dr. Smith", "v2_final"]
    for name in odd:
        put(tmp_path, name, encoded())
    for form in FORMATS:
        put(tmp_path, f"of {form}", encoded(form))
    stream = io.BytesIO()
    np.save(stream, np.zeros((4, 4)))
    put(tmp_path, "array", stream.getvalue())
    put(tmp_path, "IM-0001", bytes(128) + b"DICM")
    put(tmp_path, "b.jpg")
    others = {"README": b"BMW and P5 100", "LICENSE": b"P5 of all", "n.txt": b"x", "e.json": b"{}"}
    others |= {
        "raw.nef": encoded("TIFF"),
        "clip.mp4": b"\0\0\0\x18ftypisom",
        "y.jpg.txt": b"",
        "0": b"",
    }
    for name, content in others.items():
        put(tmp_path, name, content)
    expected = sorted([*odd, *(f"of {form}" for form in FORMATS), "array", "IM-0001", "b.jpg"])
    assert find_images(tmp_path) == expected
    known, passed = notes(tmp_path)
    assert known.startswith(
        "21 files have no ending of an image, and are taken for images by their"
    )
    assert known.endswith("such as 1.2.840.10008")
    assert passed == "8 files passed over: 3 without ending, 2 .txt, 1 .json, 1 .mp4, 1 .nef"
    assert find_images(tmp_path / "img001") == ["img001"]
    assert find_images(tmp_path / "z.jpg ").read(0) == encoded()
    assert not is_image_file(tmp_path / "raw.nef")
    with pytest.raises(DataError, match="README is not an image"):
        find_images(tmp_path / "README")


def test_a_note_names_few_kinds_however_many_there_are(tmp_path: Path):
    put(tmp_path, "1.jpg")
    for i in range(26):
        put(tmp_path, f"{i}.{chr(97 + i)}")
        put(tmp_path, f"{i}.jpg?token={i}")
        put(tmp_path, f"1.2.{i}")
    assert notes(tmp_path) == [
        "78 files passed over: 26 .jpg…, 26 without ending, 1 .a, 1 .b, 1 .c, 23 of other kinds"
    ]
    assert len(FolderSource(tmp_path).others) == 0
    put(tmp_path, "more.zip")
    assert notes(tmp_path)[0].endswith("; name archives themselves, or unpack them")


def test_a_few_hundred_of_a_kind_tell_what_the_others_are(tmp_path: Path):
    image = encoded()
    for i in range(TRIED + 1):
        put(tmp_path, f"{i:04}.dat")
        put(tmp_path, f"{i:04}", image)
        put(tmp_path, f"{i:04}.mixed", image if i % 2 else b"x")
    put(tmp_path, "9999.dat", image)
    put(tmp_path, "9999", b"not an image")
    put(tmp_path, "9999.mixed", image)
    names = list(find_images(tmp_path))
    assert "9999.dat" not in names
    assert "9999" in names  # an unreadable image
    assert names.count("9999.mixed") == 1
    assert len(names) == TRIED + 1 + 1 + TRIED // 2 + 1


def test_unreadable_files_of_no_kind_are_passed_over(tmp_path: Path):
    put(tmp_path, "1.jpg")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    assert notes(tmp_path) == ["2 files passed over: 1 broken link, 1 pipe or device"]
