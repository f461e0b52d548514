import os
from pathlib import Path

import pytest

from simmim.data.find import find_images, folder_of, split_holdout
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
    assert find_images(root) == ["link/2.jpg", "one.jpg", "z/1.jpg"]


def test_one_image_is_a_set_of_one(tmp_path: Path):
    touch(tmp_path, "one.png")
    root = tmp_path / "one.png"
    assert folder_of(root) / find_images(root)[0] == root


def test_what_was_found_instead_is_said(tmp_path: Path):
    touch(tmp_path, "a.txt", "b.txt", "c.zip")
    with pytest.raises(DataError, match=r"2 × \.txt.*Unpack"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="unpack it"):
        find_images(tmp_path / "c.zip")
    with pytest.raises(DataError, match=f"{tmp_path} exists, nope is not in it"):
        find_images(tmp_path / "nope" / "deeper")
    if os.getuid():
        (tmp_path / "closed").mkdir(mode=0)
        with pytest.raises(DataError, match="cannot read the folder"):
            find_images(tmp_path)


def test_the_holdout_hangs_on_the_relative_path_alone():
    paths = [f"{i}.jpg" for i in range(300)]
    train, held = split_holdout(paths, None)
    numbers = (26, 34, 36, 96, 115, 136, 138, 151, 162, 195, 206, 246, 249, 262, 295)
    assert held == [f"{i}.jpg" for i in numbers]
    assert train == [path for path in paths if path not in held]
    fewer = split_holdout(paths[:200], None)[1]
    assert len(fewer) == 10
    assert len(set(fewer) & set(held)) >= 8  # later images change little
    assert split_holdout(paths[:199], None)[1] == []
    assert len(split_holdout([str(i) for i in range(5000)], None)[1]) == 64
    assert len(split_holdout(paths[:3], 2)[0]) == 1
    with pytest.raises(ConfigError, match="--holdout 3"):
        split_holdout(paths[:3], 3)
