"""What belongs to an image arrives with it, and lies where the image shows it."""

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from simmim.config.augment import AugmentConfig
from simmim.config.resolved import PixelFormat
from simmim.data.loading import loader
from simmim.data.loading.cache import ImageCache
from simmim.data.loading.geometry import (
    Geometry,
    centre_geometry,
    random_geometry,
    whole_geometry,
)
from simmim.data.loading.images import Annotation, ImageSet
from simmim.data.loading.loader import TrainStream, load_views
from simmim.data.loading.quarantine import Quarantine
from simmim.data.loading.workers import slot_bytes
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.data.sources.segmentation import encode_mask
from simmim.errors import DataError, TrainingError
from simmim.tensors.batch import IGNORE, Batch, unpack_masks

GREY = PixelFormat(channels=1, low=(0.0,), high=(255.0,), mean=(0.5,), std=(0.2,))
COUNT, SIZE, STEP = 14, (32, 48), 80
"""Images; the size of their views; and the value of a pixel over its class."""
COLOUR = np.array([1, 2, 3], np.uint8)
WITHOUT = 3
"""The image without mask and box."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images of a rectangle each, whose values are its class, with masks and a COCO file."""
    root, rng = tmp_path_factory.mktemp("rectangles"), np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    images, annotations = [], []
    for i in range(COUNT):
        height, width = (int(side) for side in rng.integers(60, 120, 2))
        top, left = (int(side) for side in rng.integers(0, 40, 2))
        rows, columns = (int(side) for side in rng.integers(10, 40, 2))
        mask = np.zeros((height, width), np.uint8)
        mask[top : top + rows, left : left + columns] = 1 + i % 3
        name = f"{i:02}.png"
        Image.fromarray(mask * STEP).save(root / "images" / name)
        images.append({"id": i, "file_name": name, "height": height, "width": width})
        if i != WITHOUT:
            Image.fromarray(mask).save(root / "labels" / name)
            size = [left, top, min(columns, width - left), min(rows, height - top)]
            told = {"bbox": size, "segmentation": encode_mask(mask > 0)}
            annotations.append({"image_id": i, "category_id": i % 3, **told})
    names = [{"id": k, "name": f"kind {k}"} for k in range(3)]
    told = {"images": images, "annotations": annotations, "categories": names}
    (root / "coco.json").write_text(json.dumps(told))
    return root


def image_set(listing: Listing, *annotations: Annotation, cache: bool = False) -> ImageSet:
    kept = ImageCache(listing, GREY, (40, 40)) if cache else None
    labels = list(range(len(listing)))
    return ImageSet(listing, GREY, labels, kept, frozenset(annotations))


def take(images: ImageSet, count: int, **changes: object) -> list[Batch]:
    settings = {"size": SIZE, "seed": 5, "batch_size": 12, "micro_batch": 12, "workers": 0}
    stream = TrainStream(images, **({"augment": AugmentConfig()} | settings | changes))
    try:
        return list(itertools.islice(stream.start(0), count))
    finally:
        stream.close()


def tensors(batch: Batch) -> list[torch.Tensor]:
    values = [value for value in vars(batch).values() if value is not None]
    views = values.pop(values.index(batch.views)) if batch.views else ()
    return [value for value in values if isinstance(value, torch.Tensor)] + list(views)


@pytest.mark.parametrize("size", [(17, 23), (60, 40), (128, 96)])
def test_maps_are_the_nearest_values_of_the_part_that_is_seen(size: tuple[int, int]):
    values = np.random.default_rng(1).integers(0, 300, (61, 83)).astype(np.int32)
    for t in range(20):
        drawn = random_geometry(61, 83, AugmentConfig(), size, (t,))
        top, left, height, width = drawn.box
        part = torch.from_numpy(values)[top : top + height, left : left + width]
        expected = F.interpolate(part[None, None].double(), size, mode="nearest-exact")[0, 0]
        expected = expected.flip(1) if drawn.flip else expected
        assert np.array_equal(drawn.on_map(values), expected.numpy())
        doubled = values.repeat(2, 0).repeat(2, 1)  # the same, labelled at twice the pixels
        assert np.mean(drawn.on_map(doubled) == drawn.on_map(values)) == 1


def test_boxes_are_scaled_flipped_and_clipped():
    boxes = np.array([[10, 20, 30, 25], [0, 0, 100, 50], [60, 0, 70, 5], [15, 10, 20, 22.5]])
    seen = Geometry((50, 100), (10, 10, 20, 40), (40, 40)).on_boxes(boxes, (50, 100))
    assert seen.tolist() == [[0, 20, 20, 30], [0, 0, 40, 40], [40, 0, 40, 0], [5, 0, 10, 25]]
    flipped = Geometry((50, 100), (10, 10, 20, 40), (40, 40), flip=True)
    expected = [[20, 20, 40, 30], [0, 0, 40, 40], [0, 0, 0, 0], [30, 0, 35, 25]]
    assert flipped.on_boxes(boxes, (50, 100)).tolist() == expected
    assert flipped.on_boxes(2 * boxes, (100, 200)).tolist() == expected
    centre = centre_geometry(50, 100, (10, 10))
    assert centre.on_boxes(boxes[:1], (50, 100)).tolist() == [[0, 4, 1, 5]]


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("view", ["plain", "whole", "crop", "zoom"])
def test_maps_and_boxes_lie_where_the_image_shows_them(data: Path, cache: bool, view: str):
    pairs = image_set(find_images(data), "maps", cache=cache)
    coco = image_set(find_images(data / "coco.json"), "boxes", "masks", cache=cache)
    if view in ("plain", "whole"):
        place = whole_geometry if view == "whole" else centre_geometry
        maps, boxes = (
            [batch for _, batch in load_views(each, SIZE, bad={}, batch=5, place=place)]
            for each in (pairs, coco)
        )
    else:
        augment = ZOOM if view == "zoom" else AugmentConfig()
        maps, boxes = (take(each, 6, augment=augment) for each in (pairs, coco))
    hidden = 0
    for mapped, boxed in zip(maps, boxes, strict=True):
        assert torch.equal(mapped.images, boxed.images)
        assert mapped.maps is not None
        assert boxed.boxes is not None
        assert boxed.masks is not None
        assert mapped.labels is not None
        for row, index in enumerate(mapped.labels.tolist()):
            seen, valid = mapped.maps[row], boxed.valid[row]
            (covered,) = unpack_masks(boxed.masks[row], SIZE[1])
            assert torch.equal(covered > 0, seen > 0) or not valid.any()
            if index == WITHOUT:
                assert (seen == IGNORE).all()
                assert not valid.any()
                continue
            blank = seen == IGNORE
            assert not blank.any() or view in ("whole", "zoom")
            seen = seen.masked_fill(blank, 0)
            places = torch.nonzero(seen)
            if not len(places):
                hidden += 1
                continue
            shown = mapped.images[row, 0].float() / (STEP * (1 + index % 3))
            shown = shown.masked_fill(blank, 0)
            where = (seen > 0).float()
            wrong = (where - shown).abs()
            assert wrong.max() < 0.8  # a pixel beside its place would be wrong by 1
            grown = F.max_pool2d(torch.stack([where, 1 - where]), 7, stride=1)
            assert wrong[3:-3, 3:-3][grown.sum(0) == 1].max() < 0.02  # away from borders
            assert valid.tolist() == [True]
            assert boxed.categories[row].tolist() == [index % 3]
            top, left = places.amin(0).tolist()
            bottom, right = (places.amax(0) + 1).tolist()
            found = torch.tensor([left, top, right, bottom])
            assert (boxed.boxes[row, 0] - found).abs().max() <= (1.5 if cache else 0.51)
    assert view != "crop" or hidden


ZOOM = AugmentConfig(zoom=(0.4, 2.0))


def test_a_zoom_cuts_off_what_is_beyond_the_view_and_leaves_the_rest_blank():
    sizes, flips = set(), 0
    for t in range(200):
        drawn = random_geometry(60, 90, ZOOM, (48, 64), (t,))
        top, left, height, width = drawn.box
        rows, columns = drawn.part
        scale = rows / height
        assert columns / width == pytest.approx(scale, rel=0.05)  # nothing is stretched
        assert 0.4 * 64 / 90 * 0.97 < scale < 2 * 64 / 90 * 1.03
        assert 0 <= top <= 60 - height
        assert 0 <= left <= 90 - width
        # Of each side, all is seen or the view is full.
        assert height == 60 or rows == 48
        assert width == 90 or columns == 64
        sizes.add(drawn.part)
        flips += drawn.flip
    assert len(sizes) > 40
    assert 70 < flips < 130
    whole = whole_geometry(60, 90, (48, 64))
    assert (whole.box, whole.part, whole.flip) == ((0, 0, 60, 90), (43, 64), False)


def test_boxes_of_a_view_go_back_to_where_they_were():
    boxes = np.array([[10, 20, 30, 25], [0, 0, 90, 60], [50.5, 1, 70, 5.25]])
    for t in range(50):
        drawn = random_geometry(60, 90, ZOOM, (48, 64), (t,))
        top, left, height, width = drawn.box
        seen = boxes.clip([left, top] * 2, [left + width, top + height] * 2)
        again = drawn.from_view(drawn.on_boxes(boxes, (60, 90)), (60, 90))
        assert again == pytest.approx(seen)
        assert drawn.from_view(drawn.on_boxes(boxes, (60, 90)), (120, 180)) == pytest.approx(
            2 * seen
        )


def test_what_a_zoomed_image_does_not_fill_is_the_mean(data: Path):
    pairs = image_set(find_images(data), "maps")
    seen = 0
    for batch in take(pairs, 4, augment=ZOOM):
        assert batch.maps is not None
        for image, values in zip(batch.images[:, 0], batch.maps, strict=True):
            blank = values == IGNORE
            if 0 < blank.sum() < blank.numel():
                seen += 1
                assert (image[blank] == 128).all()  # normalised: 0, but for rounding
    assert seen > 10


def test_workers_and_micro_batches_change_nothing(data: Path):
    images = image_set(find_images(data), "maps")
    views = [(AugmentConfig(scale=(0.05, 0.2)), (16, 16)), (AugmentConfig(), SIZE)]
    expected = take(images, 4, views=views)
    plain = take(image_set(find_images(data)), 4)
    for batch, alone in zip(expected, plain, strict=True):
        assert torch.equal(batch.images, alone.images)
        assert batch.views is not None
        assert [view.shape[2:] for view in batch.views] == [(16, 16), SIZE]
        assert not torch.equal(batch.views[1], batch.images)
        assert alone.views is alone.maps is alone.boxes is alone.captions is None
    for workers in (1, 2):
        again = take(images, 4, views=views, workers=workers)
        for a, b in zip(expected, again, strict=True):
            assert all(map(torch.equal, tensors(a), tensors(b)))
    cut = take(images, 12, views=views, workers=1, micro_batch=5)
    whole = [torch.cat(parts) for parts in zip(*map(tensors, cut), strict=True)]
    expected = [torch.cat(parts) for parts in zip(*map(tensors, expected), strict=True)]
    assert all(map(torch.equal, whole, expected))


def test_boxes_come_the_same_from_workers(data: Path):
    images = image_set(find_images(data / "coco.json"), "boxes", "masks")
    for a, b in zip(take(images, 3), take(images, 3, workers=2), strict=True):
        assert all(map(torch.equal, tensors(a), tensors(b)))


@pytest.mark.parametrize("workers", [0, 2])
def test_captions_stay_with_their_images(workers: int, data: Path, tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(COUNT):
            image = (data / "images" / f"{i:02}.png").read_bytes()
            files = {"txt": f"a picture, {i}\n".encode(), "png": image[: 70 if i == 4 else None]}
            for ending, content in files.items():
                if (i, ending) != (WITHOUT, "txt"):
                    member = tarfile.TarInfo(f"{i:02}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    images = image_set(find_images(tmp_path / "a.tar"), "captions")
    quarantine = Quarantine(None, 1.0, images.paths)
    for batch in take(images, 3, workers=workers, quarantine=quarantine):
        assert batch.labels is not None
        used = batch.labels.tolist()
        assert batch.captions == [f"a picture, {i}" if i != WITHOUT else "" for i in used]
    assert quarantine.count == 1
    (used, batch), *_ = load_views(images, SIZE, bad={}, batch=COUNT)
    assert batch.captions == [f"a picture, {i}" if i != WITHOUT else "" for i in used]


def test_annotations_that_do_not_fit_make_an_image_unreadable(data: Path, tmp_path: Path):
    told = json.loads((data / "coco.json").read_text())
    first = told["images"][0]
    first["height"], first["width"] = 3 * first["width"], first["height"]
    (tmp_path / "coco.json").write_text(json.dumps(told))
    (tmp_path / "images").symlink_to(data / "images")
    (tmp_path / "labels").mkdir()
    for i in range(COUNT):
        with Image.open(data / "images" / f"{i:02}.png") as image:
            mask = image if i else image.resize((99, 9))
            mask.convert("RGB" if i % 2 else "L").save(tmp_path / "labels" / f"{i:02}.png")
    Image.fromarray(np.stack(3 * [np.eye(40, dtype=np.uint8)], 2) * COLOUR).save(
        tmp_path / "labels" / "01.png"
    )
    boxes = image_set(find_images(tmp_path / "coco.json"), "boxes")
    maps, bad = image_set(find_images(tmp_path), "maps"), {}
    for images in (boxes, maps):
        for _ in load_views(images, SIZE, bad=bad):
            pass
        reason = bad.pop("00.png")
        assert "pixels for an image of" in reason
        assert reason.startswith("boxes of" if images is boxes else "label map of 9×99")
    assert bad == {"01.png": "label map of 40×40 pixels for an image of 64×60"}


def test_a_folder_of_masks_that_is_gone_ends_the_run(data: Path, tmp_path: Path):
    for name in ("images", "labels"):
        (tmp_path / name).symlink_to(data / name)
    images = image_set(find_images(tmp_path), "maps")
    (tmp_path / "labels").unlink()
    with pytest.raises(TrainingError, match=r"No such file or directory: .*labels"):
        take(images, 1)


def test_what_a_source_does_not_have_cannot_be_asked_for(data: Path):
    with pytest.raises(DataError, match=r"rectangles0 has no boxes: COCO"):
        image_set(find_images(data), "boxes")
    with pytest.raises(DataError, match=r"coco\.json has no maps: folders of images and masks"):
        image_set(find_images(data, data / "coco.json"), "maps")


def test_what_is_made_ahead_is_bounded_over_all_arrays(data: Path, monkeypatch: pytest.MonkeyPatch):
    images = image_set(find_images(data), "maps")
    settings = {"augment": AugmentConfig(), "size": SIZE, "seed": 0, "workers": 2}
    settings |= {"batch_size": 240, "micro_batch": 240}
    pixels = 30 * SIZE[0] * SIZE[1]
    monkeypatch.setattr(loader, "SHARED_BYTES", 2 * 40 * pixels)
    for views, each, ahead in (((), 5, 8), (((AugmentConfig(), (64, 48)),), 7, 5)):
        crew = TrainStream(images, views=views, **settings)._crew
        assert slot_bytes(crew.slot) == each * pixels
        assert crew.ahead == ahead


def test_categories_of_several_sources_go_by_their_names(data: Path, tmp_path: Path):
    told = json.loads((data / "coco.json").read_text())
    told["categories"] = [{"id": k, "name": f"kind {2 - k}"} for k in range(3)]
    (tmp_path / "images").symlink_to(data / "images")
    (tmp_path / "coco.json").write_text(json.dumps(told))
    both = find_images(data / "coco.json", tmp_path / "coco.json")
    assert both.categories == ["kind 0", "kind 1", "kind 2"]
    assert [int(both.boxes(i).categories[0]) for i in (0, 1, 2)] == [0, 1, 2]
    assert [int(both.boxes(COUNT + i).categories[0]) for i in (0, 1, 2)] == [2, 1, 0]
