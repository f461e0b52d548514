import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from evaluate.conftest import PIXELS
from safetensors.torch import load_file

from simmim.config.augment import LabelledAugmentConfig
from simmim.config.encoder import EncoderConfig
from simmim.config.finetune import ClassifyConfig
from simmim.config.run import SystemConfig
from simmim.config.task import Classification
from simmim.data.loading.images import ImageSet
from simmim.errors import CheckpointError, DataError
from simmim.evaluate.attentive import AttentiveHead
from simmim.evaluate.probe import fit_layer
from simmim.interop.load import LoadedEncoder
from simmim.models.build import build_encoder, describe_encoder
from simmim.models.encoder import Encoder
from simmim.tasks.classifier import STRENGTH, Classifier, load_classifier, save_classifier
from simmim.tasks.classify import begin_task, check_labels, finetune_in_memory
from simmim.training.world import World

WORLD = World(0, 1, torch.device("cpu"))
CLASSES = ["across", "along"]


def settings(lr: float = 8e-3, layer_decay: float = 0.65, **changes) -> ClassifyConfig:
    usual = ClassifyConfig(data=("stripes",), init_from="none")
    values = {
        "epochs": 12,
        "batch_size": 16,
        "optim": replace(usual.optim, lr=lr, layer_decay=layer_decay),
        "augment": LabelledAugmentConfig(scale=(0.5, 1.0)),
        "threads": 1,
        "system": SystemConfig(workers=0),
    }
    return replace(usual, **{**values, **changes})


def trained(encoder: Encoder, images: ImageSet, config: ClassifyConfig, **more) -> Classifier:
    start = LoadedEncoder(encoder, PIXELS)
    return finetune_in_memory(config, start, images, classes=CLASSES, world=WORLD, **more)


class Rows(list):
    update = list.append


def test_two_classes_of_images_are_learned(encoder: Encoder, stripes):
    train, val = stripes("train", 64), stripes("val", 40)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    rows = Rows()

    classifier = trained(encoder, train, settings(), watchers=[rows])

    assert classifier.predict(val).score().accuracy > 0.9
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert len(rows) == 48
    after = encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_same_seed_gives_the_same_weights_for_any_micro_batch(encoder: Encoder, stripes):
    train = stripes("train", 20)

    def classifier(**changes) -> Classifier:
        torch.rand(1)  # the state of torch's generator must not matter
        return trained(encoder, train, settings(epochs=3, **changes))

    first, again, other = (classifier(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    whole, cut = (
        classifier(encoder=EncoderConfig(), micro_batch=rows).predict(train) for rows in (16, 5)
    )
    np.testing.assert_allclose(whole.probabilities, cut.probabilities, atol=1e-3)


def test_the_head_is_on_top_and_stochastic_depth_is_on(encoder: Encoder, stripes):
    config = settings(layer_decay=0.5, encoder=describe_encoder(encoder, 0.3))
    images = replace(stripes("train", 4), pixels=PIXELS)
    task = begin_task(config, encoder, encoder.image_size, images, classes=CLASSES, world=WORLD)
    roles = task.roles()
    module = task.module
    assert roles.keys() == dict(module.named_parameters()).keys()
    assert roles["head.weight"] == ("weight", 3)
    assert roles["encoder.net.patch_embed.proj.weight"][1] == 0
    assert task.encoder.layers[-1].drop_path1.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 32, "num_heads": 2}),
        ("eva02_tiny_patch14_224", {"embed_dim": 24, "num_heads": 2}),
    ],
)
def test_timm_gives_the_logits_of_a_saved_classifier(tmp_path: Path, model: str, more: dict):
    torch.manual_seed(0)
    config = EncoderConfig(model=model, patch_size=8, arguments={"depth": 2, **more})
    encoder = build_encoder(config, image_size=(32, 48), channels=3)
    classifier = Classifier(encoder, PIXELS, ["a", "b", "ç"]).eval()
    torch.nn.init.normal_(classifier.head.weight)
    torch.nn.init.normal_(classifier.head.bias)
    save_classifier(tmp_path, classifier, {"started_from": "random weights"})
    images = torch.randn(2, 3, 32, 48)
    expected = classifier(images)

    torch.testing.assert_close(load_classifier(tmp_path)(images), expected)
    assert load_classifier(tmp_path).classes == ["a", "b", "ç"]
    card = json.loads((tmp_path / "encoder.json").read_text())
    net = timm.create_model(card["model"], **{**card["arguments"], "num_classes": 3}).eval()
    net.load_state_dict(load_file(tmp_path / "classifier.safetensors"))
    torch.testing.assert_close(net(images), expected, atol=1e-5, rtol=1e-5)

    (tmp_path / "classes.json").write_text(
        '{"format": 1, "task": "classify", "classes": ["a", "b"]}'
    )
    with pytest.raises(CheckpointError, match="does not fit"):
        load_classifier(tmp_path)


def test_predictions_are_written_with_names(encoder: Encoder, stripes, tmp_path: Path):
    images = stripes("some", 3)
    Path(images.paths.infos[0].parts[0], images.paths[1]).write_bytes(b"")
    classifier = Classifier(encoder, PIXELS, CLASSES)
    classifier.head.bias.data = torch.tensor([0.0, np.log(3)]).float()
    found = classifier.predict(images)
    assert found.skipped == {images.paths[1]: "the file is empty"}
    found.write(tmp_path / "predictions.csv")
    assert (tmp_path / "predictions.csv").read_text().splitlines() == [
        "path,label,prediction,across,along",
        "000.png,across,along,0.250000,0.750000",
        "002.png,across,along,0.250000,0.750000",
    ]


def test_images_without_labels_or_with_one_class_are_refused(encoder: Encoder, stripes):
    images = stripes("some", 3)
    for labels, message in ((None, "no labels"), ([1, 1, 1], "3 images of 1 class")):
        chosen = ImageSet(images.paths, PIXELS, labels)
        with pytest.raises(DataError, match=message):
            check_labels(chosen, CLASSES)


def test_an_attentive_head_starts_as_a_fit_to_what_it_sees_of_standardised_tokens(
    encoder: Encoder, stripes
):
    train = stripes("train", 12)
    config = settings(task=Classification(pool="attentive"), encoder=describe_encoder(encoder, 0.0))
    task = begin_task(config, encoder, (32, 32), train, classes=CLASSES, world=WORLD)
    classifier = task.classifier.eval()
    loaded = LoadedEncoder(encoder, PIXELS)
    root = train.paths.infos[0].parts[0]
    views = torch.stack([loaded.transform(f"{root}/{name}") for name in train.paths])
    with torch.no_grad():
        tokens = encoder.eval().features(views).patches
        logits = classifier(views).numpy()
        pooled = classifier.pool(tokens).numpy()
    assert isinstance(classifier.head, AttentiveHead)
    torch.testing.assert_close(classifier.head.mean, tokens.mean((0, 1)), atol=1e-4, rtol=1e-3)
    spread = tokens.std((0, 1), correction=0)
    torch.testing.assert_close(classifier.head.deviation, spread, atol=1e-4, rtol=1e-3)
    weight, bias = fit_layer(pooled, np.array(train.labels), classes=2, strength=STRENGTH)
    np.testing.assert_allclose(logits, pooled @ weight.T + bias, atol=1e-3)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_an_attentive_head_alone_is_trained_on_a_frozen_encoder_and_kept(
    encoder: Encoder, stripes, tmp_path: Path, ema: float
):
    train, val = stripes("train", 32), stripes("val", 20)
    config = settings(task=Classification(pool="attentive"), freeze="all", epochs=6, ema=ema)
    classifier = trained(encoder, train, config)
    before, after = encoder.state_dict(), classifier.encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    first = AttentiveHead(32, 2, config.seed).state_dict()
    own = classifier.head.state_dict()
    for name in ("query", "keys", "values", "top.weight"):
        assert not torch.equal(own[name], first[name]), name
    said = classifier.predict(val)
    assert said.score().accuracy > 0.8
    save_classifier(tmp_path, classifier, {})
    again = load_classifier(tmp_path).predict(val)
    assert np.array_equal(again.probabilities, said.probabilities)
    assert json.loads((tmp_path / "classes.json").read_text())["settings"] == {"pool": "attentive"}
