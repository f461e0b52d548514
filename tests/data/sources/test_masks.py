"""Label maps as COCO's json and tables tell them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faster_coco_eval import mask as coding
from PIL import Image

from simmim.data.formats.image_file import UnreadableError
from simmim.data.sources.find import find_images
from simmim.errors import DataError

NAMES = ("a.png", "b.png")
SIZE = (20, 40)
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
"""In the order of their numbers: cat, dog."""


def box(left: int, top: int, right: int, bottom: int) -> list[int]:
    """The polygon of a rectangle."""
    return [left, top, right, top, right, bottom, left, bottom]


def coco(file: Path, *annotations: dict[str, Any], **changes: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [
            {"id": 5 + i, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for i, name in enumerate(NAMES)
        ],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": 7, **each} for i, each in enumerate(annotations)
        ],
        "categories": CATEGORIES,
    }
    file.write_text(json.dumps(content | changes))
    for name in NAMES:
        Image.new("RGB", SIZE[::-1]).save(file.parent / name)
    return file


def code(top: int, left: int, bottom: int, right: int, kind: type = str) -> dict[str, Any]:
    """A rectangle as a run-length code, compressed or as a list of counts."""
    inside = np.zeros(SIZE, np.uint8)
    inside[top:bottom, left:right] = 1
    if kind is str:
        counts = coding.encode(np.asfortranarray(inside))["counts"]
        return {"size": list(SIZE), "counts": counts.decode()}
    flat = inside.flatten("F")
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
    return {"size": list(SIZE), "counts": np.diff(edges, prepend=0).tolist()}


def test_polygons_and_codes_are_one_map_with_smaller_shapes_above(tmp_path: Path):
    file = coco(
        tmp_path / "a.json",
        {"segmentation": [box(10, 5, 14, 9)], "category_id": 3},
        {"segmentation": [box(0, 0, 20, 20), box(30, 0, 40, 10)]},
        {"segmentation": code(12, 12, 16, 16), "category_id": 3},
        {"segmentation": code(10, 25, 20, 40, list)},
        {"segmentation": code(0, 0, 20, 40, list), "iscrowd": 1, "category_id": 3},
        {"segmentation": box(0, 0, 4, 4), "category_id": 3, "image_id": 6},
    )
    images = find_images(file, maps=True)
    assert images.map_names == ["background", "cat", "dog"]
    expected = np.full(SIZE, -100)
    expected[:, :20] = expected[:10, 30:] = expected[10:, 25:] = 2
    expected[5:9, 10:14] = expected[12:16, 12:16] = 1
    assert np.array_equal(images.map(0), expected)
    expected = np.zeros(SIZE)
    expected[:4, :4] = 1
    assert np.array_equal(images.map(1), expected)
    assert find_images(file).boxes(0).corners.shape == (0, 4)
    assert images.infos[0].notes == []


def test_what_cannot_be_drawn_is_counted(tmp_path: Path):
    file = coco(
        tmp_path / "a.json",
        {"segmentation": [box(0, 0, 4, 4), [1, 2, 3, 4], [float("inf")] * 6]},
        {"segmentation": []},
        {"bbox": [1, 2, 3, 4]},
        {"segmentation": [box(0, 0, 4, 4)], "category_id": 99},
        {"segmentation": [box(0, 0, 4, 4)], "image_id": 99},
        {"segmentation": {"size": [20], "counts": "a"}},
    )
    images = find_images(file, maps=True)
    assert images.infos[0].notes == [
        "2 polygons of fewer than three points, or beyond all bounds, are left out, such as one of "
        "annotation 0",
        "3 annotations without a mask are left out, such as annotation 1",
        "1 annotation of a category that is not listed is left out, such as annotation 3 "
        "(1 category 99)",
        "1 annotation of no image that is listed is left out, such as annotation 4",
        "1 image without a mask is background all over, such as b.png",
    ]
    assert int((images.map(0) == 2).sum()) == 16


def test_the_sides_that_are_not_told_are_those_of_the_image_or_of_the_code(tmp_path: Path):
    plain = [{"id": 5, "file_name": "a.png"}]
    file = coco(tmp_path / "a.json", {"segmentation": [box(0, 0, 4, 4)]}, images=plain)
    assert find_images(file, maps=True).map(0).shape == SIZE
    small = {"size": [4, 3], "counts": [2, 10]}
    file = coco(tmp_path / "b.json", {"segmentation": small})
    assert find_images(file, maps=True).map(0).tolist() == [[0, 2, 2], [0, 2, 2]] + [[2] * 3] * 2
    for told, message in (
        ({"size": [4, 3], "counts": [2, 100]}, "its mask: runs of 102 pixels, not of 12"),
        ({"size": list(SIZE), "counts": "garbage!"}, "its mask: "),
        (code(0, 0, 4, 4), r"runs of \[20, 40\], not of \[4, 3\] pixels"),
    ):
        file = coco(tmp_path / "c.json", {"segmentation": small}, {"segmentation": told})
        with pytest.raises(UnreadableError, match=message):
            find_images(file, maps=True).map(0)


def test_tiles_of_drawn_masks_are_refused(tmp_path: Path):
    file = coco(tmp_path / "a.json", {"segmentation": [box(0, 0, 4, 4)]})
    for seed, name in enumerate(NAMES):
        noise = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    tiles = find_images(file, tile=16, maps=True)
    with pytest.raises(DataError, match="maps"):
        tiles.check_has("maps")


def test_categories_of_several_files_are_one_by_their_names(tmp_path: Path):
    shape = {"segmentation": [box(0, 0, 4, 4)]}
    first = coco(tmp_path / "a" / "a.json", shape)
    kinds = [{"id": 1, "name": "fox"}, {"id": 7, "name": "cat"}, {"id": 9, "name": "Background"}]
    second = coco(
        tmp_path / "b" / "b.json",
        shape,
        {"segmentation": [box(0, 0, 2, 2)], "category_id": 9},
        categories=kinds,
    )
    images = find_images(first, second, maps=True)
    assert images.map_names == ["background", "cat", "dog", "fox"]
    assert images.map(0)[0, 0] == 2
    assert images.map(2)[:3, :3].tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 1]]


def test_a_folder_is_understood_by_the_json_in_it(tmp_path: Path):
    root = tmp_path / "train"
    coco(root / "_annotations.coco.json", {"segmentation": [box(0, 0, 4, 4)]})
    assert find_images(root, maps=True).infos[0].kind == "coco-masks"
    assert find_images(root).infos[0].kind == "folder"
    (root / "more.json").write_bytes((root / "_annotations.coco.json").read_bytes())
    with pytest.raises(DataError, match="several of COCO's files"):
        find_images(root, maps=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "a json of another kind"),
        ('{"shapes": [], "imagePath": "a.png"}', "a json of another kind"),
        (None, "has no mask: none of its annotations"),
    ],
)
def test_a_json_without_masks_is_refused(content: str | None, message: str, tmp_path: Path):
    file = coco(tmp_path / "a.json", {"bbox": [1, 2, 3, 4]})
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=message):
        find_images(file, maps=True)


def encoded(values: np.ndarray, **how: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG", **how)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["mask", "annotation", "label"])
@pytest.mark.parametrize("kind", ["parquet", "arrow", "struct"])
def test_a_column_of_encoded_masks_gives_maps(
    kind: str, name: str, tmp_path: Path, rng: np.random.Generator
):
    masks = rng.integers(0, 5, (3, *SIZE), np.uint8)
    told: list[Any] = [encoded(mask) for mask in masks]
    photos: list[Any] = [encoded(np.stack([mask] * 3, 2)) for mask in masks]
    told[1] = None
    image, metadata = "image", {}
    if kind == "struct":  # as Hugging Face writes them, under names of its own
        photos, told = ([{"bytes": x, "path": None} for x in each] for each in (photos, told))
        image, feature = "pixel_values", {"_type": "Image"}
        features = {"info": {"features": {image: feature, name: feature}}}
        metadata = {"huggingface": json.dumps(features)}
    table = pa.table({image: photos, name: told, "scene_category": ["x", "y", "z"]})
    table = table.replace_schema_metadata(metadata)
    file = tmp_path / f"a.{'arrow' if kind == 'arrow' else 'parquet'}"
    if kind == "arrow":
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    else:
        pq.write_table(table, file, row_group_size=2)
    images = find_images(file)
    images.check_has("maps")
    assert images.infos[0].notes == [f"masks are those in the column {name!r}"]
    found = [images.map(i) for i in range(3)]
    assert found[1] is None
    assert np.array_equal(found[0], masks[0])
    assert np.array_equal(found[2], masks[2])
    assert images.open(2).height == SIZE[0]


def test_a_column_of_masks_alone_holds_the_images(tmp_path: Path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"mask": [encoded(np.zeros(SIZE, np.uint8))], "id": ["x"]}), file)
    images = find_images(file)
    assert images.open(0).height == SIZE[0]
    assert images.map(0) is None
    with pytest.raises(DataError, match=r"has no maps: .* a column of masks"):
        images.check_has("maps")
