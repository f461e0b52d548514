import os
from pathlib import Path

import pytest

from simmim.data.labels import check_classes, class_folders, labels_of, needed_labels, read_labels
from simmim.data.sources.find import find_images
from simmim.errors import DataError

PATHS = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/3.jpg", "dog/x/4.jpg"]


def test_folders_are_classes_where_nearly_all_images_lie_in_them(listed, tmp_path: Path):
    images = listed(tmp_path, PATHS)
    found = class_folders(images)
    assert found is not None
    assert found.classes == ["cat", "dog"]
    assert list(found.pairs()) == [(i, int(p.startswith("dog"))) for i, p in enumerate(PATHS)]
    numbers = class_folders(listed(tmp_path, [f"{i % 11}/{i}.jpg" for i in range(44)]))
    assert numbers is not None
    assert numbers.classes == [str(i) for i in range(11)]
    mixed = listed(tmp_path, [f"c{i % 2}/{i}.jpg" for i in range(99)] + ["stray.jpg"])
    found = class_folders(mixed)
    assert found is not None
    assert found.of(99) is None
    assert len(list(found.pairs())) == 99


def test_names_of_classes_that_are_no_utf8_can_be_written(listed, tmp_path: Path):
    odd = [
        f"{os.fsdecode(b'odd' + bytes([byte]))}/{i}.jpg" for byte in b"\xfe\xff" for i in range(3)
    ]
    found = class_folders(listed(tmp_path, odd))
    assert found is not None
    assert found.classes == ["odd\\xfe", "odd\\xff"]
    assert sorted(label for _, label in found.pairs()) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "paths",
    [
        ["1.jpg", "2.jpg"],
        [f"only/{i}.jpg" for i in range(9)],
        ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "stray.jpg"],
        [f"patient{i}/scan.png" for i in range(9)],
        ["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/1.jpg", "val/dog/1.jpg"],
    ],
)
def test_other_folders_are_no_classes(paths: list[str], listed, tmp_path: Path):
    assert class_folders(listed(tmp_path, paths)) is None


def test_where_classes_are_needed_one_image_in_each_will_do(listed, tmp_path: Path):
    images = listed(tmp_path, [f"{name}/a.jpg" for name in ("hat", "shoes", "dress")])
    assert labels_of(images) is None
    labels = needed_labels(images)
    assert labels.classes == ["dress", "hat", "shoes"]
    assert list(labels.pairs()) == [(0, 1), (1, 2), (2, 0)]
    check_classes(labels)


def test_folders_without_images_and_images_without_folders_are_told(tmp_path: Path):
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "fox/notes.txt", "@eaDir/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "gnu").mkdir()
    labels = class_folders(find_images(tmp_path), asked=True)
    assert labels is not None
    assert labels.classes == ["cat", "dog"]
    assert labels.notes == ["2 of 4 folders hold no image, and are no classes: fox, gnu"]
    for i in range(60):
        (tmp_path / "cat" / f"more{i}.jpg").touch()
    (tmp_path / "stray.jpg").touch()
    labels = class_folders(find_images(tmp_path))
    assert labels is not None
    assert labels.notes[0] == "1 of 64 images lie in no folder, and have no class"


def test_one_class_is_none(tmp_path: Path, listed):
    for name in ("dress/1.jpg", "dress/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "hat").mkdir()
    with pytest.raises(DataError) as error:
        check_classes(needed_labels(find_images(tmp_path)))
    assert str(error.value) == (
        f"{tmp_path} has one class only, dress, and two are needed at least; "
        "1 of 2 folders hold no image, and are no classes: hat."
    )
    inner = listed(tmp_path, ["pets/cat/1.jpg", "pets/dog/1.jpg"])
    with pytest.raises(DataError, match=f"if the folders in pets .*, name {tmp_path}/pets as DATA"):
        check_classes(needed_labels(inner))
    (tmp_path / "t.csv").write_text("path,label\ndress/1.jpg,a\ndress/2.jpg,a\n")
    with pytest.raises(DataError, match="has one class only, a, and"):
        check_classes(needed_labels(find_images(tmp_path), tmp_path / "t.csv"))


def test_it_is_said_why_there_are_no_labels(listed, tmp_path: Path):
    with pytest.raises(DataError, match=r"have no labels: put each class into a folder.*--labels"):
        needed_labels(listed(tmp_path, ["1.jpg", "2.jpg"]))
    mixed = [f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(9)] + ["1.jpg", "2.jpg"]
    with pytest.raises(
        DataError, match=r"2 of the 20 images in .* lie in no folder, so that the fo"
    ):
        needed_labels(listed(tmp_path, mixed))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,label\ncat/1.jpg,cat\ndog/3.jpg,dog\nother.jpg,fish\n"),
        ("a.csv", '\ufeffImage_Path; note ;CLASS\r\n"cat/1.jpg";x;cat\r\n./dog/3.jpg;y;dog\r\n'),
        ("a.tsv", "filename\tlabel\n2.jpg\tcat\n3.jpg\tdog\ncat\\1.jpg\tcat\n"),
        (
            "a.jsonl",
            '{"file_name": "cat/1.jpg", "label": "cat"}\n\n{"file_name": "3.jpg", "label": "dog"}',
        ),
        ("a.csv", "path,label\nROOT/cat/1.jpg,cat\nROOT/dog/3.jpg,dog\n"),
        ("a.csv", "path,label\nimages/cat/1.jpg,cat\nimages/dog/3.jpg,dog\n"),
    ],
)
def test_tables_of_many_makes_are_read(name: str, text: str, tmp_path: Path, listed):
    root = tmp_path / "images"
    (tmp_path / name).write_text(text.replace("ROOT", str(root)), encoding="utf-8")
    found = read_labels(tmp_path / name, listed(root, PATHS))
    assert found.classes == ["cat", "dog"]
    assert found.of(PATHS.index("dog/3.jpg")) == 1
    assert 0 in {found.of(PATHS.index("cat/1.jpg")), found.of(PATHS.index("cat/2.jpg"))}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,kind\ncat/1.jpg,cat\n", "tells no labels.*another name than label, class"),
        ("path,label\ncat/1.jpg,\ncat/2.jpg, \n", "tells no labels"),
        ("path,label\ncat/1.jpg,-1\n", "tells no labels: 1 label is -1, which means none"),
        ("what,label\ncat/1.jpg,cat\n", "line 1: no column of paths; it has 'what', 'label'"),
        ("path,label\n,cat\n", r"line 2.*column 'path'"),
        ("path,label\ncat/1.jpg,cat\ncat/1.jpg,dog\n", r"line 3.*'dog' here and 'cat' before"),
        ("path,label\n1.jpg,cat\n", "says nothing about.*'1.jpg', which may mean any.*'cat/1.jpg'"),
        ("path,label\n", "no rows"),
        ("", "no rows"),
    ],
)
def test_errors_name_line_and_column(text: str, message: str, tmp_path: Path, listed):
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_labels(file, listed(tmp_path, PATHS))


def test_damaged_tables_are_one_error(tmp_path: Path, listed):
    file = tmp_path / "labels.jsonl"
    with pytest.raises(DataError, match="no table"):
        read_labels(file, listed(tmp_path, PATHS))
    file.write_text('{"path": "cat/1.jpg", "label": 1}\n{"path"')
    with pytest.raises(DataError, match="line 2: not JSON"):
        read_labels(file, listed(tmp_path, PATHS))
    file.write_bytes(b"\xfa\x80")
    with pytest.raises(DataError, match="UTF-8"):
        read_labels(file, listed(tmp_path, PATHS))
