"""The classes of images in archives: folders in them, whatever wraps these, and never shards."""

from pathlib import Path

import pytest
from test_archives import pack, png

from simmim.data.audit.facts import Images
from simmim.data.labels import Labels, labels_of, needed_labels
from simmim.data.sources.find import find_images
from simmim.data.sources.shards import are_shards
from simmim.errors import DataError


def told(labels: Labels | None) -> dict[str, int]:
    """How many images each class has."""
    assert labels is not None
    names = [labels.classes[label] for _, label in labels.pairs()]
    return {name: names.count(name) for name in labels.classes}


def folders(*names: str) -> dict[str, bytes]:
    return {f"{name}/{i}.png": png(i) for name in names for i in range(3)}


@pytest.mark.parametrize("how", ["tar", "zip"])
def test_a_folder_that_wraps_all_of_an_archive_is_no_class(how: str, tmp_path: Path):
    wrapped = pack(tmp_path / f"a.{how}", how, folders("my/photos/cat", "my/photos/dog"))
    labels = labels_of(find_images(wrapped))
    assert told(labels) == {"cat": 3, "dog": 3}
    assert labels is not None
    assert labels.notes == [
        "all images lie in my/photos/, so that the folders in it are the classes"
    ]
    assert told(labels_of(find_images(wrapped, tile=64))) == {"cat": 3, "dog": 3}
    one = pack(tmp_path / f"b.{how}", how, folders("cat"))
    assert labels_of(find_images(one)) is None
    assert told(needed_labels(find_images(one))) == {"cat": 3}


def test_names_of_shards_are_no_classes(tmp_path: Path):
    for i in range(3):
        pack(
            tmp_path / "flat" / f"part-{i:03}.tar", "tar", {f"{i}{k}.png": png(k) for k in range(4)}
        )
        pack(tmp_path / "deep" / f"part-{i:03}.tar", "tar", folders("data/cat", "data/dog"))
        split = folders("train/cat", "train/dog", "val/cat", "val/dog")
        pack(tmp_path / "split" / f"part-{i:03}.tar", "tar", split)
    assert labels_of(find_images(tmp_path / "flat")) is None
    with pytest.raises(DataError, match="have no labels: put each class into a folder"):
        needed_labels(find_images(tmp_path / "flat"))
    assert told(labels_of(find_images(tmp_path / "deep"))) == {"cat": 9, "dog": 9}
    images = find_images(tmp_path / "split")
    assert images.parts == ["train", "val"]
    found = Images.of([images], None)
    assert [found.classes[number] for number in found.label] == (["cat"] * 3 + ["dog"] * 3) * 6


def test_names_of_other_archives_may_be_classes_or_parts(tmp_path: Path):
    for name in ("n01440764", "n01443537"):
        pack(tmp_path / "classes" / f"{name}.tar", "tar", {f"{k}.png": png(k) for k in range(4)})
    assert told(labels_of(find_images(tmp_path / "classes"))) == {"n01440764": 4, "n01443537": 4}
    for name in ("train-0", "train-1", "val-0"):
        pack(tmp_path / "parts" / f"{name}.tar", "tar", folders("cat", "dog"))
    images = find_images(tmp_path / "parts")
    assert images.parts == ["train-0.tar", "train-1.tar", "val-0.tar"]
    assert labels_of(images) is None


def test_what_counts_in_its_name_is_a_shard():
    shards = (
        [f"shard-{i:06}.tar" for i in range(9)],
        [f"a-{i:05}-of-00128.tar" for i in (3, 5, 4)],
        ["x1.zip", "x2.zip", "rest.zip"],
        [f"imagenet/train-{i}.tar" for i in range(2)],
    )
    others = (
        ["cat.tar", "dog.tar"],
        ["n01440764.tar", "n01443537.tar", "n01484850.tar"],
        ["train.tar", "val.tar"],
        ["a1.tar"],
        [],
    )
    assert all(map(are_shards, shards))
    assert not any(map(are_shards, others))
