"""COCO's json."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from simmim.data.sources import coco
from simmim.data.sources.coco import CocoSource, coco_source
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.data.sources.tables.image_table import TableReader
from simmim.errors import DataError

SHARED = Path(__file__).parents[4] / "shared" / "data"


def content(names: list[str]) -> dict[str, Any]:
    return {
        "info": {"description": 'of "images": no list'},
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 7, "bbox": [1, 2, 3, 4.5], "iscrowd": 0},
            {"id": 2, "image_id": 11, "category_id": 3, "bbox": [0, 0, 8, 6], "iscrowd": 1},
            {"id": 3, "image_id": 10, "category_id": 3, "bbox": [1, 2, 0, 4]},
            {"id": 4, "image_id": 99, "category_id": 3, "bbox": [1, 2, 3, 4]},
            {"id": 5, "image_id": 10, "category_id": 99, "bbox": [1, 2, 3, 4]},
            {"id": 6, "image_id": 10, "category_id": 3},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cät"}],
        "images": [
            {"id": 10 + i, "file_name": name, "height": 6, "width": 8}
            for i, name in enumerate(names)
        ],
    }


def write(file: Path, names: list[str], **changes: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content(names) | changes), encoding="utf-8")
    return file


def picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(file)


@pytest.mark.parametrize(
    "images",
    ["annotations", "", "images", "annotations/images", "train2017", "images/train2017", "train"],
)
def test_images_are_found_wherever_coco_is_kept(images: str, tmp_path: Path):
    name = "instances_train.json" if images == "train" else "instances_train2017.json"
    file = write(tmp_path / "annotations" / name, ["ä.png", "b.png", "gone.png"])
    for name in ("ä.png", "b.png"):
        picture(tmp_path / images / name)
    source = coco_source(str(file))
    assert source is not None
    entries = list(source.entries())
    assert [(entry.name, entry.label) for entry in entries] == [
        ("ä.png", None),
        ("b.png", None),
        ("gone.png", None),
    ]
    assert source.info().parts == [str(tmp_path / images) if images else str(tmp_path)]
    assert TableReader(source.info()).read(entries[1]) == (tmp_path / images / "b.png").read_bytes()


def boxes_of(images: Listing, i: int) -> list[tuple[object, ...]]:
    """Left, top, right, bottom, category and crowd of each box."""
    boxes = images.boxes(i)
    return [
        (*corners, category, crowd)
        for corners, category, crowd in zip(
            boxes.corners.tolist(), boxes.categories.tolist(), boxes.crowd.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_boxes_belong_to_the_names_of_the_listing(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(coco, "CHUNK", max(chunk, 64))
    file = write(tmp_path / "a.json", ["sub\\x.png", "./y.png"])
    for name in ("sub/x.png", "y.png"):
        picture(tmp_path / name)
    images = find_images(file)
    assert list(images) == ["sub/x.png", "y.png"]
    assert images.categories == ["cät", "dog"]
    assert boxes_of(images, 0) == [(1, 2, 4, 6.5, 1, False)]
    assert boxes_of(images, 1) == [(0, 0, 8, 6, 0, True)]
    assert images.boxes(0).frame == (6, 8)
    assert images.infos[0].notes == [
        "1 box is partly outside of the image, and cut off there, such as annotation 1",
        "1 box without area is left out, such as annotation 3",
        "1 annotation of no image that is listed is left out, such as annotation 4",
        "1 box of a category that is not listed is left out, such as annotation 5 (1 category 99)",
        "1 annotation without a box is left out, such as annotation 6",
    ]


def test_an_image_that_is_listed_twice_is_one(tmp_path: Path):
    picture(tmp_path / "x.png")
    images = find_images(write(tmp_path / "a.json", ["x.png", "x.png"]))
    assert list(images) == ["x.png"]
    assert images.infos[0].notes[0] == "1 entries name an image again"
    assert [box[4] for box in boxes_of(images, 0)] == [1, 0]


def test_errors_say_what_and_where(tmp_path: Path):
    file = write(tmp_path / "a.json", ["x.png", "y.png"])
    with pytest.raises(
        DataError, match=r"none of the first 2 files .*a\.json names.*'x.png'; tried"
    ):
        list(CocoSource(file).entries())
    picture(tmp_path / "x.png")
    text = file.read_text()
    file.write_text(text[: text.rindex("y.png")])
    with pytest.raises(DataError, match='damaged in its list of "images"'):
        list(CocoSource(file).entries())
    write(file, ["x.png"], images=[{"id": 1, "file_name": "x.png"}, {"id": 2}])
    with pytest.raises(DataError, match=r"image number 1 .id 2. has no"):
        list(CocoSource(file).entries())
    write(file, ["x.png"], images=[{"id": 1, "file_name": "x.png"}, 5])
    with pytest.raises(DataError, match='"images" holds 5, not objects'):
        list(CocoSource(file).entries())
    file.write_bytes(text.encode().replace(b"x.png", b"\xff.png"))
    with pytest.raises(DataError):
        list(CocoSource(file).entries())


def test_other_json_is_not_coco(tmp_path: Path):
    for text in ("", "[]", "{}", '[{"path": "a"}]', '{"images": []}', '{"images": ["a"]}', "{"):
        (tmp_path / "a.json").write_text(text)
        source = coco_source(str(tmp_path / "a.json"))
        if source is not None:
            with pytest.raises(DataError):
                list(source.entries())
        assert (source is not None) == (text == '{"images": ["a"]}')


@pytest.mark.skipif(
    not (SHARED / "blood-cells.tar.gz").exists(), reason="the shared test data are not here"
)
def test_blood_cells(tmp_path: Path):
    import tarfile

    with tarfile.open(SHARED / "blood-cells.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    file = tmp_path / "blood-cells" / "annotations" / "instances_train.json"
    whole = json.loads(file.read_text())
    images = find_images(file)
    assert len(images) == len(whole["images"]) == 205
    places = {each["id"]: each["file_name"] for each in whole["images"]}
    names = {each["id"]: each["name"] for each in whole["categories"]}
    told = [
        (places[each["image_id"]].rpartition("/")[2], names[each["category_id"]], each["bbox"])
        for each in whole["annotations"]
    ]
    found = [
        (images[i].rpartition("/")[2], images.categories[category], [x, y, right - x, bottom - y])
        for i in range(len(images))
        for x, y, right, bottom, category, _ in boxes_of(images, i)
    ]
    assert len(found) + sum(min(box[2:]) <= 0 for *_, box in told) == len(told)
    assert all(box in found for box in told if min(box[2][2:]) > 0)
    first = images.open(0)
    assert (first.height, first.width) == images.boxes(0).frame
