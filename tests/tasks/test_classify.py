import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from evaluate.conftest import PIXELS
from safetensors.torch import load_file

from simmim.config.augment import AugmentConfig
from simmim.config.commands import FinetuneConfig
from simmim.config.encoder import EncoderConfig
from simmim.data.loading.images import ImageSet
from simmim.errors import CheckpointError, DataError
from simmim.models.build import build_encoder
from simmim.models.encoder import Encoder
from simmim.tasks.classifier import Classifier, load_classifier, save_classifier
from simmim.tasks.classify import copy_encoder, finetune_encoder, prepare
from simmim.training.world import World

WORLD = World(0, 1, torch.device("cpu"))
CLASSES = ["across", "along"]
POSITIONS = "blocks.0.attn.relative_position_bias_table"


def settings(**changes) -> FinetuneConfig:
    values = {
        "data": Path("stripes"),
        "init_from": "none",
        "epochs": 12,
        "batch_size": 16,
        "lr": 8e-3,
        "augment": AugmentConfig(scale=(0.5, 1.0)),
        "threads": 1,
        "workers": 0,
    }
    return FinetuneConfig(**{**values, **changes})


class Rows(list):
    update = list.append


def test_two_classes_of_images_are_learned(encoder: Encoder, stripes):
    train, val = stripes("train", 64), stripes("val", 40)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    rows = Rows()

    classifier = finetune_encoder(
        encoder, PIXELS, train, CLASSES, settings(), world=WORLD, val=val, watchers=[rows]
    )

    score = classifier.predict(val).score()
    assert score.accuracy > 0.9
    assert score.balanced_accuracy == pytest.approx(rows[-1]["balanced_accuracy"])
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert len(rows) == 48
    after = encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_same_seed_gives_the_same_weights_for_any_micro_batch(encoder: Encoder, stripes):
    train = stripes("train", 20)

    def trained(**changes) -> Classifier:
        torch.rand(1)  # the state of torch's generator must not matter
        config = settings(epochs=3, **changes)
        return finetune_encoder(encoder, PIXELS, train, CLASSES, config, world=WORLD)

    first, again, other = (trained(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    whole, cut = (trained(drop_path=0.0, micro_batch=rows).predict(train) for rows in (16, 5))
    np.testing.assert_allclose(whole.probabilities, cut.probabilities, atol=1e-3)


def test_the_head_is_on_top_and_stochastic_depth_is_on(encoder: Encoder, stripes):
    config = settings(layer_decay=0.5, drop_path=0.3)
    prepared = prepare(encoder, PIXELS, stripes("train", 4), CLASSES, config, world=WORLD)
    roles = prepared.task.roles()
    module = prepared.task.module
    assert roles.keys() == dict(module.named_parameters()).keys()
    assert roles["head.weight"] == ("weight", 3)
    assert roles["encoder.net.patch_embed.proj.weight"][1] == 0
    blocks = prepared.task.classifier.encoder.layers
    assert blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    assert prepared.plan.steps == 3  # 12 epochs of 4 images, 16 a step


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

    (tmp_path / "classes.json").write_text('{"format": 1, "classes": ["a", "b"]}')
    with pytest.raises(CheckpointError, match="does not fit"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_another_image_size_keeps_the_meaning_of_positions(model: str):
    torch.manual_seed(0)
    config = EncoderConfig(
        model=model, patch_size=8, arguments={"depth": 1, "embed_dim": 32, "num_heads": 2}
    )
    encoder = build_encoder(config, image_size=(32, 48), channels=3)
    for name, value in encoder.named_parameters():
        if "tables" in name:
            torch.nn.init.normal_(value)
    same = copy_encoder(encoder, (32, 48), 0.0)
    images = torch.randn(1, 3, 32, 48)
    torch.testing.assert_close(same.features(images).patches, encoder.features(images).patches)

    larger = copy_encoder(encoder, (64, 96), 0.0)

    assert larger.grid == (8, 12)
    back = copy_encoder(larger, (32, 48), 0.0)
    own, grown, again = (net.timm_state() for net in (encoder, larger, back))
    changed = [name for name, value in grown.items() if value.shape != own[name].shape]
    assert changed == ["pos_embed" if model.startswith("vit") else POSITIONS]
    if model.startswith("vit"):  # a patch keeps its place in the image
        pair = torch.stack([state["pos_embed"].flatten() for state in (own, again)])
        assert torch.corrcoef(pair)[0, 1] > 0.9
    else:  # and a neighbour its bias
        near = [
            state[POSITIONS][:-3].view(2 * h - 1, 2 * w - 1, -1)[h - 2 : h + 1, w - 2 : w + 1]
            for state, (h, w) in ((own, (4, 6)), (grown, (8, 12)), (again, (4, 6)))
        ]
        torch.testing.assert_close(near[1], near[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(near[2], near[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", ["swin_tiny_patch4_window7_224", "beit_base_patch16_224"])
def test_a_copy_for_another_image_size_is_the_encoder_at_that_grid(model: str):
    torch.manual_seed(0)
    swin, beit = {"embed_dim": 12, "depths": (1, 1, 1, 1)}, {"embed_dim": 32, "num_heads": 2}
    more = swin if "swin" in model else {"depth": 1, **beit}
    encoder = build_encoder(
        EncoderConfig(model=model, arguments=more), image_size=(224, 224), channels=3
    )
    for table in encoder._relative_tables():
        torch.nn.init.normal_(table)
    larger = copy_encoder(encoder, (256, 224), 0.0)
    images = torch.randn(1, 3, 256, 224)
    expected = encoder.features(images).patches
    torch.testing.assert_close(larger.features(images).patches, expected, atol=1e-5, rtol=1e-4)


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
            prepare(encoder, PIXELS, chosen, CLASSES, settings(), world=WORLD)
