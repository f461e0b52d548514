"""Segmentation: heads and their maps, windows, losses, the metric, lists of classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluate.conftest import PIXELS
from timm.layers.norm import LayerNorm2d

from simmim.config.encoder import EncoderConfig
from simmim.config.task import Segmentation
from simmim.data.map_classes import MapClasses, meaning, read_classes
from simmim.errors import DataError
from simmim.evaluate.confusion import Confusion
from simmim.models.build import build_encoder
from simmim.models.dense import DPTHead, HeadKind, Pyramid, usual_blocks
from simmim.tasks.segment import dice_loss
from simmim.tasks.segmenter import (
    Segmenter,
    _largest,
    confusion_of,
    load_segmenter,
    save_segmenter,
    windows,
)

CLASSES = MapClasses(["sky", "road"], [0, 1], {0: 0, 1: 1, 255: -100}, [(9, 9, 9), (200, 0, 0)])


def segmenter(**changes) -> Segmenter:
    torch.manual_seed(0)
    arguments = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=8, arguments=arguments)
    encoder = build_encoder(config, image_size=(32, 48), channels=3)
    return Segmenter(encoder, PIXELS, CLASSES, Segmentation(**changes)).eval()


def test_the_maps_of_a_plain_vit_have_their_strides_and_values():
    for patch, sides in ((16, (12, 6, 3, 2)), (8, (6, 3, 2, 1))):
        pyramid = Pyramid(4, patch)
        for parameter in pyramid.parameters():
            torch.nn.init.constant_(parameter, 0.5)
        token = torch.arange(36.0).view(1, 4, 3, 3)
        maps = pyramid([token] * 4)
        assert [each.shape[-1] for each in maps] == list(sides)
        doubled = maps[1 if patch == 16 else 0]
        expected = (0.5 * token.sum(1) + 0.5).repeat_interleave(2, 1).repeat_interleave(2, 2)
        torch.testing.assert_close(doubled, expected[:, None].expand(-1, 4, -1, -1))
        torch.testing.assert_close(maps[2 if patch == 16 else 1], token)
        last = F.max_pool2d(token, 2 if patch == 16 else 4, ceil_mode=True)
        torch.testing.assert_close(maps[3], last)


def test_the_usual_blocks_are_the_published_ones():
    class Deep:
        stages, depth = 1, 12

    assert usual_blocks(Deep(), "upernet") == (3, 5, 7, 11)  # type: ignore[arg-type]
    assert usual_blocks(Deep(), "dpt") == (2, 5, 8, 11)  # type: ignore[arg-type]
    Deep.depth = 24
    assert usual_blocks(Deep(), "upernet") == (7, 11, 15, 23)  # type: ignore[arg-type]
    assert usual_blocks(Deep(), "dpt") == (5, 11, 17, 23)  # type: ignore[arg-type]


def test_dpt_is_the_published_head_but_for_its_norms():
    """transformers' DPTNeck and DPTSemanticSegmentationHead, with our norm in place of theirs."""
    dpt = pytest.importorskip("transformers.models.dpt.modeling_dpt")
    torch.manual_seed(0)
    ours = DPTHead([64] * 4, 16, 5, patch=16).eval()
    config = dpt.DPTConfig(
        hidden_size=64, neck_hidden_sizes=[8, 16, 32, 64], fusion_hidden_size=16, num_labels=5,
        readout_type="ignore", is_hybrid=False, use_batch_norm_in_fusion_residual=True,
    )  # fmt: skip
    neck, head = dpt.DPTNeck(config), dpt.DPTSemanticSegmentationHead(config)
    for layer in neck.fusion_stage.layers[1:], [neck.fusion_stage.layers[0]]:
        for each in layer:
            for unit in (each.residual_layer1, each.residual_layer2):
                unit.batch_norm1, unit.batch_norm2 = LayerNorm2d(16), LayerNorm2d(16)
    head.head[1] = LayerNorm2d(16)
    del neck.fusion_stage.layers[0].residual_layer1
    stages = neck.reassemble_stage.layers
    theirs = [p for k in range(4) for p in stages[k].parameters()]
    theirs += [p for each in neck.convs for p in each.parameters()]
    for fusion in reversed(neck.fusion_stage.layers):
        units = [fusion.residual_layer1] if hasattr(fusion, "residual_layer1") else []
        for unit in (*units, fusion.residual_layer2):
            for k in "12":
                for part in (getattr(unit, f"convolution{k}"), getattr(unit, f"batch_norm{k}")):
                    theirs += part.parameters()
        theirs += fusion.projection.parameters()
    theirs += head.parameters()
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs, strict=True):
            other.copy_(mine.normal_())
        maps = [torch.randn(2, 64, 4, 6) for _ in range(4)]
        tokens = [F.pad(each.flatten(2).transpose(1, 2), (0, 0, 1, 0)) for each in maps]
        logits = ours(maps)
        assert logits.shape == (2, 5, 32, 48)
        larger = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=True)
        torch.testing.assert_close(larger, head.eval()(neck.eval()(tokens, 4, 6)))


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("head", ["linear", "upernet", "dpt"])
def test_every_weight_of_a_head_and_every_block_it_reads_learns(head: HeadKind, model: str):
    torch.manual_seed(0)
    vit = {"depth": 5, "embed_dim": 48, "num_heads": 3}
    swin = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 1, 1)}
    arguments = swin if "swin" in model else vit
    config = EncoderConfig(model=model, patch_size=4 if "swin" in model else 8, arguments=arguments)
    encoder = build_encoder(config, image_size=(64, 96), channels=3)
    made = Segmenter(encoder, PIXELS, CLASSES, Segmentation(head=head)).eval()
    images = torch.randn(2, 3, 64, 96)
    logits = made.head(made.maps(encoder, images))
    strides = {"linear": 4 if "swin" in model else 8, "upernet": 4, "dpt": 2}
    assert logits.shape == (2, 2, 64 // strides[head], 96 // strides[head])
    logits.square().sum().backward()
    still = [name for name, each in made.head.named_parameters() if not each.grad.any()]
    assert not still
    learned = [any(p.grad is not None for p in block.parameters()) for block in encoder.layers]
    assert all(learned)


@pytest.mark.parametrize("head", ["linear", "upernet", "dpt"])
def test_a_window_is_one_pass_and_the_files_give_it_again(head: str, tmp_path: Path):
    model = segmenter(head=head)
    image = torch.randn(3, 32, 48)
    with torch.no_grad():
        expected = model(image[None])
        torch.testing.assert_close(model.slide(image), expected[0])
        wide = torch.randn(3, 32, 60)
        found = model.slide(wide)
        left, right = model(wide[None, ..., :48])[0], model(wide[None, ..., 12:])[0]
        torch.testing.assert_close(found[..., :12], left[..., :12])
        torch.testing.assert_close(found[..., 12:48], (left[..., 12:] + right[..., :36]) / 2)
        save_segmenter(tmp_path, model, {})
        torch.testing.assert_close(load_segmenter(tmp_path)(image[None]), expected)
    assert expected.shape == (1, 2, 32, 48)
    assert windows((32, 48), (32, 48)) == [(0, 0)]
    assert windows((64, 48), (32, 48)) == [(0, 0), (16, 0), (32, 0)]


def test_logits_are_brought_to_any_size_as_torch_does():
    logits = torch.randn(1, 3, 7, 9)
    for size in ((7, 9), (20, 31), (5, 4)):
        expected = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0].argmax(0)
        assert torch.equal(_largest(logits, size), expected)


def test_the_metric_is_that_of_one_confusion_matrix():
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 3, (2, 500))
    truth[:50] = -100
    counts = confusion_of(truth, found, 4)
    scores = []
    for label in range(3):
        a, b = truth == label, (found == label) & (truth != -100)
        scores.append((a & b).sum() / (a | b).sum())
    result = Confusion(counts, list("abcd"))
    assert result.iou == pytest.approx([*scores, None])
    assert result.miou == pytest.approx(np.mean(scores))
    assert result.accuracy == pytest.approx((truth == found)[50:].mean())


def test_the_dice_loss_is_its_formula():
    logits = torch.full((1, 2, 2, 2), -50.0)
    target = torch.tensor([[[0, 0], [1, -100]]])
    logits[0, 0, :, :] = 50.0  # says 0 everywhere: dice of 0 is (2·2+1)/(3+2+1), of 1 is 1/(0+1+1)
    assert float(dice_loss(logits, target)) == pytest.approx(1 - (5 / 6 + 1 / 2) / 2)


def test_lists_of_classes_and_colours(tmp_path: Path):
    file = tmp_path / "classes.json"
    file.write_text('{"classes": ["a", "b", "void"], "colors": [[1, 2, 3], [4, 4, 4], [0, 0, 0]]}')
    listed = read_classes(file)
    found = meaning(listed, {0: "x", 1: "y", 2: "z"}, None, "DATA")
    assert (found.names, found.values) == (["a", "b"], [0, 1])
    assert found.classes_of(np.array([[0, 1], [2, 7]])).tolist() == [[0, 1], [-100, -100]]
    red = (1 << 24) + (1 << 16) + (2 << 8) + 3
    coloured = meaning(listed, {red: "x", 4: "y"}, None, "DATA")
    assert coloured.classes_of(np.array([red, 4, 0])).tolist() == [0, 1, -100]
    assert MapClasses.of(found.names, json.loads(json.dumps(found.facts()))).lookup == found.lookup
    for values, message in (
        ({0: "x", 3: "y.png"}, "values that the list of classes lacks: 3, such as in y.png"),
        ({red + 1: "y.png"}, r"\(1, 2, 4\) in y.png"),
    ):
        with pytest.raises(DataError, match=message):
            meaning(listed, values, None, "DATA")
    with pytest.raises(DataError, match="1 class"):
        meaning(None, {0: "x"}, None, "DATA")
    assert meaning(None, {0: "x", 255: "y"}, None, "DATA").names == ["background", "foreground"]
    dropped = meaning(None, {0: "x", 2: "y"}, 0, "DATA")
    assert (dropped.names, dropped.values) == (["1", "2"], [1, 2])
    assert dropped.classes_of(np.array([0, 1, 2])).tolist() == [-100, 0, 1]
