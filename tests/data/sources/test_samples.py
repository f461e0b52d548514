"""Samples in tar files: each image has its own label, whatever lies beside it and in what order."""

import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from test_archives import add, png

from simmim.data.labels import labels_of
from simmim.data.sources import members
from simmim.data.sources.archive import TarSource
from simmim.data.sources.find import find_images


def tar_of(file: Path, files: Mapping[str, bytes | str]) -> Path:
    """Pack files in the order given; where there is text, it is that of a label."""
    with tarfile.open(file, "w") as tar:
        for name, content in files.items():
            add(tar, name, content.encode() if isinstance(content, str) else content)
    return file


def told(file: Path) -> tuple[dict[str, str | None], list[str]]:
    """The label of each image, and the notes."""
    images = find_images(file)
    return {images[i]: images.label(i) for i in range(len(images))}, images.infos[0].notes


def test_names_with_dots_have_labels_of_their_own(tmp_path: Path):
    files, expected = {}, {}
    for slide in range(3):
        for tile in range(4):
            name = f"train/slide{slide}.tile{tile}"
            files[f"{name}.png"] = png(slide)
            files[f"{name}.cls"] = expected[f"{name}.png"] = f"{(slide + tile) % 3}"
    assert told(tar_of(tmp_path / "a.tar", files)) == (expected, [])
    labels = labels_of(find_images(tmp_path / "a.tar"))
    assert labels is not None
    assert labels.classes == ["0", "1", "2"]


def test_a_label_may_be_called_after_the_whole_name_of_its_image(tmp_path: Path):
    files = {"a.1.png": png(1), "a.1.png.json": '{"label": "x"}', "a.png": png(2), "a.cls": "y"}
    assert told(tar_of(tmp_path / "a.tar", files)) == ({"a.1.png": "x", "a.png": "y"}, [])


def test_what_does_not_pair_up_is_said(tmp_path: Path):
    files = {
        **{"s.1.png": png(1), "s.1.cls": "a", "s.2.png": png(2), "s.3.png": png(3)},
        **{"s.4.cls": "b", "t.json": '{"label": "c"}', "info.json": '{"license": "CC0"}'},
    }
    found, notes = told(tar_of(tmp_path / "a.tar", files))
    assert found == {"s.1.png": "a", "s.2.png": None, "s.3.png": None}
    assert notes == [
        "2 labels beside no image of that name, such as t",
    ]
    del files["s.1.cls"], files["s.4.cls"], files["t.json"]
    assert told(tar_of(tmp_path / "a.tar", files)) == (dict.fromkeys(found), [])


def test_the_label_of_a_sample_is_that_of_all_its_images(tmp_path: Path):
    files = {
        **{"7.left.jpg": png(1), "7.right.jpg": png(2), "7.json": '{"label": 3}'},
        **{"8.0.jpg": png(3), "8.1.jpg": png(4), "8.1.cls": "5", "8.cls": "4"},
        **{"9.tif": png(3), "9.png": png(4), "9.cls": "6"},
    }
    found, notes = told(tar_of(tmp_path / "a.tar", files))
    expected = {"7.left.jpg": "3", "7.right.jpg": "3", "8.0.jpg": "4", "8.1.jpg": "5"}
    assert found == {**expected, "9.tif": "6", "9.png": "6"}
    assert notes == [
        "2 samples of several images: all of them are used, such as 7.left.jpg and 7.right.jpg"
    ]


@pytest.mark.parametrize("order", ["samples", "sorted", "kinds"])
@pytest.mark.parametrize("teller", ["cls", "json", "none"])
def test_files_beside_the_image_of_a_sample_are_none(order: str, teller: str, tmp_path: Path):
    label = {"cls": "1", "json": '{"label": 1}', "none": "a caption"}[teller]
    files: dict[str, bytes | str] = {}
    for i in range(4):
        files |= {
            f"{i}.jpg": png(i),
            f"{i}.seg.png": png(0),
            f"{i}.emb.npy": b"x",
            f"{i}.npy": b"x",
        }
        files |= {f"{i}.{teller}": label}
    del files["2.jpg"], files["2.npy"]
    names = {"samples": None, "sorted": str, "kinds": lambda name: name.partition(".")[2]}[order]
    ordered = sorted(files, key=names) if names else list(files)
    found, notes = told(tar_of(tmp_path / "a.tar", {name: files[name] for name in ordered}))
    known = None if teller == "none" else "1"
    assert found == {f"{i}.jpg": known for i in (0, 1, 3)}
    beside = [note for note in notes if "not used as images" in note]
    assert [note.partition(",")[0] for note in beside] == [
        "11 files beside the images of samples are not used as images"
    ]
    kinds = sorted(beside[0].partition("(")[2].rstrip(")").split(", "))
    assert kinds == ["3 .npy", "4 .emb.npy", "4 .seg.png"]


def test_what_lies_alone_is_an_image_unless_most_of_its_kind_lie_beside_one(tmp_path: Path):
    files = {"a.jpg": png(1), "a.2.jpg": png(2), "b.2.jpg": png(3), "c.2.jpg": png(4)}
    found, notes = told(tar_of(tmp_path / "a.tar", files))
    assert list(found) == ["a.jpg", "b.2.jpg", "c.2.jpg"]
    assert "1 file beside the images of samples is not used as images, such as a.2.jpg" in notes[0]
    files = {"1.npy": png(1), "2.npy": png(2), "3.npy": png(3), "3.jpg": png(4), "4.jpg": png(5)}
    found, notes = told(tar_of(tmp_path / "b.tar", files | {"4.npy": png(6), "9.2.3.dcm": b"x"}))
    assert list(found) == ["1.npy", "2.npy", "3.jpg", "4.jpg", "9.2.3.dcm"]


def test_what_lies_beside_images_whose_names_have_dots(tmp_path: Path):
    images = {f"s{i % 2}.t{i}.png": png(i) for i in range(4)}
    masks = {f"s{i % 2}.t{i}.mask.png": png(i) for i in range(4)}
    versions = {"v1.2.png": png(1), "v1.2.3.png": png(2)}
    found, notes = told(tar_of(tmp_path / "a.tar", images | masks | versions))
    assert found == dict.fromkeys(images | versions)
    assert notes[0].endswith("such as s0.t0.mask.png (4 .mask.png)")
    labels = {f"s{i % 2}.t{i}.cls": str(i) for i in range(3)}
    del images["s1.t1.png"]
    found, notes = told(tar_of(tmp_path / "b.tar", images | masks | labels))
    assert found == {"s0.t0.png": "0", "s0.t2.png": "2", "s1.t3.png": None}
    assert notes[0].startswith("4 files beside")


def test_members_of_a_sample_may_lie_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = {f"{i:03}.png": png(i) for i in range(20)}
    labels = {f"{i:03}.cls": str(i % 3) for i in range(20)}
    files = labels | {f"{i:03}.json": "{}" for i in range(20)} | images
    expected = {f"{i:03}.png": str(i % 3) for i in range(20)}
    assert told(tar_of(tmp_path / "a.tar", images | labels)) == (expected, [])
    assert told(tar_of(tmp_path / "b.tar", files)) == (expected, [])
    # Where there are too many of them to be held, what cannot be found is said.
    monkeypatch.setattr(members, "HELD", 10)
    found, notes = told(tar_of(tmp_path / "c.tar", dict(sorted(files.items()))))
    assert (found, notes) == (expected, [])
    found, notes = told(tar_of(tmp_path / "d.tar", images | labels))
    assert found == dict.fromkeys(images)
    assert notes == ["20 labels beside no image of that name, such as 000"]


def test_one_endless_sample_is_not_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(members, "HELD", 10)
    images = [f"frame.{i}.png" for i in range(44)]
    files = {name: png(1) for name in images} | {"frame.cls": "a"}
    found = told(tar_of(tmp_path / "a.tar", files))[0]
    assert found == dict.fromkeys(images[:40]) | dict.fromkeys(images[40:], "a")


def test_what_systems_leave_in_a_tar_belongs_to_no_sample(tmp_path: Path):
    files: dict[str, bytes | str] = {"./.DS_Store": b"x", "__MACOSX/0.cls": "7"}
    for i in range(6):
        for name, content in ((f"{i}.png", png(i)), (f"{i}.cls", str(i % 2))):
            files |= {f"./._{name}": b"\0\5\x16\7", f"./{name}": content}
    expected = {f"{i}.png": str(i % 2) for i in range(6)}
    assert told(tar_of(tmp_path / "a.tar", files)) == (expected, [])


def test_labels_that_contradict_are_said(tmp_path: Path):
    names = ["cat", "dog", "cow"]
    files: dict[str, bytes | str] = {}
    for i in range(9):
        files |= {f"{i}.png": png(i), f"{i}.cls": str(i % 3)}
        files |= {f"{i}.json": f'{{"label": "{names[i % 3]}"}}'}
    assert told(tar_of(tmp_path / "a.tar", files))[1] == []
    found, notes = told(tar_of(tmp_path / "b.tar", files | {"4.cls": "2", "5.cls": "0"}))
    assert found == {f"{i}.png": names[i % 3] for i in range(9)}
    assert notes == [
        "2 labels in .json and .cls contradict: that in .json is taken, such as 'dog' and '2' of 4"
    ]


def test_labels_that_are_none_are_said(tmp_path: Path):
    contents = {
        **{"a.cls": "-1\n", "b.json": '{"label": -1}', "c.json": '{"label": [1, 2]}'},
        **{"d.json": '{"label": 2.0}', "e.json": "{", "f.json": '{"label": null}', "g.cls": " "},
    }
    images = {f"{name}.png": png(1) for name in "abcdefg"}
    found, notes = told(tar_of(tmp_path / "a.tar", images | contents))
    assert found == dict.fromkeys(images) | {"d.png": "2"}
    assert notes == [
        "2 labels are -1, which means none, such as that of a.cls",
        "1 label is no name or whole number and taken for none, such as [1, 2] of c.json",
        "1 .json file cannot be read as JSON, such as e.json",
    ]


def test_notes_are_of_all_shards_and_of_one_listing(tmp_path: Path):
    for i in range(2):
        files = {"0.png": png(1), "0.cls": "a", "1.seg.png": png(2), "1.png": png(2)}
        tar_of(tmp_path / f"{i}.tar", files | {f"{2 + i}.cls": "b"})
    source = TarSource("", sorted(tmp_path.glob("*.tar")))
    for _ in range(2):
        assert len(list(source.entries())) == 4
        assert source.info().notes == [
            "2 files beside the images of samples are not used as images, such as "
            "0.tar/1.seg.png (2 .seg.png)",
            "2 labels beside no image of that name, such as 0.tar/2",
        ]
