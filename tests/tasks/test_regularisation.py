"""What keeps a classifier from learning by heart, beside timm's own and the formula."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluate.conftest import PIXELS
from PIL import Image
from tasks.test_classify import CLASSES, WORLD, settings, trained
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing

from simmim.config.augment import LabelledAugmentConfig
from simmim.config.finetune import ClassifyConfig, RegressConfig
from simmim.data.loading.distort import distorted
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream
from simmim.errors import ConfigError
from simmim.models.build import describe_encoder
from simmim.models.encoder import Encoder
from simmim.tasks.classify import begin_task
from simmim.tasks.mixture import Mixture
from simmim.tensors.counter import Purpose, hash64

ALL = LabelledAugmentConfig(rand_augment=9, erasing=0.9, mixup=0.8, cutmix=1.0)


def seed_all(*keys: int) -> None:
    value = hash64(*keys)
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)  # noqa: NPY002
    torch.default_generator.manual_seed(value >> 1)


@pytest.fixture
def globals_stay():
    """Whatever is drawn, the generators of the process go on as if nothing had been."""
    seed_all(1)
    expected = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    seed_all(1)
    yield
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002


@pytest.mark.usefixtures("globals_stay")
def test_mixing_is_timms_in_pairs_and_hangs_on_the_place_alone():
    config = LabelledAugmentConfig(mixup=0.8, cutmix=1.0, erasing=0.0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 16, 16, generator=generator)
    labels = torch.randint(0, 3, (12,), generator=generator)
    smooth = torch.nn.functional.one_hot(labels, 3) * 0.9 + 0.1 / 3
    places = torch.arange(40, 52)
    mixed, targets = Mixture(config, 5)(images, smooth, places)
    for k in range(0, 12, 2):
        state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        seed_all(5, Purpose.MIXUP, 40 + k)
        theirs, wanted = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=3)(
            images[k : k + 2].clone(), labels[k : k + 2]
        )
        random.setstate(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        torch.set_rng_state(state[2])
        assert torch.equal(mixed[k : k + 2], theirs)
        torch.testing.assert_close(targets[k : k + 2], wanted)
    assert len({float(row.max()) for row in targets}) > 4  # each pair has a share of its own
    parts = [Mixture(config, 5)(images[r], smooth[r], places[r]) for r in (slice(4), slice(4, 12))]
    assert torch.equal(torch.cat([part[0] for part in parts]), mixed)
    # The first of an odd place and the last of an even one lack their partners.
    odd, _ = Mixture(config, 5)(images[1:5], smooth[1:5], places[1:5])
    assert torch.equal(odd, torch.cat([images[1:2], mixed[2:4], images[4:5]]))


@pytest.mark.usefixtures("globals_stay")
def test_erasing_is_timms():
    images, targets = torch.zeros(6, 3, 16, 16), torch.zeros(6, 2)
    config = LabelledAugmentConfig(mixup=0.0, cutmix=0.0, erasing=0.6)
    erased, after = Mixture(config, 3)(images, targets, torch.arange(6))
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    for row in range(6):
        seed_all(3, Purpose.ERASE, row)
        theirs = RandomErasing(0.6, mode="pixel", device="cpu")(torch.zeros(3, 16, 16))
        assert torch.equal(erased[row], theirs)
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    torch.set_rng_state(state[2])
    assert 0 < sum(bool(row.any()) for row in erased) < 6
    assert torch.equal(after, targets)
    assert not images.any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.usefixtures("globals_stay")
def test_rand_augment_is_timms(channels: int):
    values = np.random.default_rng(0).integers(0, 256, (20, 24, channels), dtype=np.uint8)
    seen = torch.from_numpy(values).permute(2, 0, 1)
    pixels = replace(PIXELS, channels=channels, mean=(0.5,) * channels)
    fill = 128 if channels == 1 else (128, 128, 128)
    theirs = rand_augment_transform(
        "rand-m9-mstd0.5-inc1", {"translate_const": 9, "img_mean": fill, "magnitude_max": 9.999}
    )
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    changed = 0
    for t in range(30):
        ours = distorted(seen, ALL, pixels, (0, Purpose.DISTORT, t))
        seed_all(0, Purpose.DISTORT, t)
        expected = np.array(theirs(Image.fromarray(values.squeeze())))
        np.testing.assert_array_equal(ours.permute(1, 2, 0).numpy().squeeze(), expected)
        changed += not torch.equal(ours, seen)
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    torch.set_rng_state(state[2])
    assert changed > 15
    for t in range(300):  # whatever is drawn, at the largest magnitude too
        distorted(seen, replace(ALL, rand_augment=10), pixels, (1, t))
    plain = LabelledAugmentConfig(rand_augment=0)
    assert torch.equal(distorted(seen, plain, pixels, (0, 1)), seen)


def test_views_are_distorted_the_same_from_any_step_on(stripes):
    images: ImageSet = stripes("pool", 12)

    def batches(augment: LabelledAugmentConfig, start: int) -> list[torch.Tensor]:
        stream = TrainStream(
            images, augment=augment, size=(32, 32), seed=3, batch_size=4, micro_batch=4, workers=0
        ).start(start)
        return [next(stream).images.clone() for _ in range(3 - start)]

    whole, plain = batches(ALL, 0), batches(replace(ALL, rand_augment=0), 0)
    assert torch.equal(batches(ALL, 2)[0], whole[2])
    assert not torch.equal(whole[2], plain[2])


def test_the_average_follows_its_formula_and_is_what_is_kept(encoder: Encoder, stripes):
    images = stripes("train", 8)
    config = settings(ema=0.6, encoder=describe_encoder(encoder, 0.0))
    task = begin_task(config, encoder, (32, 32), images, classes=CLASSES, world=WORLD)
    weight, expected = task.trained.head.weight, None
    for step in range(1, 6):
        with torch.no_grad():
            weight += 1.0
        task.after_step(step, 10)
        decay = 0.0 if step == 1 else min(0.6, 1 - step ** (-2 / 3))
        now = weight.detach().clone()
        expected = now if expected is None else decay * expected + (1 - decay) * now
        torch.testing.assert_close(task.classifier.head.weight.detach(), expected)
    named = dict(task.module.named_parameters())
    assert {name for name, p in named.items() if p.requires_grad} == task.roles().keys()
    assert all(name.startswith("trained.") for name in task.roles())

    plain, kept = (
        trained(encoder, images, settings(epochs=3, ema=ema)).state_dict() for ema in (0.0, 0.9)
    )
    assert any(not torch.equal(plain[name], kept[name]) for name in plain)


def test_any_even_micro_batch_gives_the_same(encoder: Encoder, stripes):
    images = stripes("train", 16)
    config = settings(epochs=2, augment=ALL, encoder=describe_encoder(encoder, 0.0))
    whole, cut = (
        trained(encoder, images, replace(config, micro_batch=rows)).predict(images)
        for rows in (16, 6)
    )
    np.testing.assert_allclose(whole.probabilities, cut.probabilities, atol=1e-3)
    with pytest.raises(ConfigError, match="must be even"):
        replace(config, micro_batch=5)


def test_few_labels_have_nothing_done_to_them_unless_asked():
    usual = ClassifyConfig(data=("x",), init_from="none")

    def chosen(config: ClassifyConfig | RegressConfig, images: int, *, plain: bool = True):
        found = config.fitted(images, plain=plain)
        augment = found.augment
        return (
            *(augment.rand_augment, augment.erasing, augment.mixup, augment.cutmix),
            *(found.encoder.drop_path, found.usual_length(images, "cpu")[0]),
        )

    assert chosen(usual, 999) == (0, 0, 0, 0, 0, 200)
    assert chosen(usual, 1000) == (9, 0.25, 0.8, 1, 0.1, 100)
    assert chosen(usual, 1000, plain=False)[:2] == (0, 0.25)
    assert chosen(RegressConfig(data=("x",), init_from="none"), 5000)[:4] == (0, 0, 0, 0)
    asked = replace(copy.copy(usual), augment=LabelledAugmentConfig(mixup=0.2, rand_augment=5))
    assert chosen(asked, 10) == (5, 0, 0.2, 0, 0, 200)
    with pytest.raises(ConfigError, match="RandAugment takes 8-bit images"):
        asked.fitted(10, plain=False)
