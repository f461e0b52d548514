"""Boxes in COCO's, YOLO's and Pascal VOC's files, as detection reads them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simmim.config.resolved import PixelFormat
from simmim.data.loading.images import Annotation, ImageSet
from simmim.data.loading.loader import load_views
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.data.sources.segmentation import encode_mask
from simmim.data.sources.yolo import folders_to_measure_on
from simmim.errors import DataError

PIXELS = PixelFormat(channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.2,) * 3)
CORNERS = [[8, 4, 24, 16], [0, 0, 40, 20]]
"""The boxes of each image of 40×20 pixels, of the classes dog and cat."""
NAMES = ("a.png", "b.png")


def pictures(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (40, 20)).save(folder / name)
    return folder


def coco(file: Path, boxes: list[Any] | None = None, **changes: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    told = boxes or [[x, y, right - x, bottom - y] for x, y, right, bottom in CORNERS]
    content = {
        "images": [
            {"id": 5 + i, "file_name": name, "height": 20, "width": 40}
            for i, name in enumerate(NAMES)
        ],
        "annotations": [
            {"id": 100 + k, "image_id": 5, "category_id": k % 2, "bbox": box}
            for k, box in enumerate(told)
        ],
        "categories": [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}],
    }
    file.write_text(json.dumps(content | changes))
    return file


def yolo(root: Path, *lines: str, images: str = "images/train") -> Path:
    pictures(root / images)
    labels = root / images.replace("images", "labels")
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("\n".join(lines or ["0 0.4 0.5 0.4 0.6", "1 .5 .5 1 1", ""]))
    (root / "data.yaml").write_text(f"train: {images}\nnames: [dog, cat]\n")
    return root / "data.yaml"


def voc(root: Path, *objects: str) -> Path:
    pictures(root / "JPEGImages")
    (root / "Annotations").mkdir()
    told = objects or (item("dog", 9, 5, 24, 16), item("cat", 1, 1, 40, 20))
    size = "<size><width>40</width><height>20</height></size>"
    text = f"<annotation><filename>old.png</filename>{size}{''.join(told)}</annotation>"
    (root / "Annotations" / "a.xml").write_text(text)
    (root / "Annotations" / "b.xml").write_text(f"<annotation>{size}</annotation>")
    return root


def item(name: str, *corners: float, difficult: int = 0) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    hard = f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{hard}<bndbox>{box}</bndbox></object>"


def told(images: Listing, i: int = 0) -> list[tuple[str, list[float]]]:
    boxes = images.boxes(i).within((20, 40))
    names = [images.categories[k] for k in boxes.categories]
    return list(zip(names, np.round(boxes.corners, 4).tolist(), strict=True))


def notes(*data: Path) -> list[str]:
    return [note for info in find_images(*data, boxes=True).infos for note in info.notes]


@pytest.mark.parametrize(
    "kind", ["coco", "folder", "split", "yolo", "part", "parts", "voc", "list"]
)
def test_the_same_boxes_are_read_of_every_layout(kind: str, tmp_path: Path):
    if kind in ("coco", "folder", "split"):
        folder = pictures(tmp_path / "train")
        at = folder / "_annotations.coco.json"
        file = coco(tmp_path / "annotations/instances_train.json" if kind == "split" else at)
        data = file if kind == "coco" else folder
    elif kind in ("yolo", "part", "parts"):
        images = "train/images" if kind == "parts" else "images/train"
        data = yolo(tmp_path, images=images)
        data = {"yolo": data, "part": tmp_path / images, "parts": tmp_path / "train"}[kind]
    else:
        data = voc(tmp_path)
        lists = tmp_path / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("a\nb\n")
        data = lists / "train.txt" if kind == "list" else data
    images = find_images(data, boxes=True)
    assert [Path(name).name for name in images] == list(NAMES)
    assert told(images) == [("dog", CORNERS[0]), ("cat", CORNERS[1])]
    assert told(images, 1) == []
    assert [note for note in images.infos[0].notes if "passed over" not in note] == []
    found = ImageSet(images, PIXELS, annotations=frozenset({"boxes"}))
    (_, batch), *_ = load_views(found, (40, 40), bad={})
    assert batch.boxes is not None
    assert batch.boxes[0, 0].round(decimals=3).tolist() == [0, 8, 28, 32]  # the centre, doubled
    assert batch.frames is not None
    assert batch.frames.tolist() == [[20, 40]] * 2


def test_what_is_changed_is_read_again(tmp_path: Path):
    file = yolo(tmp_path / "yolo")
    assert len(told(find_images(file, boxes=True))) == 2
    (tmp_path / "yolo/labels/train/a.txt").write_text("1 .5 .5 .1 .1\n")
    assert len(told(find_images(file, boxes=True))) == 1
    folder = voc(tmp_path / "voc")
    assert len(told(find_images(folder, boxes=True))) == 2
    (folder / "Annotations/a.xml").write_text(f"<annotation>{item('dog', 1, 1, 2, 2)}</annotation>")
    assert told(find_images(folder, boxes=True)) == [("dog", [0, 0, 2, 2])]


def test_each_box_that_is_not_as_it_should_be_is_counted_and_said(tmp_path: Path):
    boxes = [[8, 4, 16, 12], [30, 4, 20, 4], [50, 4, 5, 5], [8, 4, 0, 12]]
    file = coco(pictures(tmp_path / "coco") / "a.json", boxes)
    said = [
        "1 box is partly outside of the image, and cut off there, such as {}",
        "1 box outside of the image is left out, such as {}",
        "1 box without area is left out, such as {}",
    ]
    assert notes(file) == [each.format(f"annotation {k}") for k, each in enumerate(said, 101)]
    assert told(find_images(file, boxes=True)) == [("dog", CORNERS[0]), ("cat", [30, 4, 50, 8])]
    lines = ["0 .4 .5 .4 .6", "1 1 .3 .5 .2", "1 1.3 .3 .5 .2", "0 .1 .1 0 .1", "7 .1 .1 .1 .1"]
    said += ["1 box of a category that is not listed is left out, such as {} (1 class 7)"]
    where = [f"line {k} of labels/train/a.txt" for k in (2, 3, 4, 5)]
    found = notes(yolo(tmp_path / "yolo", *lines))
    assert found == [text.format(each) for text, each in zip(said, where, strict=True)]
    hard = item("dog", 1, 1, 2, 2, difficult=1)
    folder = voc(tmp_path / "voc", item("dog", 9, 5, 24, 16), item("cat", 30, 1, 60, 9), hard)
    (folder / "JPEGImages/b.png").rename(folder / "JPEGImages/c.png")
    assert notes(folder) == [
        "1 box is partly outside of the image, and cut off there, such as object 2 of a.xml",
        "1 box called difficult is neither learned from nor judged by, such as object 3 of a.xml",
        "1 .xml of no image that is there is left out, such as b.xml",
        "1 image without an .xml is left out, such as c.png",
    ]
    assert find_images(folder, boxes=True).boxes(0).crowd.tolist() == [False, False, True]


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc"])
def test_negative_sizes_are_an_error_that_names_file_and_box(kind: str, tmp_path: Path):
    if kind == "coco":
        data = coco(pictures(tmp_path) / "a.json", [[8, 4, -3, 12]])
        where = r"a\.json: 1 box has a negative width or height, such as annotation 100\. Correct"
    elif kind == "yolo":
        data, where = yolo(tmp_path, "0 .5 .5 .1 -.1"), "such as line 1 of labels/train/a.txt"
    else:
        data, where = voc(tmp_path, item("dog", 9, 5, 4, 16)), "such as object 1 of a.xml"
    with pytest.raises(DataError, match=where):
        ImageSet(find_images(data, boxes=True), PIXELS, annotations=frozenset({"boxes"}))


def test_what_tells_no_boxes_is_refused_in_words(tmp_path: Path):
    folder = pictures(tmp_path / "plain")
    cases: list[tuple[Path, str]] = [(folder, "tells no boxes. Give COCO's json")]
    (tmp_path / "a.json").write_text('{"names": []}')
    cases.append((tmp_path / "a.json", "json of another kind: COCO's is an object"))
    for text, said in (
        ("{", "cannot read"),
        ("train: images\n", "gives no names of classes"),
        ("train: gone\nnames: [a]\n", r"a\.yaml names gone, and there is nothing at"),
        ("val: plain\nnames: [a]\n", "names no folder of images as train"),
    ):
        file = tmp_path / f"{len(cases)}" / "a.yaml"
        file.parent.mkdir()
        file.write_text(text)
        cases.append((file, said))
    for line, said in (
        ("dog .1 .1 .1 .1", "line 1: 'dog .1 .1 .1 .1' is no box"),
        ("0 .1 .1 .1", "is no box"),
        ("0 12 10 8 4", "is in pixels, it seems"),
    ):
        cases.append((yolo(tmp_path / f"{len(cases)}", line), said))
    for text in ("<annotation>", "<annotation><object><name>a</name></object></annotation>"):
        bad = voc(tmp_path / f"{len(cases)}")
        (bad / "Annotations/a.xml").write_text(text)
        cases.append((bad, r"a\.xml is no annotation of Pascal VOC's"))
    several = pictures(tmp_path / "several")
    for name in ("train", "val"):
        coco(several / "annotations" / f"instances_{name}.json")
    cases.append((several, r"several of COCO's files: name one of .*instances_train\.json"))
    for data, said in cases:
        with pytest.raises(DataError, match=said):
            find_images(data, boxes=True)


SQUARE = np.zeros((20, 40), bool)
SQUARE[4:16, 8:24] = True


@pytest.mark.parametrize("kind", ["polygon", "runs", "yolo"])
def test_the_same_masks_are_read_of_every_layout(kind: str, tmp_path: Path):
    polygon = [8, 4, 24, 4, 24, 16, 8, 16]
    if kind == "yolo":
        shares = " ".join(str(x / side) for x, side in zip(polygon, [40, 20] * 4, strict=True))
        data = yolo(tmp_path, "0 " + shares, "1 .5 .5 1 1")
    else:
        boxes = [[8, 4, 16, 12], [0, 0, 40, 20], [9, 4, 0, 12], [0, 0, 9, 9]]
        data = coco(pictures(tmp_path) / "a.json", boxes)
        told = json.loads(data.read_text())
        shape = [polygon] if kind == "polygon" else encode_mask(SQUARE)
        for annotation, each in zip(
            told["annotations"], (shape, [], shape, [[1, 2, 3]]), strict=True
        ):
            annotation["segmentation"] = each
        data.write_text(json.dumps(told))
    images = find_images(data, boxes=True)
    first, *others = images.masks(0, (20, 40))
    assert np.array_equal(first, SQUARE)
    assert len(others) == len(images.boxes(0).corners) - 1
    assert not any(mask.any() for mask in others)
    assert [bool(text) for text in images.outlines(0)] == [True, *(False for _ in others)]
    assert list(images.masks(1, (20, 40))) == []


def test_what_has_no_masks_and_what_is_damaged_are_told(tmp_path: Path):
    asked = frozenset[Annotation]({"boxes", "masks"})
    for data in (voc(tmp_path / "voc"), coco(pictures(tmp_path) / "a.json"), yolo(tmp_path / "y")):
        with pytest.raises(DataError, match="has no masks: COCO's json whose objects have a"):
            ImageSet(find_images(data, boxes=True), PIXELS, annotations=asked)
    file = coco(tmp_path / "b.json")
    told = json.loads(file.read_text())
    told["annotations"][1]["segmentation"] = {"size": [9, 9], "counts": [81]}
    file.write_text(json.dumps(told))
    bad: dict[str, str] = {}
    list(
        load_views(
            ImageSet(find_images(file, boxes=True), PIXELS, annotations=asked), (40, 40), bad=bad
        )
    )
    reason = "the mask of its object 2: runs of [9, 9], not of [20, 40] pixels"
    assert bad == {"a.png": reason}


def test_polygons_of_yolo_are_boxes_and_roboflows_paths_are_found(tmp_path: Path):
    file = yolo(tmp_path, "0 .1 .2 .3 .2 .2 .6", images="train/images")
    shutil.copytree(tmp_path / "train", tmp_path / "valid")
    file.write_text("train: ../train/images\nval: ../valid/images\nnames: {0: dog, 1: cat}\n")
    assert told(find_images(file, boxes=True)) == [("dog", [4, 4, 12, 12])]
    assert folders_to_measure_on([str(file)]) == [str(tmp_path / "valid/images")]
    assert folders_to_measure_on([str(tmp_path)]) == [str(tmp_path / "valid/images")]
    assert folders_to_measure_on([str(tmp_path / "train")]) == []
