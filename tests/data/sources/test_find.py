import gzip
import os
import tarfile
from pathlib import Path

import pytest

from simmim.data.sources.find import find_images, split_holdout
from simmim.data.sources.folder import FolderSource
from simmim.errors import ConfigError, DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_images_are_found_recursively_sorted_and_hidden_ones_skipped(tmp_path: Path):
    touch(
        tmp_path, "b.JPG", "a/ü 图.png", "a/b/c.tif", ".x.jpg", ".git/y.jpg", "notes.txt", "d.npy"
    )
    assert find_images(tmp_path) == ["a/b/c.tif", "a/ü 图.png", "b.JPG", "d.npy"]


def test_links_are_followed_once_and_loops_end(tmp_path: Path):
    touch(tmp_path, "root/z/1.jpg", "outside/2.jpg")
    root = tmp_path / "root"
    (root / "z" / "loop").symlink_to(root)
    (root / "again").symlink_to(root / "z")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "one.jpg").symlink_to(tmp_path / "outside" / "2.jpg")
    (root / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (root / "self.jpg").symlink_to("self.jpg")
    (root / "z" / "self").symlink_to("self")
    assert find_images(root) == ["one.jpg", "z/1.jpg", "link/2.jpg"]


def test_a_folder_can_be_listed_again(tmp_path: Path):
    touch(tmp_path, "a/1.jpg", "b.jpg", "c.txt")
    source = FolderSource(tmp_path)
    assert list(source.entries()) == list(source.entries())
    assert source.others == {".txt": 1}


def test_one_image_is_a_set_of_one(tmp_path: Path):
    touch(tmp_path, "one.png")
    images = find_images(tmp_path / "one.png")
    assert images == ["one.png"]
    assert images.read(0) == b"x"


def test_what_was_found_instead_is_said(tmp_path: Path):
    touch(tmp_path, "a.txt", "b.txt", "c.zip", "d/e.rar")
    with pytest.raises(
        DataError, match=r"4 files passed over: 2 \.txt, 1 \.rar, 1 \.zip; name archives"
    ):
        find_images(tmp_path)
    with pytest.raises(DataError, match="unpack it"):
        find_images(tmp_path / "d" / "e.rar")
    with pytest.raises(DataError, match="not a whole zip"):
        find_images(tmp_path / "c.zip")
    with pytest.raises(DataError, match=f"{tmp_path} exists, nope is not in it"):
        find_images(tmp_path / "nope" / "deeper")
    with pytest.raises(DataError, match="too long"):
        find_images("x" * 300)
    (tmp_path / "packed.tar").write_bytes(gzip.compress(bytes(2048)))
    with pytest.raises(DataError, match="compressed as a whole"):
        find_images(tmp_path / "packed.tar")
    pack = tarfile.open(tmp_path / "odd.tar", "w")  # noqa: SIM115
    pack.addfile(tarfile.TarInfo("BZh.jpg"))
    pack.close()
    assert find_images(tmp_path / "odd.tar") == ["BZh.jpg"]
    with pytest.raises(DataError, match=r"/d, which is a folder; a pattern names tar or zip"):
        find_images(f"{tmp_path}/{{d,e}}")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match="is a pipe or a device"):
        find_images(tmp_path / "pipe.jpg")
    (tmp_path / "d" / "self.jpg").symlink_to("self.jpg")
    with pytest.raises(DataError, match="1 broken link"):
        find_images(tmp_path / "d")
    if os.getuid():
        (tmp_path / "closed").mkdir(mode=0)
        with pytest.raises(DataError, match="cannot read the folder"):
            find_images(tmp_path)


def test_the_order_is_that_of_whole_paths(tmp_path: Path):
    touch(tmp_path, "a/1.jpg", "a-b.jpg", "ab.jpg", "a/b/2.jpg", "a/b.jpg", "B/x.jpg", "a.jpg")
    expected = ["B/x.jpg", "a-b.jpg", "a.jpg", "a/1.jpg", "a/b.jpg", "a/b/2.jpg", "ab.jpg"]
    assert find_images(tmp_path) == expected == sorted(expected)


def test_the_holdout_hangs_on_the_relative_path_alone(listed, tmp_path: Path):
    paths = [f"{i}.jpg" for i in range(300)]
    train, held = split_holdout(listed(tmp_path, paths), None)
    numbers = (26, 34, 36, 96, 115, 136, 138, 151, 162, 195, 206, 246, 249, 262, 295)
    assert held == [f"{i}.jpg" for i in numbers]
    assert train == [path for path in paths if path not in held]
    fewer = split_holdout(listed(tmp_path, paths[:200]), None)[1]
    assert len(fewer) == 10
    assert len(set(fewer) & set(held)) >= 8  # later images change little
    assert split_holdout(listed(tmp_path, paths[:199]), None)[1] == []
    many = listed(tmp_path, [f"{i}.jpg" for i in range(5000)])
    assert len(split_holdout(many, None)[1]) == 64
    assert len(split_holdout(listed(tmp_path, paths[:3]), 2)[0]) == 1
    with pytest.raises(ConfigError, match="--holdout 3"):
        split_holdout(listed(tmp_path, paths[:3]), 3)
