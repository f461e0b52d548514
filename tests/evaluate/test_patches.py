"""Frozen patch tokens of images with masks: what is learned from, and what is told of pixels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from simmim.data.loading.images import ImageSet
from simmim.data.map_classes import MapClasses
from simmim.data.sources.find import find_images
from simmim.evaluate.confusion import Confusion, accuracy_of, largest_everywhere, miou_of, overlaps
from simmim.evaluate.estimate import Estimate
from simmim.evaluate.patches import Layer, Patches, PatchReadings, Votes, patch_labels, read_patches
from simmim.interop.load import LoadedEncoder
from simmim.models.encoder import Encoder
from simmim.tasks.patch_probe import FrozenSegmenter, PatchProtocols
from simmim.tensors.batch import IGNORE
from simmim.training.world import ALONE

from .conftest import PIXELS

CLASSES = MapClasses(
    ["sky", "road", "car"], [0, 1, 2], {0: 0, 1: 1, 2: 2, 255: IGNORE}, [(0, 0, 0)] * 3
)


@pytest.fixture
def scenes(tmp_path: Path) -> Callable[[str, int], ImageSet]:
    """Images of 32×32 pixels, in three parts of different texture, some of it of no class."""

    def make(name: str, count: int) -> ImageSet:
        rng = np.random.default_rng(len(name))
        for folder in ("images", "masks"):
            (tmp_path / name / folder).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((32, 32), np.uint8)
            mask[rng.integers(8, 20) :] = 1
            mask[:, rng.integers(20, 28) :] = 2
            mask[:6, : rng.integers(8, 30)] = 255
            wave = 60 * np.sin(np.arange(32) * 2 * np.pi / 5)
            texture = np.select([mask == 1, mask == 2], [wave[:, None], wave[None]], 0.0)
            values = 128 + texture + rng.normal(0, 25, (32, 32))
            image = np.repeat(values[..., None], 3, 2).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / name / "images" / f"{number:02d}.png")
            Image.fromarray(mask).save(tmp_path / name / "masks" / f"{number:02d}.png")
        return ImageSet(find_images(str(tmp_path / name)), PIXELS, annotations=frozenset({"maps"}))

    return make


def as_they_are(images: ImageSet) -> tuple[torch.Tensor, np.ndarray]:
    """Normalised images (B, 3, H, W) and the values of their masks (B, H, W), read by Pillow."""
    root = Path(images.paths.infos[0].where)
    names = [name.removeprefix("images/") for name in images.paths]
    values = np.stack([np.array(Image.open(root / "images" / name)) for name in names])
    maps = np.stack([np.array(Image.open(root / "masks" / name)) for name in names])
    inputs = (values / 255 - np.array(PIXELS.mean)) / np.array(PIXELS.std)
    return torch.from_numpy(inputs).float().permute(0, 3, 1, 2), maps


def modes(maps: np.ndarray, side: int) -> np.ndarray:
    """The value that most pixels of each patch have, the lowest of several (B, N)."""
    found = [
        [
            np.unique(each[y : y + side, x : x + side], return_counts=True)
            for y in range(0, each.shape[0], side)
            for x in range(0, each.shape[1], side)
        ]
        for each in maps
    ]
    return np.array([[values[counts.argmax()] for values, counts in row] for row in found])


def test_a_patch_is_of_the_class_that_most_of_its_pixels_are_of():
    rng = np.random.default_rng(0)
    maps = rng.choice([0, 1, 2, 255], (4, 12, 20), p=[0.3, 0.2, 0.1, 0.4])
    expected = modes(maps, 4)
    found = patch_labels(np.where(maps == 255, IGNORE, maps), (3, 5), 3)
    assert np.array_equal(np.where(found == IGNORE, 255, found), expected)
    assert {0, 1, 255} <= set(expected.ravel())


def test_patches_are_the_encoders_with_their_labels_drawn_evenly(
    encoder: Encoder, scenes, monkeypatch: pytest.MonkeyPatch
):
    images = scenes("some", 5)
    loaded = LoadedEncoder(encoder, PIXELS).eval()
    views, maps = as_they_are(images)
    labels = modes(maps, 8)
    with torch.no_grad():
        tokens = encoder.features(views).patches.numpy()
    found = read_patches(loaded, images, CLASSES, batch=2)
    (own,) = found.blocks
    assert found.of == len(own.labels) == (labels != 255).sum() < labels.size
    for row in range(5):
        # A hash orders the patches of an image; here all of them are taken.
        mine = own.part(own.images == row)
        order = np.lexsort(mine.features.T)
        expected = tokens[row][labels[row] != 255]
        other = np.lexsort(expected.T)
        np.testing.assert_allclose(mine.features[order], expected[other], atol=1e-5)
        assert np.array_equal(mine.labels[order], labels[row][labels[row] != 255][other])

    monkeypatch.setattr("simmim.evaluate.patches.MOST", 22)
    few = read_patches(loaded, images, CLASSES, batch=3)
    assert (few.most, few.of, few.images) == (4, found.of, 5)
    assert np.bincount(few.blocks[0].images).tolist() == [4] * 5
    for row in range(5):
        first = own.features[own.images == row][:4]
        assert np.allclose(few.blocks[0].features[few.blocks[0].images == row], first, atol=1e-5)
    other = read_patches(loaded, images, CLASSES, seed=1)
    assert not np.allclose(other.blocks[0].features, few.blocks[0].features, atol=1e-5)
    monkeypatch.setattr("simmim.evaluate.patches.MOST", 3)
    fewer = read_patches(loaded, images, CLASSES)
    assert (fewer.tried, fewer.most, len(fewer.blocks[0].labels)) == (3, 1, 3)


def test_the_votes_and_the_metric_are_scikit_learns(encoder: Encoder, scenes):
    learnt, asked = scenes("learnt", 6), scenes("asked", 4)
    loaded = LoadedEncoder(encoder, PIXELS).eval()
    how = PatchProtocols(
        classes=CLASSES, names=frozenset({"knn"}), blocks=False, k=5, seed=0, world=ALONE
    )
    found = how.measure(loaded, read_patches(loaded, learnt, CLASSES), asked, lambda *_: None)

    (views, maps), (others, truth) = as_they_are(learnt), as_they_are(asked)
    labels = modes(maps, 8).ravel()
    with torch.no_grad():
        tokens, questions = (
            encoder.features(each).patches.flatten(0, 1).double().numpy()
            for each in (views, others)
        )
    scaler = StandardScaler().fit(tokens[labels != 255])
    model = KNeighborsClassifier(
        5, metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / 0.07)
    ).fit(scaler.transform(tokens[labels != 255]), labels[labels != 255])
    told = torch.from_numpy(model.predict_proba(scaler.transform(questions))).float()
    maps_told = told.view(4, 4, 4, 3).permute(0, 3, 1, 2)
    said = F.interpolate(maps_told, (32, 32), mode="bilinear", align_corners=False).argmax(1)
    a, b = truth[truth != 255], said.numpy()[truth != 255]
    (result,) = found.protocols.values()
    assert result.miou.value == pytest.approx(jaccard_score(a, b, average="macro"), abs=1e-6)
    assert result.accuracy.value == pytest.approx(accuracy_score(a, b), abs=1e-6)
    assert result.miou.low < result.miou.value < result.miou.high
    assert found.trivial is not None
    most = np.full_like(a, np.bincount(a).argmax())
    assert found.trivial.miou.value == pytest.approx(jaccard_score(a, most, average="macro"))
    assert found.trivial.accuracy.value == pytest.approx(accuracy_score(a, most))
    assert found.asked == 4

    head = Votes(read_patches(loaded, learnt, CLASSES).blocks[0], 3, 5)
    counts = FrozenSegmenter(loaded, CLASSES, 1, head).measure(asked)
    assert np.array_equal(counts.counts, confusion_matrix(a, b))


def patches(rng: np.random.Generator, images: int, scale: float) -> Patches:
    """Ten patches of each image, of three classes, that differ in a few channels."""
    labels = np.tile(np.arange(10) % 3, images)
    features = rng.normal(size=(10 * images, 8)).astype("f4")
    features[:, :3] += scale * np.eye(3, dtype="f4")[labels]
    return Patches(features * 5 + 7, labels, np.repeat(np.arange(images), 10))


def test_the_linear_head_is_a_logistic_regression_whose_penalty_whole_images_choose():
    rng = np.random.default_rng(0)
    given = patches(rng, 12, 2.0)
    learned, left = given.split(3)
    assert len(set(given.images[left])) == 2
    assert not set(given.images[left]) & set(given.images[learned])
    rows = torch.randn(50, 8) * 5 + 7
    scaler = StandardScaler().fit(given.features)
    fits = [
        LogisticRegression(C=c, max_iter=500).fit(scaler.transform(given.features), given.labels)
        for c in (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
    ]
    found = Layer(given, 4, 3)(rows).numpy()
    assert not found[:, 3].any()  # a class that no patch has
    far = [
        np.abs(f.predict_proba(scaler.transform(rows.numpy())) - found[:, :3]).max() for f in fits
    ]
    assert min(far) < 1e-3
    alone = given.part(given.images == 0)
    assert Layer(alone, 3, 0)(rows).shape == (50, 3)  # none can be left out to choose on


def test_the_best_block_is_chosen_by_images_to_learn_from(encoder: Encoder, scenes):
    rng = np.random.default_rng(1)
    loaded = LoadedEncoder(encoder, PIXELS).eval()
    good, bad = patches(rng, 10, 6.0), patches(rng, 10, 0.0)
    good, bad = (
        replace(each, features=np.tile(each.features, (1, encoder.width // 8)))
        for each in (good, bad)
    )
    how = PatchProtocols(
        classes=CLASSES, names=frozenset({"knn", "linear"}), blocks=True, k=5, seed=0, world=ALONE
    )
    asked = scenes("asked", 2)
    for blocks, best in (([bad, good], 2), ([good, bad], 1)):
        readings = PatchReadings(blocks, 10, 10, 10, 100)
        found = how.measure(loaded, readings, asked, lambda *_: None)
        assert [block.number for block in found.blocks.values()] == [best, best]
        for name, block in found.blocks.items():
            assert block.left_out[best - 1].value > 0.9
            assert block.left_out[2 - best].value < 0.6
            assert (block.result is found.protocols[name]) == (best == 2)
        voting = found.blocks["k-NN of patches, k = 5, cosine"].result
        head = Votes(blocks[best - 1], 3, 5)
        counts = FrozenSegmenter(loaded, CLASSES, best - 1, head).measure(asked)
        assert voting.miou.value == counts.miou


def test_a_block_below_the_last_is_read_through_a_layer_norm(encoder: Encoder, scenes):
    images = scenes("some", 3)
    loaded = LoadedEncoder(encoder, PIXELS).eval()
    views, maps = as_they_are(images)
    with torch.no_grad():
        tokens = encoder.features(views, (0,)).layers[0]
        tokens = (tokens - tokens.mean(2, keepdim=True)) / tokens.std(2, keepdim=True, correction=0)
        told = FrozenSegmenter(loaded, CLASSES, 0, torch.nn.Identity())(views)
    tokens = tokens.transpose(1, 2).unflatten(2, (4, 4))
    expected = F.interpolate(tokens, (32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(told, expected, atol=1e-3, rtol=1e-3)
    first, last = read_patches(loaded, images, CLASSES, blocks=True).blocks
    known = tokens.flatten(2).transpose(1, 2).flatten(0, 1)[modes(maps, 8).ravel() != 255].numpy()
    for found, each in ((first, known), (last, read_patches(loaded, images, CLASSES).blocks[0])):
        each = each if isinstance(each, np.ndarray) else each.features
        orders = np.argsort(found.features[:, 0]), np.argsort(each[:, 0])
        np.testing.assert_allclose(found.features[orders[0]], each[orders[1]], atol=1e-3)


def test_sums_over_images_have_the_interval_of_a_plain_bootstrap():
    rng = np.random.default_rng(2)
    each = rng.integers(0, 40, (30, 4, 4)) + 80 * np.eye(4, dtype=int)
    each[:, 3] = each[:, :, 3] = 0  # a class that does not occur
    images = np.stack([overlaps(counts) for counts in each])
    assert miou_of(images.sum(0)) == pytest.approx(Confusion(each.sum(0), list("abcd")).miou)
    for measure, name in ((miou_of, "miou"), (accuracy_of, "accuracy")):
        found = Estimate.of_images(images, measure, 0)
        drawn = [each[rng.integers(0, 30, 30)].sum(0) for _ in range(2000)]
        plain = [getattr(Confusion(counts, list("abcd")), name) for counts in drawn]
        assert found.value == pytest.approx(getattr(Confusion(each.sum(0), list("abcd")), name))
        np.testing.assert_allclose(found[1:], np.percentile(plain, [2.5, 97.5]), atol=0.004)
    assert np.isnan(Estimate.of_images(images[:1], miou_of, 0)[1:]).all()
    trivial = Confusion(each.sum(0), list("abcd"))
    assert miou_of(largest_everywhere(images).sum(0)) == pytest.approx(trivial.trivial)
    assert accuracy_of(largest_everywhere(images).sum(0)) == pytest.approx(trivial.largest)
