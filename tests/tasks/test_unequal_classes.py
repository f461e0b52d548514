"""Few labels, unequal classes, frozen blocks: what is drawn, what counts, what stays."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluate.conftest import PIXELS
from sklearn.utils.class_weight import compute_class_weight
from tasks.test_classify import CLASSES, WORLD, settings, trained
from timm.layers import DropPath

from simmim.api.labelled import draw_labels
from simmim.config.optim import OptimConfig
from simmim.data.loading.images import ImageSet, by_class, class_counts
from simmim.data.loading.loader import TrainStream
from simmim.errors import ConfigError
from simmim.models.build import describe_encoder
from simmim.models.encoder import Encoder
from simmim.tasks.classify import ClassifyTask, balanced_weights, begin_task
from simmim.tasks.freeze import frozen
from simmim.tensors.batch import Batch
from simmim.training.optim import parameter_groups


def uneven(images: ImageSet, few: int) -> ImageSet:
    """The same images, of which but a few are of the second class."""
    labels = [0] * (len(images) - few) + [1] * few
    return replace(images, labels=labels)


def test_draws_are_nested_stratified_and_of_the_seed(stripes):
    images = uneven(stripes("pool", 30), 8)

    def drawn(**changes) -> tuple[set[str], list[int], dict[str, str]]:
        found, said = draw_labels(images, CLASSES, settings(**changes))
        place = dict(zip(images.paths, images.labels, strict=True))
        assert [place[path] for path in found.paths] == found.labels
        return set(found.paths), np.bincount(found.labels).tolist(), dict(said)

    shots = [drawn(shots=n) for n in (1, 3, 6, 20)]
    assert [counts for _, counts, _ in shots] == [[1, 1], [3, 3], [6, 6], [20, 8]]
    shares = [drawn(label_fraction=share) for share in (0.01, 0.25, 0.5, 0.9)]
    assert [counts for _, counts, _ in shares] == [[1, 1], [6, 2], [11, 4], [20, 7]]
    for paths in ([found[0] for found in shots], [found[0] for found in shares]):
        assert all(less < more for less, more in pairwise(paths))
    assert drawn(shots=6, seed=1)[0] != shots[2][0]
    assert shots[3][2] == {
        "drawn": "28 of 30 images are learned from: 20 of each class (--shots), by --seed 0",
        "note": "1 of 2 classes have fewer than 20 images, and give all that they have, such as "
        "along (8)",
    }
    with pytest.raises(ConfigError, match="give one"):
        settings(shots=1, label_fraction=0.5)


def test_balanced_weights_are_scikit_learns_and_count_rows(encoder: Encoder, stripes):
    images = uneven(stripes("pool", 20), 4)
    weights = balanced_weights(images, 3)
    expected = compute_class_weight("balanced", classes=np.arange(2), y=np.array(images.labels))
    np.testing.assert_allclose(weights.numpy(), [*expected, 0])
    config = settings(encoder=describe_encoder(encoder, 0.0))
    config = replace(config, task=replace(config.task, weights="balanced", smoothing=0.0))
    task = begin_task(config, encoder, (32, 32), images, classes=CLASSES, world=WORLD)
    views = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 0, 0, 1, 0, 1, 0, 0])
    losses = [
        task.loss(Batch(views[rows], torch.arange(8)[rows], labels[rows]))["loss"]
        for rows in (slice(0, 8), slice(0, 3), slice(3, 8))
    ]
    logits = task.classifier((views / 255 - 0.5) / 0.25)
    total = F.cross_entropy(logits, labels, weight=weights[:2], reduction="sum")
    torch.testing.assert_close(losses[0], total / 8)
    # However a batch is cut, each row counts the same.
    torch.testing.assert_close(losses[0], (3 * losses[1] + 5 * losses[2]) / 8)


def test_balanced_sampling_shows_all_classes_as_often_from_any_step_on(stripes):
    images = by_class(uneven(stripes("pool", 24), 4))

    def labels(start: int) -> list[list[int]]:
        stream = TrainStream(
            images, augment=settings().augment, size=(32, 32), seed=3, batch_size=8,
            micro_batch=8, workers=0, groups=class_counts(images),
        )  # fmt: skip
        batches = stream.start(start)
        return [next(batches).labels.tolist() for _ in range(6 - start)]  # type: ignore[union-attr]

    whole = labels(0)
    assert np.bincount(np.ravel(whole)).tolist() == [24, 24]
    assert labels(4) == whole[4:]


@pytest.mark.parametrize(("what", "still"), [("1", {0, 1}), ("all", {0, 1, 2, 3})])
def test_frozen_blocks_are_neither_trained_nor_in_the_optimizer(
    encoder: Encoder, stripes, what: str, still: set[int]
):
    images = stripes("train", 16)
    classifier = trained(encoder, images, settings(epochs=2, freeze=what))
    depths = encoder.roles()
    before, after = dict(encoder.named_parameters()), classifier.encoder.state_dict()
    kept = {depths[name][1] for name in before if torch.equal(after[name], before[name])}
    changed = {depths[name][1] for name in before if not torch.equal(after[name], before[name])}
    assert (kept, changed) == (still, {0, 1, 2, 3} - still)

    config = settings(encoder=describe_encoder(encoder, 0.4))
    task = frozen(begin_task(config, encoder, (32, 32), images, classes=CLASSES, world=WORLD), what)
    groups = parameter_groups(task.module, task.roles(), OptimConfig())
    held = {name for group in groups for name in group["names"]}
    of_encoder = {name for name in depths if depths[name][1] not in still}
    assert held == {f"encoder.{name}" for name in of_encoder} | {"head.weight", "head.bias"}
    drops = [
        [module.drop_prob for module in layer.modules() if isinstance(module, DropPath)]
        for layer in task.encoder.layers
    ]
    assert not any(drops[0])
    assert any(drops[1]) == (what == "1")


def test_more_blocks_than_there_are_cannot_be_frozen(encoder: Encoder):
    from simmim.tasks.classifier import Classifier

    task = ClassifyTask(Classifier(encoder, PIXELS, CLASSES), 0.0)
    with pytest.raises(ConfigError, match="the encoder has 2 blocks"):
        frozen(task, "3")
    for wrong in ("0", "some", "-1", "1.5"):
        with pytest.raises(ConfigError, match="a number of blocks from 1 up"):
            settings(freeze=wrong)
