"""Folders for Hugging Face transformers: opened by its own classes, and by ours again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from simmim.config.decoder import LinearDecoder, TransformerDecoder
from simmim.config.encoder import EncoderConfig
from simmim.config.mask import RandomMask
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.config.target import PixelTarget
from simmim.errors import ConfigError
from simmim.interop.export.huggingface import compare_huggingface, write_huggingface
from simmim.interop.layouts.huggingface import read_huggingface
from simmim.interop.load import encoder_from, model_from
from simmim.models.build import build_encoder
from simmim.models.encoder import Encoder
from simmim.models.mim import MaskedImageModel, build_model
from simmim.tensors.patches import normalise

ViTMAE: Any = transformers.ViTMAEForPreTraining
AutoModel: Any = transformers.AutoModel
PIXELS = PixelFormat(
    channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.21, 0.22)
)
TINY: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
SWIN: dict[str, Any] = {
    "embed_dim": 8,
    "depths": [1, 1, 1, 2],
    "num_heads": [1, 2, 2, 4],
    "window_size": 2,
}
LINEAR: dict[str, Any] = {"decoder": LinearDecoder(), "target": PixelTarget(loss="l1")}


def part(model: str, patch: int = 8, **more: Any) -> EncoderConfig:
    arguments = more.pop("arguments", TINY)
    return EncoderConfig(model=model, patch_size=patch, arguments=arguments, init="timm", **more)


VIT = part("vit_tiny_patch16_224")
DECODER = TransformerDecoder(depth=2, width=32)
RECIPES: dict[str, tuple[PretrainConfig, str]] = {
    "mae": (
        PretrainConfig(
            encoder=VIT,
            decoder=DECODER,
            mask=RandomMask(ratio=0.75, rounding="keep-floor"),
            target=PixelTarget(norm_pix=True),
        ),
        "ViTMAEForPreTraining",
    ),
    "simmim": (PretrainConfig(encoder=VIT, decoder=DECODER), "ViTMAEForPreTraining"),
    "simmim-paper": (
        PretrainConfig(encoder=part("beit_base_patch16_224", position="none"), **LINEAR),
        "BeitModel",
    ),
    "simmim-paper-vit": (PretrainConfig(encoder=VIT, **LINEAR), "ViTForMaskedImageModeling"),
    "simmim-paper-swin": (
        PretrainConfig(
            encoder=part("swin_base_patch4_window7_224", 2, arguments=SWIN, position="none"),
            mask=RandomMask(ratio=0.6, unit=16, rounding="ceil"),
            **LINEAR,
        ),
        "SwinForMaskedImageModeling",
    ),
    "scaled": (
        PretrainConfig(encoder=part("vit_small_patch14_dinov2"), decoder=DECODER),
        "Dinov2Model",
    ),
}


def stir(module: nn.Module) -> None:
    """Make all weights random, so that none is right by being zero or one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in module.named_parameters():
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            value.copy_(around + 0.2 * torch.randn(value.shape, generator=generator))


def model_for(name: str) -> MaskedImageModel:
    model = build_model(RECIPES[name][0], PIXELS, (32, 32))
    stir(model)
    return model.eval()


def images(channels: int = 3, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(4))


def encoder_for(name: str, size: tuple[int, int] = (32, 32), channels: int = 3) -> Encoder:
    encoder = build_encoder(part(name, arguments={"depth": 2}), image_size=size, channels=channels)
    stir(encoder)
    return encoder.eval()


def opened(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    config = json.loads((folder / "config.json").read_text())
    config["_preprocessor"] = json.loads((folder / "preprocessor_config.json").read_text())
    return load_file(folder / "model.safetensors"), config


@pytest.mark.parametrize("name", RECIPES)
def test_transformers_gives_what_ours_gives(name: str, tmp_path: Path):
    model, (config, architecture) = model_for(name), RECIPES[name]

    notes = write_huggingface(tmp_path, model, model.encoder, PIXELS, config=config, card="# card")

    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [architecture]
    assert (tmp_path / "README.md").read_text() == "# card"
    found = compare_huggingface(tmp_path, model, model.encoder, images())
    whole = "For" in architecture
    assert found.keys() == ({"features", "prediction", "loss"} if whole else {"features"})
    assert max(found.values()) < 1e-5
    assert len(notes) == (not whole)


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_one_folder_serves_both_classes_and_none_misses_a_weight(name: str, tmp_path: Path):
    model, (config, _) = model_for(name), RECIPES[name]
    write_huggingface(tmp_path, model, model.encoder, PIXELS, config=config, card="")

    auto, told = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    whole, told_whole = ViTMAE.from_pretrained(tmp_path, output_loading_info=True)

    assert type(auto).__name__ == "ViTModel"
    assert not told["missing_keys"]
    assert all(key.startswith("decoder.") for key in told["unexpected_keys"])
    assert not told_whole["missing_keys"]
    assert all(key.startswith("vit.pooler.") for key in told_whole["unexpected_keys"])
    assert not told["mismatched_keys"]
    assert not told_whole["mismatched_keys"]
    assert whole.config.mask_ratio == config.mask.ratio
    assert whole.config.norm_pix_loss == config.target.norm_pix
    with torch.no_grad():
        output = auto.eval()(images())
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 0])


@pytest.mark.parametrize("name", RECIPES)
def test_weights_come_back_bit_by_bit(name: str, tmp_path: Path):
    model, (config, architecture) = model_for(name), RECIPES[name]
    write_huggingface(tmp_path, model, model.encoder, PIXELS, config=config, card="", licence="mit")

    found = read_huggingface(*opened(tmp_path))

    ours, back = model.encoder.timm_state(), encoder_from(found).timm_state()
    assert ours.keys() == back.keys()
    assert all(torch.equal(ours[key], back[key]) for key in ours)
    assert (found.pixels, found.own, found.licence) == (PIXELS, True, "mit")
    assert found.norm_eps is None
    assert (found.pretraining is not None) == ("For" in architecture)
    if found.pretraining is not None:
        assert (found.pretraining.mask, found.pretraining.target) == (config.mask, config.target)
        again = model_from(found).state_dict()
        assert again.keys() == model.state_dict().keys()
        assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("vit.encoder.layer.1.output.dense.weight", {"features", "prediction", "loss"}),
        ("decoder.decoder_layers.0.attention.attention.key.weight", {"prediction", "loss"}),
        ("decoder.decoder_pos_embed", {"prediction", "loss"}),
    ],
)
def test_a_corrupted_weight_shows(key: str, wrong: set[str], tmp_path: Path):
    model, (config, _) = model_for("simmim"), RECIPES["simmim"]
    write_huggingface(tmp_path, model, model.encoder, PIXELS, config=config, card="")
    state = load_file(tmp_path / "model.safetensors")
    state[key].view(-1)[:7] += 3
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})

    found = compare_huggingface(tmp_path, model, model.encoder, images())

    assert {name for name, value in found.items() if value > 1e-4} == wrong


@pytest.mark.parametrize(
    ("pixels", "size", "options"),
    [
        (PIXELS, (32, 32), {}),
        (PIXELS, (32, 48), {}),
        (
            PixelFormat(channels=1, low=(0.0,), high=(4095.0,), mean=(0.3,), std=(0.2,)),
            (32, 32),
            {},
        ),
        (
            PixelFormat(
                channels=5,
                low=(-3.5, 0.0, 1.0, 100.0, 0.0),
                high=(7.25, 0.5, 1.5, 900.0, 255.0),
                mean=(0.3, 0.4, 0.5, 0.6, 0.7),
                std=(0.2, 0.1, 0.3, 0.2, 0.2),
            ),
            (32, 32),
            {"input_data_format": "channels_last"},
        ),
    ],
)
def test_its_image_processor_normalises_as_ours(
    pixels: PixelFormat, size: tuple[int, int], options: dict[str, Any], tmp_path: Path
):
    encoder = encoder_for("vit_tiny_patch16_224", size, pixels.channels)
    write_huggingface(tmp_path, None, encoder, pixels, config=None, card="")
    rng = np.random.default_rng(1)
    low, high = np.array(pixels.low), np.array(pixels.high)
    values = low + rng.random((*size, pixels.channels)) * (high - low)
    array = values.astype(np.float32 if any(pixels.low) else np.uint16)
    given: Any = Image.fromarray(array.astype(np.uint8)) if pixels is PIXELS else array

    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    theirs = processor(given, return_tensors="pt", **options)["pixel_values"]

    ours = normalise(torch.tensor(array.astype(np.float32)).permute(2, 0, 1)[None], pixels)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert max(compare_huggingface(tmp_path, None, encoder, ours).values()) < 1e-5


def test_its_image_processor_scales_to_cover_and_cuts_as_ours(tmp_path: Path):
    encoder = encoder_for("vit_tiny_patch16_224")
    write_huggingface(tmp_path, None, encoder, PIXELS, config=None, card="")
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = 255  # what remains

    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    theirs = processor(Image.fromarray(wide), return_tensors="pt")["pixel_values"]

    white = normalise(torch.full((1, 3, 32, 32), 255.0), PIXELS)
    torch.testing.assert_close(theirs, white, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("vit_tiny_patch16_224", "Dinov2ForImageClassification"),
        ("vit_small_patch14_dinov2", "Dinov2ForImageClassification"),
        ("swin_base_patch4_window7_224", "SwinForImageClassification"),
    ],
)
def test_a_classifier_on_the_mean_of_the_tokens_gives_the_same_logits(
    name: str, architecture: str, tmp_path: Path
):
    config = part(name, 2, arguments=SWIN) if "swin" in name else part(name)
    encoder = build_encoder(config, image_size=(32, 32), channels=3).eval()
    head = nn.Linear(encoder.width, 3)
    stir(encoder)
    stir(head)

    write_huggingface(
        tmp_path, None, encoder, PIXELS, config=None, card="", classes=["a", "b", "c"], head=head
    )

    found = compare_huggingface(tmp_path, None, encoder, images(), head=head)
    assert found.keys() == {"features", "logits"}
    assert max(found.values()) < 1e-5
    settings = transformers.AutoConfig.from_pretrained(tmp_path)
    assert settings.architectures == [architecture]
    assert settings.id2label == {0: "a", 1: "b", 2: "c"}
    head.bias.data[0] += 1
    assert compare_huggingface(tmp_path, None, encoder, images(), head=head)["logits"] > 1e-2


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("eva02_tiny_patch14_224", "class Eva"),
        ("deit_tiny_distilled_patch16_224", "class VisionTransformerDistilled"),
        ("vit_small_patch14_reg4_dinov2", "no place for its pos_embed, reg_token"),
        ("vit_base_patch16_gap_224", "no cls_token"),
        ("vit_base_patch16_clip_224", "no place for its norm_pre"),
    ],
)
def test_encoders_that_transformers_has_no_class_for_are_refused_with_what_works(
    name: str, told: str, tmp_path: Path
):
    with pytest.raises(ConfigError, match=told) as error:
        write_huggingface(tmp_path / "out", None, encoder_for(name), PIXELS, config=None, card="")

    assert "timm, onnx" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_classifier_that_transformers_pools_otherwise_is_refused(tmp_path: Path):
    encoder = model_for("simmim-paper").encoder

    with pytest.raises(ConfigError, match="mean of its patch tokens"):
        write_huggingface(
            tmp_path, None, encoder, PIXELS, config=None, card="", classes=["a"],
            head=nn.Linear(48, 1),
        )  # fmt: skip


def test_windows_that_do_not_fill_the_grids_are_refused(tmp_path: Path):
    config = part("swin_base_patch4_window7_224", 2, arguments=SWIN | {"window_size": 4})
    encoder = build_encoder(config, image_size=(32, 32), channels=3)

    with pytest.raises(ConfigError, match="one window for all stages"):
        write_huggingface(tmp_path, None, encoder, PIXELS, config=None, card="")


def test_a_decoder_that_vitmae_cannot_have_is_told(tmp_path: Path):
    config, _ = RECIPES["simmim"]
    config = replace(config, encoder=part("vit_tiny_patch16_224"))
    model = build_model(config, PIXELS, (32, 48))

    notes = write_huggingface(tmp_path, model, model.encoder, PIXELS, config=config, card="")

    assert "square images" in notes[0]
    assert compare_huggingface(tmp_path, model, model.encoder, images(size=(32, 48))).keys() == {
        "features"
    }
