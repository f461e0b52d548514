"""Folders that are parts of a split, and those that are classes."""

from pathlib import Path

import pytest

from simmim.data.labels import class_folders, labels_of, needed_labels
from simmim.data.parts import find_parts, is_held, place_of, repeated
from simmim.errors import DataError


def parts(*folders: str) -> list[str]:
    return find_parts(dict.fromkeys(folders, 5))


def below(names: tuple[str, ...], *classes: str) -> list[str]:
    return [f"{name}/{each}" for name in names for each in classes]


@pytest.mark.parametrize(
    "names",
    [
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("train2017", "val2017", "test2017"),
        ("train", "dev"),
        ("train", "val", "test", "extra"),
        ("TRAIN", "VALIDATION"),
        ("TrainImages", "TestImages"),
        ("trainset", "holdout"),
        ("my-train", "my-eval"),
        ("train", "unlabeled"),
    ],
)
def test_parts_are_told_by_their_names_whatever_is_in_them(names: tuple[str, ...]):
    assert parts(*names) == list(names)
    assert parts(*below(names, "cat", "dog")) == list(names)
    assert parts(*below(names[:1], "cat", "dog"), *names[1:]) == list(names)
    assert parts(names[0], *below(names, "cat", "dog"), f"{names[1]}/fox") == list(names)
    whole = below(("archive",), *below(names, "cat"))
    assert parts(*whole) == [f"archive/{name}" for name in names]


@pytest.mark.parametrize(
    "names",
    [
        ("fold1", "fold2", "fold3"),
        ("set_a", "set_b"),
        ("train", "gallery"),
        ("learn", "final eval"),
    ],
)
def test_the_same_classes_in_them_tell_of_parts_where_names_alone_do_not(names: tuple[str, ...]):
    assert parts(*names) == []
    assert sorted(parts(*below(names, "cat", "dog"))) == sorted(names)
    assert parts(f"{names[0]}/cat", f"{names[1]}/dog") == []


@pytest.mark.parametrize(
    "names",
    [
        ("cat", "dog"),
        ("train", "tram", "bus"),  # vehicles
        ("train_station", "test_track"),
        ("training", "testing", "eating", "running", "sleeping"),
        ("2019", "2020"),
        ("setter", "partridge", "devon"),
        ("only",),
        (),
    ],
)
def test_classes_are_no_parts(names: tuple[str, ...]):
    assert parts(*names) == []
    assert parts(*(f"{name}/{name}-{i}" for name in names for i in range(3))) == []


def test_classes_with_the_same_folders_in_them_are_no_parts_but_that_is_seen():
    inside = below(("cat", "dog", "train"), "indoor", "outdoor")
    assert parts(*inside) == []
    assert repeated(dict.fromkeys(inside, 5)) == ["indoor", "outdoor"]
    assert repeated({"cat/a": 1, "dog/b": 1, "cat/images": 1, "dog/images": 1}) == []


def test_folders_that_only_wrap_are_part_of_the_path():
    kaggle = [*below(("seg_train/seg_train", "seg_test/seg_test"), "sea", "street")]
    found = parts(*kaggle, "seg_pred/seg_pred")
    assert found == ["seg_train/seg_train", "seg_test/seg_test"]
    names = ["seg_test/seg_test/sea/1.jpg", "seg_pred/seg_pred/1.jpg", "seg_train/seg_train2/1.jpg"]
    assert [place_of(name, found) for name in names] == [1, -1, -1]
    assert [is_held(part) for part in [*found, "train", "a/validation", "extra"]] == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_a_part_with_one_of_the_classes_or_none_is_a_part(listed, tmp_path: Path):
    names = [f"training_set/{name}/{i}.jpg" for name in ("cat", "dog") for i in range(4)]
    names += ["test_set/cat/1.jpg", "test_set/cat/2.jpg", "more/x.jpg"]
    images = listed(tmp_path, names)
    assert images.parts == ["training_set", "test_set"]
    assert labels_of(images) is None
    note = "2 folders are taken for parts of a split, not for classes: "
    assert images.infos[0].notes == [f"{note}training_set, test_set"]
    with pytest.raises(DataError) as error:
        needed_labels(images)
    assert str(error.value) == (
        f"{tmp_path} holds the parts of a split (test_set, training_set): name one of them as "
        f"DATA, such as {tmp_path}/training_set, and another by --val, such as {tmp_path}/test_set."
    )


def test_a_note_tells_of_the_same_folders_in_classes(listed, tmp_path: Path):
    names = [f"{name}/{where}/1.jpg" for name in ("cat", "dog") for where in ("in", "out")]
    labels = class_folders(listed(tmp_path, names))
    assert labels is not None
    assert labels.classes == ["cat", "dog"]
    assert labels.notes == [
        "folders are the classes, though the same ones (in, out) lie in them",
    ]
