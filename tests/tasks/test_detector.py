"""Detectors: what they learn from, what they tell, and the files they are kept in."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluate.conftest import PIXELS
from PIL import Image
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image

from simmim.config.encoder import EncoderConfig
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import load_views
from simmim.data.sources.find import find_images
from simmim.data.sources.segmentation import decode_mask, encode_mask
from simmim.errors import CheckpointError
from simmim.evaluate.precision import Found
from simmim.models.build import build_encoder
from simmim.tasks.detect import DetectTask, targets
from simmim.tasks.detections import Detections
from simmim.tasks.detector import Detector, _in_box, load_detector, save_detector
from simmim.tensors.batch import Batch

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}
KINDS: list[Any] = ["faster-rcnn", "mask-rcnn", "retinanet", "fcos"]
CLASSES = ["red", "blue"]
SIDE = 64


def squares(root: Path, count: int = 6, *, crowd: bool = False) -> Path:
    """Images of 80×60 pixels with one or two squares, red or blue, and their COCO json."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(count):
        pixels = rng.integers(0, 40, (60, 80, 3)).astype(np.uint8)
        for half in range(1 + i % 2):
            side = int(rng.integers(18, 30))
            left, top = (
                int(rng.integers(40 * half, 40 * half + 40 - side)),
                int(rng.integers(0, 30)),
            )
            kind = int(rng.integers(0, 2))
            pixels[top : top + side, left : left + side] = [[230, 30, 30], [30, 30, 230]][kind]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 50 + i,
                    "category_id": 7 + kind,
                    "bbox": [left, top, side, side],
                    "segmentation": [
                        [left, top, left + side, top, left + side, top + side, left, top + side]
                    ],
                    "iscrowd": int(crowd and half),
                }
            )
        Image.fromarray(pixels).save(root / f"{i}.png")
        images.append({"id": 50 + i, "file_name": f"{i}.png", "height": 60, "width": 80})
    names = [{"id": 7 + k, "name": name} for k, name in enumerate(CLASSES)]
    told = {"images": images, "annotations": annotations, "categories": names}
    (root / "boxes.json").write_text(json.dumps(told))
    return root / "boxes.json"


def image_set(file: Path) -> ImageSet:
    return ImageSet(
        find_images(file, boxes=True), PIXELS, annotations=frozenset({"boxes", "masks"})
    )


def detector_of(kind: Any, model: str = "vit_tiny_patch16_224", window: int = 0) -> Detector:
    arguments: dict[str, Any] = TINY
    if "swin" in model:
        arguments = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    patch = 4 if "swin" in model else 8
    config = EncoderConfig(model=model, patch_size=patch, arguments=arguments)
    torch.manual_seed(0)
    encoder = build_encoder(config, image_size=(SIDE, SIDE), channels=3)
    return Detector(encoder, PIXELS, CLASSES, kind, window)


def batch_of(images: ImageSet) -> Batch:
    return next(batch for _, batch in load_views(images, (SIDE, SIDE), bad={}))


def test_crowds_slivers_and_filling_are_not_learned_from(tmp_path: Path):
    batch = batch_of(image_set(squares(tmp_path, crowd=True)))
    assert [len(each["boxes"]) for each in targets(batch)] == [1] * 6
    assert batch.boxes is not None
    batch.boxes[0, 0, 2] = batch.boxes[0, 0, 0] + 0.5
    found = targets(batch)
    assert [len(each["boxes"]) for each in found] == [0, 1, 1, 1, 1, 1]
    assert torch.equal(found[2]["boxes"], batch.boxes[2, :1])
    assert batch.categories is not None
    assert torch.equal(found[2]["labels"], batch.categories[2, :1])


@pytest.mark.parametrize(
    ("kind", "model", "window"),
    [(kind, "vit_tiny_patch16_224", 0) for kind in KINDS]
    + [("fcos", "vit_tiny_patch16_224", 3), ("faster-rcnn", "swin_tiny_patch4_window7_224", 0)],
)
def test_a_detector_learns_and_is_kept(kind: Any, model: str, window: int, tmp_path: Path):
    images = image_set(squares(tmp_path, 3))
    task = DetectTask(detector_of(kind, model, window))
    batch = batch_of(images)
    names = {name for name, _ in task.module.named_parameters()}
    assert set(task.roles()) == names
    optimizer = torch.optim.AdamW(task.module.parameters(), 3e-4)
    losses = []
    for _ in range(3):
        torch.manual_seed(1)  # for proposals, which torch's generator draws
        found = task.loss(batch)
        losses.append(found.pop("loss"))
        assert losses[-1].item() == pytest.approx(sum(each.item() for each in found.values()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]
    trained = {name for name, p in task.module.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in task.module.named_parameters() if p.grad is not None}

    detector = task.detector.eval()
    before = detector.predict(images)
    labels = np.concatenate([each.labels for each in before.found])
    assert len(labels)
    assert set(labels.tolist()) <= {0, 1}
    assert all(each.frame == (60, 80) for each in before.found)
    (tmp_path / "run").mkdir()
    save_detector(tmp_path / "run", detector, {"fine_tuned_from": "none"})
    after = load_detector(tmp_path / "run").predict(tmp_path / "boxes.json")
    for ours, theirs in zip(before.found, after.found, strict=True):
        assert np.array_equal(ours.corners, theirs.corners)
        assert np.array_equal(ours.scores, theirs.scores)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_looked_at_as_they_are_learned_from(kind: Any):
    detector, seen = detector_of(kind), []
    detector.net.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    images = torch.randn(2, 3, SIDE, SIDE)
    boxes = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([0])}
    boxes["masks"] = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    detector.train()(images, [boxes, boxes])
    with torch.no_grad():
        detector.eval()(images, [boxes, boxes])
        detector(images)
    assert len(seen) == 3
    assert all(torch.equal(each, images) for each in seen)


@pytest.mark.parametrize("kind", ["faster-rcnn", "fcos"])
def test_boxes_and_maps_agree_where_a_quarter_of_a_patch_is_no_whole_pixel(kind: Any):
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=14, arguments=TINY)
    encoder = build_encoder(config, image_size=(112, 112), channels=3)
    net = Detector(encoder, PIXELS, CLASSES, kind).net
    maps = list(net.backbone(torch.zeros(1, 3, 112, 112)).values())
    images = ImageList(torch.zeros(1, 3, 112, 112), [(112, 112)])
    generator = net.rpn.anchor_generator if kind == "faster-rcnn" else net.anchor_generator
    anchors = generator(images, maps)[0]
    strides = [3.5, 7, 14, 28, 56] if kind == "faster-rcnn" else [7, 14, 28, 56]
    per_place = 9 if kind == "faster-rcnn" else 1
    begin = 0
    for each, stride in zip(maps, strides, strict=True):
        assert each.shape[2] == 112 / stride
        end = begin + per_place * each.shape[2] ** 2
        middles = (anchors[begin:end, :2] + anchors[begin:end, 2:]) / 2
        assert middles.unique().tolist() == [k * stride for k in range(each.shape[2])]
        begin = end
    if kind == "faster-rcnn":
        assert net.roi_heads.box_roi_pool.scales == [1 / stride for stride in strides[:-1]]


def mask_pool(net: Any) -> Any:
    """Of boxes, where there are no masks."""
    heads = net.roi_heads
    return heads.mask_roi_pool if heads.has_mask() else heads.box_roi_pool


@pytest.mark.parametrize(
    ("kind", "patch", "strides"),
    [
        ("faster-rcnn", 16, [4, 8, 16, 32, 64]),
        ("faster-rcnn", 8, [4, 8, 16, 32]),
        ("mask-rcnn", 16, [4, 8, 16, 32, 64]),
        ("retinanet", 16, [8, 16, 32, 64]),
    ],
)
def test_boxes_begin_at_a_patch_and_are_pooled_from_maps_of_their_size(
    kind: Any, patch: int, strides: list[int]
):
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=patch, arguments=TINY)
    net = Detector(
        build_encoder(config, image_size=(128, 128), channels=3), PIXELS, CLASSES, kind
    ).net
    assert net.backbone.strides == strides
    generator = net.anchor_generator if kind == "retinanet" else net.rpn.anchor_generator
    assert [sides[0] for sides in generator.sizes] == [patch * 2**k for k in range(len(strides))]
    for pool in () if kind == "retinanet" else (net.roi_heads.box_roi_pool, mask_pool(net)):
        sides = torch.tensor([13.0, 15, 27, 29]) * strides[1]
        boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
        assert pool.map_levels([boxes]).tolist() == [0, 1, 1, 2]
        assert pool.scales == [1 / stride for stride in strides[:-1]]


def test_a_background_alone_can_be_learned_from(tmp_path: Path):
    batch = batch_of(image_set(squares(tmp_path)))
    empty = replace(batch, valid=torch.zeros_like(batch.valid))
    for kind in KINDS:
        task = DetectTask(detector_of(kind))
        task.module.eval()  # as where a loss is looked at
        assert torch.isfinite(task.loss(empty)["loss"])
        assert not any(part.training for part in task.module.modules())


@pytest.mark.parametrize("box", [[10, 5, 40, 25], [-7.5, 30.25, 12, 61], [60.5, 40, 95, 75]])
def test_a_mask_lies_in_its_box_as_torchvision_draws_it(box: list[float]):
    mask = torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(0)) ** 0.5
    mask[:, 10:20, 5:9] = 0
    whole = paste_masks_in_image(mask[None], torch.tensor([box]) + 100, (260, 280))[0, 0]
    expected = whole[100:160, 100:180] >= 0.5
    found = decode_mask(_in_box(mask, np.array(box), (60, 80)), (60, 80))
    assert found.sum() > 100
    assert np.array_equal(found, expected)


def test_masks_that_show_no_pixel_are_not_learned_from(tmp_path: Path):
    batch = batch_of(image_set(squares(tmp_path)))
    assert batch.masks is not None
    (whole,) = targets(batch)[0]["masks"]
    left, top, right, bottom = targets(batch)[0]["boxes"][0].round().int().tolist()
    assert whole[top:bottom, left:right].all()
    assert whole.sum() == (right - left) * (bottom - top)
    batch.masks[0] = 0
    assert [len(each["boxes"]) for each in targets(batch)] == [0, 2, 1, 2, 1, 2]
    assert [len(each["masks"]) for each in targets(batch)] == [0, 2, 1, 2, 1, 2]


def test_masks_are_compared_with_those_of_the_images(tmp_path: Path):
    file = squares(tmp_path, crowd=True)
    told = json.loads(file.read_text())
    told["annotations"][0]["segmentation"] = [[3, 3]]  # then what is found there counts for nothing
    file.write_text(json.dumps(told))
    images = find_images(file, boxes=True)
    found = []
    for row in range(len(images)):
        boxes, masks = images.boxes(row), list(images.masks(row, (60, 80)))
        if row == 0:
            left, top, right, bottom = boxes.corners[0].astype(int)
            masks[0][top:bottom, left + 2 : right] = True
        runs, scores = [encode_mask(mask) for mask in masks], np.ones(len(masks), np.float32)
        found.append(Found((60, 80), boxes.corners, boxes.categories, scores, runs))
    whole = Detections(images, found, PIXELS, CLASSES)
    assert whole.masked
    assert whole.score_masks().ap == 1
    found[2] = replace(found[2], masks=[encode_mask(np.zeros((60, 80), bool))])
    assert 0.5 < whole.score_masks().ap < 1
    assert whole.score().ap == 1
    assert whole.write(tmp_path / "found.json") == []
    result = json.loads((tmp_path / "found.json").read_text())[1]
    assert np.array_equal(
        decode_mask(result["segmentation"], (60, 80)), next(images.masks(1, (60, 80)))
    )


def test_results_have_the_numbers_of_the_json_asked_about(tmp_path: Path):
    file = squares(tmp_path)
    detector = detector_of("retinanet").eval()
    detector.net.score_thresh = 0.0  # untrained, it is sure of nothing
    found = detector.predict(file)
    assert found.write(tmp_path / "found.json") == []
    results = json.loads((tmp_path / "found.json").read_text())
    assert {each["image_id"] for each in results} == set(range(50, 56))
    assert {each["category_id"] for each in results} <= {7, 8}
    assert all(min(each["bbox"][2:]) > 0 for each in results)
    first = next(each for each in results if each["image_id"] == 52)
    left, top, right, bottom = found.found[2].corners[0]
    assert first["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=1e-3)
    detector.classes[found.found[2].labels[0]] = "green"
    (note,) = detector.predict(file).write(tmp_path / "found.json")
    assert note.endswith(f"of the class green are left out, which {file} does not have")
    file.unlink()
    detector.predict(tmp_path).write(tmp_path / "found.json")
    results = json.loads((tmp_path / "found.json").read_text())
    assert {each["file_name"] for each in results if each["image_id"] == 3} == {"2.png"}


def test_damaged_files_are_told_of(tmp_path: Path):
    with pytest.raises(CheckpointError, match="holds no whole encoder with its head"):
        load_detector(tmp_path)
    save_detector(tmp_path, detector_of("fcos"), {})
    file = tmp_path / "classes.json"
    file.write_text(file.read_text().replace("blue", "green"))
    with pytest.raises(CheckpointError, match="holds no whole encoder with its head"):
        load_detector(tmp_path)
