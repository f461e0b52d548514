"""Checkpoints of the original codes, against what those codes computed."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

import simmim
from simmim.config.encoder import EncoderConfig
from simmim.config.models import MODELS
from simmim.errors import CheckpointError, SimmimError
from simmim.interop.checkpoint import Settings
from simmim.interop.layouts.timm import read_named
from simmim.interop.load import load_found
from simmim.interop.open import checkpoint_of, describe, open_source
from simmim.interop.weight_files import Weights, read_weights
from simmim.models.build import build_encoder

REFERENCE = Path(__file__).parent / "reference"
NAMES = ["simmim_vit", "simmim_swin", "mae", "mae_normpix"]


def expected(name: str) -> dict[str, Tensor]:
    with np.load(REFERENCE / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def patches(images: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) → (B, N, side·side·3), written as loops."""
    rows, columns = images.shape[2] // side, images.shape[3] // side
    cut = [
        images[:, :, r * side : (r + 1) * side, c * side : (c + 1) * side]
        for r in range(rows)
        for c in range(columns)
    ]
    return torch.stack([piece.permute(0, 2, 3, 1).flatten(1) for piece in cut], dim=1)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_prediction_loss_and_features_are_those_of_the_original_code(name: str):
    model = simmim.load(REFERENCE / f"{name}.pth", whole=True)
    values = expected(name)
    images, mask = values["image"], values["mask"].bool()
    features = model.encoder.features(images)
    if name.startswith("mae"):
        masked = mask
        wanted = values["prediction"][masked]
        tokens = torch.cat([features.prefix, features.patches], dim=1)
    else:
        step = mask.shape[1] // model.grid[0]
        masked = mask[:, ::step, ::step].flatten(1)
        wanted = patches(values["reconstruction"], model.encoder.stride)[masked]
        tokens = features.patches.transpose(1, 2).reshape(values["features_unmasked"].shape)

    predicted = model.predict(images, masked).flatten(0, 1)

    assert (tokens - values["features_unmasked"]).abs().max() < 1e-5
    assert (predicted - wanted).abs().max() < 1e-5
    assert abs(model.loss(images, masked) - values["loss"]) < 1e-5


@torch.no_grad()
def test_a_loaded_encoder_gives_patch_tokens_and_their_mean():
    values = expected("mae")
    encoder = simmim.load(REFERENCE / "mae.pth")
    wanted = values["features_unmasked"][:, 1:]
    assert (encoder.tokens(values["image"]) - wanted).abs().max() < 1e-5
    assert (encoder(values["image"]) - wanted.mean(1)).abs().max() < 1e-5


def test_what_weights_do_not_show_is_given_beside_them_or_in_the_call_or_guessed_aloud(
    tmp_path: Path,
):
    copy = tmp_path / "any-name.bin"
    copy.write_bytes((REFERENCE / "mae.pth").read_bytes())
    guessed = open_source(copy)
    assert any("norm_pix_loss was taken to be true" in note for note in guessed.notes)
    assert any("num_heads was guessed" in note for note in guessed.notes)

    copy.with_suffix(".json").write_text('{"num_heads": 4, "norm_pix_loss": false}')
    told = open_source(copy)
    assert told.arguments["num_heads"] == 4
    assert told.pretraining is not None
    assert told.pretraining.target.norm_pix is False

    called = open_source(copy, {"num_heads": 1, "norm_pix_loss": True, "decoder_num_heads": 8})
    assert called.arguments["num_heads"] == 1
    assert called.pretraining is not None
    assert called.pretraining.target.norm_pix is True
    assert called.pretraining.decoder.heads == 8
    with pytest.raises(CheckpointError, match="num_heads 7 does not divide the width 64"):
        open_source(copy, {"num_heads": 7})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": 0}, "num_heads is a whole number"),
        ({"num_heads": "three"}, "num_heads is a whole number"),
        ({"img_size": (64,)}, "img_size is one side"),
        ({"img_size": -64}, "img_size is one side"),
        ({"img_size": 48}, "48×48 has 9 patches of 16 pixels, and the checkpoint .* for 16"),
        ({"mask_ratio": 7}, "mask_ratio lies between 0 and 1"),
        ({"norm_pix_loss": "false"}, "norm_pix_loss is true or false"),
        ({"std": (0, 0, 0)}, "std is a number for each channel"),
        ({"mean": "x"}, "mean is a number for each channel"),
        ({"numheads": 2}, "Did you mean num_heads"),
        ({"model": "vit_base_patch16_22"}, "Did you mean vit_base_patch16_224"),
    ],
)
def test_what_is_given_is_checked(given: dict, message: str):
    with pytest.raises(SimmimError, match=message):
        simmim.load(REFERENCE / "mae.pth", **given)


@pytest.mark.parametrize("name", NAMES)
def test_the_original_codes_own_arguments_can_be_given_as_they_are(name: str):
    given = json.loads((REFERENCE / "index.json").read_text())[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left to guess
        simmim.load(REFERENCE / f"{name}.pth", whole=True, **given)


def test_a_window_cut_short_shows_the_size_of_the_images():
    """At 64 pixels the last stage has 2×2 tokens: fewer than a window of 4, and no shifted ones."""
    net = timm.models.SwinTransformer(
        img_size=64, embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4,
        num_classes=0,
    )  # fmt: skip
    found = checkpoint_of(Weights(dict(net.state_dict())), {})
    assert found.image_size == (64, 64)
    assert found.notes == ()
    load_found(found)


def test_the_files_own_arguments_are_read(tmp_path: Path):
    import argparse

    state = torch.load(REFERENCE / "mae.pth", weights_only=True)["model"]
    arguments = argparse.Namespace(norm_pix_loss=False, mask_ratio=0.6, num_heads=4, lr=1e-3)
    torch.save({"model": state, "args": arguments, "epoch": 3}, tmp_path / "x.pth")
    found = open_source(tmp_path / "x.pth")
    assert found.arguments["num_heads"] == 4
    assert found.pretraining is not None
    assert found.pretraining.mask.ratio == 0.6
    assert found.pretraining.target.norm_pix is False


def finetuned(name: str) -> dict[str, Tensor]:
    """What the original fine-tuning codes save: a table per block, a norm for pooling, a head."""
    state = torch.load(REFERENCE / f"{name}.pth", weights_only=True)["model"]
    state = {k.removeprefix("encoder."): v for k, v in state.items()}
    state = {k: v for k, v in state.items() if not k.startswith(("decoder", "mask_token"))}
    if name != "simmim_swin":
        state = {f"fc_{k}" if k.startswith("norm.") else k: v for k, v in state.items()}
    shared = state.pop("rel_pos_bias.relative_position_bias_table", None)
    if shared is not None:
        state.pop("rel_pos_bias.relative_position_index")
        for block in range(3):
            own = shared + 0.1 * torch.randn_like(shared)
            state[f"blocks.{block}.attn.relative_position_bias_table"] = own
    width = state["norm.weight" if "norm.weight" in state else "fc_norm.weight"].shape[0]
    return state | {"head.weight": torch.randn(7, width), "head.bias": torch.randn(7)}


@pytest.mark.parametrize("name", ["simmim_vit", "simmim_swin", "mae"])
@torch.no_grad()
def test_fine_tuned_encoders_give_timms_features(name: str):
    torch.manual_seed(0)
    state = finetuned(name)
    given = json.loads((REFERENCE / "index.json").read_text())[name]
    found = checkpoint_of(Weights(state), given)
    encoder = load_found(found)
    image = expected(name)["image"]
    # timm's own class, built from the original configuration.
    if name == "mae":
        net = timm.models.VisionTransformer(
            img_size=64, patch_size=16, embed_dim=64, depth=3, num_heads=2, num_classes=7,
            global_pool="avg",
        )  # fmt: skip
    elif name == "simmim_vit":
        net = timm.models.beit.Beit(
            img_size=64, patch_size=16, embed_dim=64, depth=3, num_heads=2, num_classes=7,
            init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=True, global_pool="avg",
        )  # fmt: skip
    else:
        net = timm.models.SwinTransformer(
            img_size=64, patch_size=4, embed_dim=16, depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 4),
            window_size=2, num_classes=7,
        )  # fmt: skip
        state = {
            name.replace("downsample", "x").replace(f"layers.{n}.x", f"layers.{n + 1}.downsample")
            if (n := int(name.split(".")[1]) if "downsample" in name else 0) >= 0
            else name: value
            for name, value in state.items()
        }
        state = {k.replace("head.", "head.fc."): v for k, v in state.items()}
    computed = ("relative_position_index", "attn_mask")
    net.load_state_dict({k: v for k, v in state.items() if not k.endswith(computed)})
    tokens = net.eval().forward_features(image)
    wanted = tokens.flatten(1, 2) if name == "simmim_swin" else net.fc_norm(tokens)[:, 1:]
    assert (encoder.tokens(image) - wanted).abs().max() < 1e-5
    assert {"head.weight", "head.bias"} <= set(found.left_out)
    assert any("head.weight, head.bias" in text for _, text in describe(found))


BEIT = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32, "patch_size": 8}


@pytest.mark.parametrize("first", [True, False])
@torch.no_grad()
def test_beit_encoders(first: bool):
    """BEiT v1 and v2 in pretraining: a shared table, a mask token, and heads for visual tokens."""
    torch.manual_seed(1)
    net = timm.models.beit.Beit(
        **BEIT, init_values=0.1, use_abs_pos_emb=False, use_shared_rel_pos_bias=True,
        global_pool="token", num_classes=0,
    ).eval()  # fmt: skip
    for value in net.parameters():
        value.add_(0.1 * torch.randn_like(value))
    state = dict(net.state_dict()) | {
        "mask_token": torch.zeros(1, 1, 48),
        "lm_head.weight": torch.zeros(10, 48),
        "rel_pos_bias.relative_position_index": torch.zeros(17, 17),
    }
    if not first:
        state["cls_pt_layers.0.norm1.weight"] = torch.ones(48)
    found = checkpoint_of(Weights(state), {})
    image = torch.randn(2, 3, 32, 32)
    wanted = net.forward_features(image)[:, 1:]
    assert (load_found(found).tokens(image) - wanted).abs().max() < 1e-5
    assert found.pixels.mean[0] == (0.5 if first else 0.485)
    named = {"mask_token", "lm_head.weight", "rel_pos_bias.relative_position_index"}
    assert named <= set(found.left_out)


TIMM = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "eva02_tiny_patch14_224",
    "vit_medium_patch16_gap_240",
    "swin_tiny_patch4_window7_224",
]


@pytest.mark.parametrize("name", TIMM)
def test_timms_state_dicts_are_recognised_by_their_weights(name: str):
    torch.manual_seed(2)
    net = timm.create_model(name, num_classes=5).eval()
    found = checkpoint_of(Weights(dict(net.state_dict())), {})
    encoder = load_found(found).encoder
    own = dict(net.state_dict())
    for key, value in encoder.timm_state().items():
        source = key if key in own else key.replace("norm.", "fc_norm.")
        assert torch.equal(value, own[source]), key
    assert encoder.image_size == tuple(net.patch_embed.img_size)
    reference = timm.create_model(encoder.model, **encoder.arguments)
    assert type(reference) is type(net)
    if encoder.image_size[0] < 256:
        image = torch.randn(1, 3, *encoder.image_size)
        with torch.no_grad():
            wanted = net.forward_features(image)
            wanted = net.fc_norm(wanted) if hasattr(net, "fc_norm") else wanted
            wanted = wanted.flatten(1, -2)[:, getattr(net, "num_prefix_tokens", 0) :]
            assert (encoder.features(image).patches - wanted).abs().max() < 1e-5
    heads = [m.num_heads for m in net.modules() if hasattr(m, "num_heads")]
    assert heads == [m.num_heads for m in encoder.net.modules() if hasattr(m, "num_heads")]


@pytest.mark.slow
def test_all_supported_timm_models_have_the_weights_that_are_expected_of_them():
    for name in MODELS:
        with torch.device("meta"):
            net = timm.create_model(name, num_classes=0)
            found = read_named(name, dict(net.state_dict()), Settings({}))
            encoder = build_encoder(
                EncoderConfig(model=name, patch_size=found.patch, init="timm"),
                image_size=found.image_size,
                channels=3,
            )
        own = {key: value.shape for key, value in encoder.timm_state().items()}
        assert own == {key: value.shape for key, value in found.encoder.items()}, name


def test_missing_unexpected_and_misshapen_names_are_listed():
    weights = read_weights(REFERENCE / "mae.pth")
    state = dict(weights.state)
    del state["blocks.1.mlp.fc2.bias"]
    state["blocks.2.norm1.weight"] = torch.ones(63)
    state["blocks.0.attn.surprise"] = torch.ones(3)
    found = checkpoint_of(replace(weights, state=state), {"num_heads": 2})
    with pytest.raises(CheckpointError) as caught:
        load_found(found)
    for name in ("blocks.1.mlp.fc2.bias", "blocks.2.norm1.weight: (63,)", "blocks.0.attn.surprise"):
        assert name in str(caught.value)

    state = dict(weights.state)
    del state["decoder_norm.bias"]
    found = checkpoint_of(replace(weights, state=state), {})
    with pytest.raises(CheckpointError, match=r"decoder do not fit: norm\.bias is missing"):
        simmim.interop.load.model_from(found)


def test_an_unknown_layout_is_told_by_its_names():
    with pytest.raises(CheckpointError, match=r"no layout that simmim knows: conv1\.weight"):
        checkpoint_of(Weights({"conv1.weight": torch.zeros(3)}), {})
