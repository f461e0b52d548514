"""Tables that give labels to images which are listed otherwise: what their paths may mean."""

import json
import os
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim.data.image_names import ImageNames
from simmim.data.labels import Labels, labels_of, needed_labels, read_labels
from simmim.data.sources.find import find_images
from simmim.errors import DataError

NAMES = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/3.jpg"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files in a folder `home/data`, and a link `link` to it."""
    for name in NAMES:
        file = tmp_path / "home" / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "link").symlink_to(tmp_path / "home" / "data")
    return tmp_path / "home" / "data"


def table(file: Path, *paths: str, label: str = "") -> Path:
    """A table whose labels are the folders of its paths, or one for all."""
    rows = (f'"{path}",{label or path.replace(chr(92), "/").split("/")[-2]}' for path in paths)
    file.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    return file


def told(labels: Labels) -> dict[str, str]:
    return {labels.images[row]: labels.classes[label] for row, label in labels.pairs()}


ALL = {name: name.split("/")[0] for name in NAMES}


@pytest.mark.parametrize("where", ["data", ".", "../home/data", "../link", "data/../data", "ABS"])
@pytest.mark.parametrize(
    "form",
    ["{}", "./{}", "data/{}", "data/./{}", "../home/data/{}", "ABS/{}", "LINK/{}", "file://ABS/{}"],
)
def test_the_same_files_are_found_however_both_are_written(
    where: str, form: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(data if where == "." else data.parent)
    where = where.replace("ABS", str(data))
    form = form.replace("ABS", str(data)).replace("LINK", str(tmp_path / "link"))
    for make in (str, lambda path: path.replace("/", "\\")):
        rows = [make(form.format(name)) for name in NAMES]
        if form.startswith("file") and "\\" in rows[0]:
            continue
        labels = read_labels(table(data.parent / "labels.csv", *rows), find_images(where))
        assert told(labels) == ALL
        assert labels.notes == []


def test_files_are_found_through_links_to_folders_and_to_themselves(data: Path, tmp_path: Path):
    farm = tmp_path / "farm"
    (farm / "all").mkdir(parents=True)
    for name in NAMES:
        (farm / "all" / name.replace("/", "-")).symlink_to(data / name)
    (farm / "more").symlink_to(data / "cat")
    rows = table(tmp_path / "labels.csv", *(f"{data}/{name}" for name in NAMES))
    labels = read_labels(rows, find_images(farm))
    linked = {name.replace("/", "-"): name.split("/")[0] for name in NAMES}
    expected = {f"all/{name}": label for name, label in linked.items()}
    assert told(labels) == {**expected, "more/1.jpg": "cat", "more/2.jpg": "cat"}
    farmed = table(tmp_path / "labels.csv", f"{farm}/all/dog-3.jpg", label="dog")
    assert told(read_labels(farmed, find_images(data))) == {"dog/3.jpg": "dog"}


def test_several_sources_and_archives_are_meant_too(data: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for name in NAMES:
            archive.write(data / name, f"./{name}")
    with tarfile.open(tmp_path / "wrapped.tar", "w") as tar:
        tar.add(data, "wrapped")
    for form in ("{}", "pets/{}", f"{tmp_path}/pets/{{}}"):
        rows = table(tmp_path / "labels.csv", *(form.format(name) for name in NAMES))
        assert len(told(read_labels(rows, find_images(tmp_path / "pets.zip")))) == 4
    for form in ("{}", "wrapped/{}"):
        rows = table(tmp_path / "labels.csv", *(form.format(name) for name in NAMES))
        labels = read_labels(rows, find_images(tmp_path / "wrapped.tar"))
        assert told(labels) == {f"wrapped/{name}": label for name, label in ALL.items()}
    both = find_images(data / "cat", data / "dog")
    rows = table(tmp_path / "labels.csv", *(f"home/data/{name}" for name in NAMES))
    assert told(read_labels(rows, both)) == ALL
    rows = table(tmp_path / "labels.csv", *NAMES)
    assert told(read_labels(rows, both)) == ALL
    rows = table(tmp_path / "labels.csv", "3.jpg", "2.jpg", "1.jpg", label="x")
    labels = read_labels(rows, both)
    assert told(labels) == {"dog/3.jpg": "x", "cat/2.jpg": "x"}
    assert labels.notes[0] == (
        "1 of 3 rows of labels.csv may mean any of several images, such as 1.jpg"
    )


def test_names_that_are_spelled_otherwise_are_matched_and_told(tmp_path: Path):
    names = ["Über uns.jpg", "b.JPG", "c.jpeg", "d", "e%f.png"]
    for name in names:
        (tmp_path / unicodedata.normalize("NFD", name)).write_bytes(b"\xff\xd8\xff")
    images = find_images(tmp_path)
    for given in ("Über uns.jpg", "%C3%9Cber%20uns.jpg", "B.jpg", "b", "c.jpg", "D.png", "e%25f"):
        labels = read_labels(table(tmp_path / "t.csv", given, label="x"), images)
        assert len(told(labels)) == 1, given
        assert labels.notes[0] == (
            "1 of 1 rows of t.csv spell names otherwise than the images (case, accents or ending), "
            f"such as {given}"
        )
    exact = read_labels(table(tmp_path / "t.csv", "e%f.png", label="x"), images)
    said = f"t.csv labels 1 of 5 images; the other 4 have no label, such as {images[0]}"
    assert exact.notes == [said]


def test_a_likely_spelling_never_outdoes_the_exact_one(tmp_path: Path):
    for name in ("a.jpg", "b.jpg", "b.png"):
        (tmp_path / name).touch()
    images = find_images(tmp_path)
    file = tmp_path / "t.csv"
    for rows in ("A.JPG,other\na.jpg,cat", "a.jpg,cat\nA.JPG,other"):
        file.write_text(f"path,label\n{rows}\n")
        assert told(read_labels(file, images)) == {"a.jpg": "cat"}
    assert read_labels(file, images).notes[0].startswith("1 of 2 rows of t.csv name no image here")
    file.write_text("path,label\na.jpg,cat\nB,dog\n")
    labels = read_labels(file, images)
    assert told(labels) == {"a.jpg": "cat"}
    assert labels.classes == ["cat"]
    assert labels.notes[0] == "1 of 2 rows of t.csv may mean any of several images, such as B"
    file.write_text("path,label\nA.jpg,cat\nA.JPG,dog\n")
    with pytest.raises(DataError, match=r"line 3: A.JPG has the label 'dog' here and 'cat' before"):
        read_labels(file, images)


def test_tiles_have_the_label_of_their_image(tmp_path: Path, rng: np.random.Generator):
    for name in ("a.png", "b.png"):
        values = rng.integers(0, 256, (64, 96), np.uint8)
        Image.fromarray(values).save(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,cat\nB.png,dog\n")
    labels = labels_of(find_images(tmp_path, tile=32))
    assert labels is not None
    told_of = told(labels)
    assert len(told_of) == 12
    assert all(label == ("cat" if name[0] == "a" else "dog") for name, label in told_of.items())


def test_rows_that_name_nothing_are_counted(data: Path):
    rows = [*NAMES[:3], *(f"gone/{i}.jpg" for i in range(1500))]
    file = table(data.parent / "labels.csv", *rows)
    with file.open("a") as stream:
        stream.write("\ncat/2.jpg,\n")
    labels = read_labels(file, find_images(data))
    assert labels.notes == [
        "1,500 of 1,504 rows of labels.csv name no image here, such as gone/0.jpg",
        "1 of 1,504 rows of labels.csv have no label, such as cat/2.jpg",
        "labels.csv labels 3 of 4 images; the other 1 have no label, such as dog/3.jpg",
    ]
    assert read_labels(file, find_images(data)[:2]).notes == []  # of a sample
    wide = data.parent / "wide.csv"
    wide.write_text("path,label\ncat/1.jpg,a,b\ndog/3.jpg,a,\ncat/2.jpg,c\n")
    assert read_labels(wide, find_images(data)).notes[0] == (
        "1 row has more cells than the header, which are passed over, such as that of cat/1.jpg"
    )
    with pytest.raises(DataError, match="says nothing about the images in"):
        read_labels(table(file, *rows[3:]), find_images(data))


def test_labels_that_are_none_and_columns_that_might_be_meant_are_told(data: Path, tmp_path: Path):
    said = [
        "labels are taken from the column 'label', and not from 'class'",
        "2 labels are -1, which means none, such as that of cat/1.jpg",
    ]
    values = [-1, -1.0, 0, 1.0]
    rows = [{"class": "x", "path": name, "label": v} for name, v in zip(NAMES, values, strict=True)]
    texts = {
        "t.csv": "class,path,label\n" + "".join(f"x,{r['path']},{r['label']}\n" for r in rows),
        "t.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
    }
    classes = {"t.csv": ["0", "1.0"], "t.jsonl": ["0", "1"]}  # text is a name as it is written
    for name, text in texts.items():
        (data.parent / name).write_text(text)
        labels = read_labels(data.parent / name, find_images(data))
        assert list(told(labels)) == NAMES[2:]
        assert labels.classes == classes[name]
        assert labels.notes[:2] == said
        (data / name).write_text(text)
        images = find_images(data / name)
        assert images.infos[0].notes == said
        whole = needed_labels(images)
        assert (list(told(whole)), whole.classes) == (NAMES[2:], classes[name])
        assert find_images(data / name).infos[0].notes == said  # of the list that was kept


def test_no_more_is_looked_for_than_has_to_be(data: Path, listed, tmp_path: Path):
    images = listed(data, NAMES)
    names = ImageNames(images, tmp_path / "t.csv")
    assert names.find("dog/3.jpg") is not None
    assert names._hashes.cache_info().currsize == 1  # type: ignore[attr-defined]
    assert names.find("gone.jpg") is None
    assert names._hashes.cache_info().currsize == 6  # type: ignore[attr-defined]


def test_metadata_gives_labels_to_those_that_it_names(data: Path):
    (data / "metadata.csv").write_text("file_name,label\ncat/1.jpg,a\ndog/3.jpg,b\ngone.jpg,b\n")
    images = find_images(data)
    assert list(images) == NAMES
    labels = labels_of(images)
    assert labels is not None
    assert told(labels) == {"cat/1.jpg": "a", "dog/3.jpg": "b"}
    assert labels.notes == [
        "1 of 3 rows of metadata.csv name no image here, such as gone.jpg",
        "metadata.csv labels 2 of 4 images; the other 2 have no label, such as cat/2.jpg",
    ]
    (data / "metadata.csv").write_text("file_name,label\ncat/1.jpg,c\ndog/3.jpg,d\n")
    labels = labels_of(find_images(data))  # the list of images is the one that was kept
    assert labels is not None
    assert labels.classes == ["c", "d"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("file_name,text\ncat/1.jpg,a cat\n", "have no label, such as cat/1.jpg"),
        ("file_name,label\ncat/1.jpg,\n", "have no label, such as cat/1.jpg"),
        ("path,label\nx,y\n", "name no image here, such as x"),
    ],
)
def test_folders_are_classes_where_metadata_tells_no_labels(text: str, why: str, data: Path):
    (data / "metadata.csv").write_text(text)
    labels = labels_of(find_images(data))
    assert labels is not None
    assert told(labels) == ALL
    said = f"{data}/metadata.csv gives no image a label, so that folders are the classes"
    assert labels.notes == [said, f"1 of 1 rows of metadata.csv {why}"]


def test_metadata_that_comes_later_is_seen(data: Path):
    for folder in (data, data / "cat", data / "dog"):
        os.utime(folder, (1e9, 1e9))
    file = data / "metadata.csv"
    file.write_text("width,height\n1,2\n")
    os.utime(data, (1e9, 1e9))
    assert find_images(data).infos[0].options == {}
    file.write_text("file_name,label\ncat/1.jpg,a\n")
    os.utime(data, (1e9, 1e9))
    assert told(needed_labels(find_images(data))) == {"cat/1.jpg": "a"}


def test_a_path_that_no_file_can_have_names_no_image(data: Path):
    names = ImageNames(find_images(data), data.parent / "t.csv")
    for path in ("a\0b/1.jpg", "", "/", "..", "x" * 5000 + "/1.jpg", "https://host/cat/1.jpg"):
        assert names.find(path) is None
