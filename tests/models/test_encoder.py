import importlib
import math
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from timm.layers import PatchEmbed
from timm_oracle import (
    GRID,
    SMALL,
    SWIN,
    SWIN_SMALL,
    TOKEN_MODELS,
    deployed,
    encode,
    images_for,
    make,
    some_visible,
    timm_on_visible,
)
from torch import Tensor, nn

from simmim.config import models
from simmim.config.encoder import EncoderConfig
from simmim.errors import CheckpointError, ConfigError
from simmim.models.build import build_encoder
from simmim.models.encoder import Encoder
from simmim.models.positions import sine_cosine
from simmim.tensors.patches import patchify


@pytest.mark.parametrize("model", TOKEN_MODELS)
def test_features_of_visible_patches_are_those_that_timm_gives(model: str):
    encoder = make(model)
    images, index = images_for(encoder), some_visible(encoder)

    ours = encode(encoder, images, index)

    together = torch.cat([ours.prefix, ours.patches], dim=1)
    torch.testing.assert_close(
        together, timm_on_visible(encoder, images, index), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("model", [*TOKEN_MODELS, SWIN])
def test_features_of_all_patches_are_those_of_the_deployed_timm_model(model: str):
    encoder = make(model)
    images, timm_model = images_for(encoder), deployed(encoder)
    theirs = timm_model.forward_features(images)
    theirs = theirs.flatten(1, 2) if theirs.ndim == 4 else theirs

    ours = encoder.features(images)

    prefix = ours.prefix.shape[1]
    torch.testing.assert_close(ours.patches, theirs[:, prefix:])
    torch.testing.assert_close(ours.prefix, theirs[:, :prefix])
    assert ours.patches.shape == (2, math.prod(encoder.grid), encoder.width)
    if models.MODELS[model].family not in {"Beit", "VisionTransformerDistilled"}:
        torch.testing.assert_close(timm_model(images), ours.patches.mean(1))


@pytest.mark.parametrize("model", TOKEN_MODELS)
def test_masked_pixels_reach_neither_features_nor_gradients(model: str):
    check_no_leak(make(model))


def check_no_leak(encoder: Encoder) -> None:
    index, clean = some_visible(encoder), images_for(encoder)
    visible = torch.zeros(2, math.prod(encoder.grid), dtype=torch.bool).scatter(1, index, True)
    pixels = visible.view(2, 1, *encoder.grid)
    for dim in (2, 3):
        pixels = pixels.repeat_interleave(encoder.patch, dim)
    broken = torch.where(pixels, clean, torch.nan)

    features = encode(encoder, broken, index)

    torch.cat([features.prefix, features.patches], dim=1).square().mean().backward()
    assert torch.equal(features.patches, encode(encoder, clean, index).patches)
    assert features.patches.isfinite().all()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", SWIN])
@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_any_number_of_channels(model: str, channels: int):
    encoder = make(model, channels=channels)
    images = images_for(encoder)
    ours = encoder.features(images).patches
    theirs = deployed(encoder).forward_features(images)
    torch.testing.assert_close(ours, theirs.reshape(2, -1, encoder.width)[:, -ours.shape[1] :])


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
@pytest.mark.parametrize("patch", [8, 14, 32])
def test_a_patch_size_other_than_the_names(model: str, patch: int):
    encoder = make(model, patch_size=patch, grid=(4, 2))
    assert (encoder.patch, encoder.stride, encoder.grid) == (patch, patch, (4, 2))
    assert encoder.arguments["patch_size"] == patch
    images, index = images_for(encoder), some_visible(encoder)
    ours = encode(encoder, images, index).patches
    theirs = timm_on_visible(encoder, images, index)
    torch.testing.assert_close(ours, theirs[:, -ours.shape[1] :])


@pytest.mark.parametrize("model", [*TOKEN_MODELS, SWIN])
def test_timm_weights_load_back(model: str):
    written, other = make(model), make(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()

    other.load_timm_state(written.timm_state())

    images = images_for(written)
    assert torch.equal(other.features(images).patches, written.features(images).patches)
    again = make(model, arguments=written.arguments)  # as read from encoder.json
    again.load_timm_state(written.timm_state())
    torch.testing.assert_close(again.features(images).patches, written.features(images).patches)


def test_weights_that_do_not_fit_are_named():
    encoder = make("vit_tiny_patch16_224")
    state = encoder.timm_state()
    state["extra.weight"] = state.pop("cls_token")
    state["norm.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as error:
        encoder.load_timm_state(state)
    for part in ("1 missing (cls_token)", "1 unexpected (extra.weight)", "norm.bias: (3,)"):
        assert part in str(error.value)


@pytest.mark.parametrize("model", [*TOKEN_MODELS, SWIN])
def test_every_parameter_has_a_role_and_a_depth(model: str):
    encoder = make(model)
    roles = encoder.roles()
    assert roles.keys() == dict(encoder.named_parameters()).keys()
    assert {depth for _, depth in roles.values()} == set(range(encoder.depth + 2))
    for name, parameter in encoder.named_parameters():
        role, depth = roles[name]
        assert (role == "vector") == (parameter.ndim == 1), name
        if "token" in name:
            assert (role, depth) == ("prefix", 0)
        if "pos_embed" in name:
            assert (role, depth) == ("position", 0)
        if name.startswith("net.blocks.1."):
            assert depth == 2
    assert roles["net.norm.weight"] == ("vector", encoder.depth + 1)
    assert roles["net.patch_embed.proj.weight"] == ("weight", 0)


def test_relative_tables_and_frequencies_have_their_role():
    assert make("beit_base_patch16_224").roles()["tables.0"] == ("relative", 0)
    each = make("beit_base_patch16_224", arguments={**SMALL, "use_rel_pos_bias": True})
    assert each.roles()["tables.1"] == ("relative", 2)
    assert make("vit_small_patch16_rope_mixed_224").roles()["net.rope.freqs"] == ("relative", 0)
    swin = make(SWIN).roles()
    table = "net.layers.1.blocks.1.attn.relative_position_bias_table"
    assert swin[table] == ("relative", 3)  # the third block, over the stages
    assert swin["net.layers.1.downsample.reduction.weight"] == ("weight", 2)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "beit_base_patch16_224", SWIN])
def test_outputs_of_blocks_come_in_the_order_asked_for(model: str):
    encoder = make(model)
    index = None if encoder.whole else some_visible(encoder)
    seen: dict[int, Tensor] = {}
    for number, block in enumerate(encoder.layers):
        block.register_forward_hook(lambda _m, _a, out, n=number: seen.update({n: out}))

    features = encode(encoder, images_for(encoder), index, layers=(1, 0))

    for number, output in zip((1, 0), features.layers, strict=True):
        expected = seen[number].flatten(1, -2)[:, -output.shape[1] :]
        assert torch.equal(output, expected)
        assert encoder.whole or output.shape == features.patches.shape


def test_swin_counts_masks_on_its_output_stride():
    encoder = make(SWIN)
    assert (encoder.whole, encoder.patch, encoder.stride) == (True, 4, 32)
    assert (encoder.grid, encoder.token_grid) == (GRID, (24, 32))
    assert (encoder.width, encoder.token_width, encoder.depth) == (96, 12, 5)


def test_swin_refuses_to_leave_patches_out():
    encoder = make(SWIN)
    tokens = encoder.project(patchify(images_for(encoder), 4))
    with pytest.raises(ConfigError, match="every patch"):
        encoder(tokens[:, :4], torch.arange(4).expand(2, 4), encoder.token_grid)


def test_swin_takes_a_window_size():
    encoder = make(SWIN, grid=(2, 2), arguments={**SWIN_SMALL, "window_size": 2})
    assert encoder.arguments["window_size"] == 2
    images = images_for(encoder)
    theirs = deployed(encoder).forward_features(images).flatten(1, 2)
    torch.testing.assert_close(encoder.features(images).patches, theirs)


def test_beit_shares_one_table_and_deploys_one_for_each_block():
    encoder = make("beit_base_patch16_224")
    assert len(encoder.tables) == 1
    assert encoder.arguments["use_rel_pos_bias"] is True
    tables = [v for k, v in encoder.timm_state().items() if "relative_position_bias_table" in k]
    assert len(tables) == 2
    assert torch.equal(tables[0], tables[1])


def test_beit_tables_that_differ_end_the_sharing():
    each = make("beit_base_patch16_224", arguments={**SMALL, "use_rel_pos_bias": True})
    images, index = images_for(each), some_visible(each)
    expected = encode(each, images, index).patches
    assert not torch.equal(each.tables[0], each.tables[1])
    torch.testing.assert_close(timm_on_visible(each, images, index)[:, 1:], expected)

    encoder = make("beit_base_patch16_224")
    encoder.load_timm_state(each.timm_state())
    resumed = nn.ModuleDict({"encoder": make("beit_base_patch16_224")})
    resumed.load_state_dict(nn.ModuleDict({"encoder": each}).state_dict())

    for other in (encoder, resumed["encoder"]):
        assert torch.equal(encode(other, images, index).patches, expected)


def test_xavier_starts_as_mae_does():
    encoder = build_encoder(
        EncoderConfig(model="vit_tiny_patch16_224", arguments={"depth": 1}),
        image_size=(64, 64),
        channels=3,
    )
    net = encoder.net
    for weight in (net.blocks[0].attn.qkv.weight, net.blocks[0].mlp.fc2.weight):
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.98 * bound < weight.abs().max() <= bound
    bound = math.sqrt(6 / (192 + 768))  # 16 · 16 · 3 values to 192
    assert 0.98 * bound < net.patch_embed.proj.weight.abs().max() <= bound
    assert not net.blocks[0].attn.qkv.bias.any()
    assert not net.patch_embed.proj.bias.any()
    assert net.cls_token.std().item() == pytest.approx(0.02, rel=0.3)


def test_truncated_starts_as_simmim_does():
    """microsoft/SimMIM models/simmim.py (a=-std, b=std) and vision_transformer.py."""
    encoder = build_encoder(
        EncoderConfig(
            model="beit_base_patch16_224", init="truncated", arguments={"depth": 2, "embed_dim": 96}
        ),
        image_size=(64, 64),
        channels=3,
    )
    net = encoder.net
    for tensor in (net.patch_embed.proj.weight, net.blocks[1].attn.qkv.weight, net.cls_token):
        assert 0.019 < tensor.abs().max() <= 0.02
    for number, block in enumerate(net.blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert weight.abs().max().item() == pytest.approx(
                0.02 / math.sqrt(2 * number), rel=0.01
            )
    assert not encoder.tables[0].any()


def test_positions_are_those_of_mae():
    """facebookresearch/mae util/pos_embed.py, for a rectangle: columns first, sines first."""
    height, width, dim = 2, 3, 16
    omega = 1 / 10000 ** (np.arange(dim // 4) / (dim / 4))
    expected = [
        np.concatenate([np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)])
        for y in range(height)
        for x in range(width)
    ]
    ours = sine_cosine((height, width), dim)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, torch.tensor(np.array(expected), dtype=torch.float32))
    with pytest.raises(ConfigError, match="multiple of 4"):
        sine_cosine((2, 2), 30)


@pytest.mark.parametrize("position", ["trained", "fixed"])
@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_absolute_positions_start_as_sine_cosine(model: str, position: str):
    patch = models.MODELS[model].patch
    encoder = build_encoder(
        EncoderConfig(model=model, position=position, arguments=SMALL),
        image_size=(2 * patch, 3 * patch),
        channels=3,
    )
    pos_embed = encoder.net.pos_embed
    assert torch.equal(pos_embed[0, -6:], sine_cosine((2, 3), 32))
    assert not pos_embed[0, :-6].any()
    assert pos_embed.requires_grad == (position == "trained")


def test_positions_can_be_left_out_where_others_remain():
    encoder = make("eva02_tiny_patch14_224", position="none")
    assert encoder.net.pos_embed is None
    assert encoder.arguments["use_abs_pos_emb"] is False
    with pytest.raises(ConfigError, match="where a patch lies"):
        make("vit_tiny_patch16_224", position="none")


def test_drop_path_is_for_training_only():
    encoder = make("vit_tiny_patch16_224", drop_path=0.5)
    assert encoder.layers[1].drop_path1.drop_prob == 0.5
    assert "drop_path_rate" not in encoder.arguments
    assert isinstance(make(SWIN).layers[-1].drop_path1, nn.Identity)  # not timm's default of 0.1


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_bfloat16_gives_nearly_the_same_features(model: str):
    encoder = make(model).float()
    images, index = images_for(encoder).float(), some_visible(encoder)
    exact = encode(encoder, images, index).patches
    with torch.autocast("cpu", torch.bfloat16):
        rough = encode(encoder, images, index).patches
    again = encode(encoder, images, index).patches

    assert (rough - exact).abs().mean() < 0.02 * exact.abs().mean()
    assert torch.equal(again, exact)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("vit_small_r26_s32_224", "HybridEmbed mixes neighbouring patches"),
        ("resnet18", "ResNet, which cannot leave out patches"),
        ("vit_relpos_small_patch16_224", "VisionTransformerRelPos"),
        ("vit_smal_patch16_224", "no timm model .*nearest names: vit_small_patch16_224"),
    ],
)
def test_other_models_are_refused_with_a_way_out(model: str, reason: str):
    with pytest.raises(ConfigError, match=f"{reason}.*simmim models"):
        build_encoder(EncoderConfig(model=model), image_size=(224, 224), channels=3)


@pytest.mark.parametrize(
    ("config", "size", "reason"),
    [
        ({"arguments": {"dephts": 2}}, (32, 32), "no argument 'dephts'; the nearest: depth"),
        ({"arguments": {"num_classes": 10}}, (32, 32), "num_classes=10 contradicts 0"),
        ({"arguments": {"global_pool": "token"}}, (32, 32), "contradicts avg"),
        ({"arguments": {"patch_drop_rate": 0.5}}, (32, 32), "the mask leaves patches out"),
        ({"arguments": {"num_heads": 7}}, (32, 32), "timm could not build"),
        ({}, (32, 40), "image width 40 is not a multiple of the patch size 16"),
        ({"model": SWIN}, (96, 48), "multiple of the patch size 32"),
        (
            {"model": "beit_base_patch16_224", "arguments": {"use_rel_pos_bias": False}},
            (32, 32),
            "cannot be turned off",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(config: dict, size: tuple[int, int], reason: str):
    with pytest.raises(ConfigError, match=reason):
        build_encoder(
            EncoderConfig(**{"model": "vit_tiny_patch16_224", **config}),
            image_size=size,
            channels=3,
        )


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", SWIN])
def test_images_of_a_size_that_the_stride_does_not_divide_are_refused(model: str):
    encoder = make(model)
    with pytest.raises(ConfigError, match=r"takes images of 3×.* given 3×40×32"):
        encoder.features(torch.zeros(1, 3, 40, 32))
    with pytest.raises(ConfigError, match=r"takes images of 3×.* given 64×64"):
        encoder.features(torch.zeros(3, 64, 64))


def test_names_suggest_the_nearest():
    assert "vit_small_patch16_224" in models.suggest("vit_smal_patch16_224")
    assert models.suggest("beit_base")[0] == "beit_base_patch16_224"
    assert models.suggest("") == []
    assert models.find("vit_tiny_patch16_224.augreg_in21k") == models.MODELS["vit_tiny_patch16_224"]


def test_the_table_of_models_is_light():
    code = "import simmim.config.models, sys; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


MODULES = [
    "beit", "deit", "eva", "swin_transformer", "vision_transformer", "vision_transformer_hybrid"
]  # fmt: skip


@pytest.mark.skipif(timm.__version__ != models.TIMM, reason="another timm has other names")
def test_the_table_names_what_timm_builds_with_a_supported_class(monkeypatch: pytest.MonkeyPatch):
    found = {}
    for module in MODULES:
        source = importlib.import_module(f"timm.models.{module}")
        monkeypatch.setattr(
            source, "build_model_with_cfg", lambda cls, *_a, **keywords: (cls, keywords)
        )
        for name in timm.list_models(module=module):
            cls, keywords = timm.models.model_entrypoint(name)()
            if cls.__name__ in models.Family.__args__ and "embed_layer" not in keywords:
                found[name] = (cls.__name__, keywords.get("patch_size"))
    listed = {name: (model.family, model.patch) for name, model in models.MODELS.items()}
    assert found.keys() == listed.keys()
    for name, (family, patch) in found.items():
        assert listed[name] == (family, patch or listed[name][1])
    assert sum(not model.whole for model in models.MODELS.values()) == 251


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in models.MODELS if timm.is_model(name)])
def test_each_supported_model(model: str):
    """Two narrow blocks of each: features as timm's, no leak, weights that load back."""
    listed = models.MODELS[model]
    with torch.device("meta"):
        named = timm.create_model(model, num_classes=0)
    assert type(named.patch_embed) is PatchEmbed
    assert (named.num_features, named.patch_embed.patch_size[0]) == (listed.width, listed.patch)
    assert max(named.patch_embed.img_size) == listed.size
    if listed.whole:
        encoder = make(model, grid=(2, 2), arguments={**SWIN_SMALL, "embed_dim": 24})
        theirs = deployed(encoder).forward_features(images_for(encoder)).flatten(1, 2)
        torch.testing.assert_close(encoder.features(images_for(encoder)).patches, theirs)
        return
    few = {"num_kv_heads": 2} if "sapiens2" in model else {}
    encoder = make(model, grid=(4, 4), arguments={**SMALL, "num_heads": 4, **few})
    normed = any(not isinstance(getattr(named, n), nn.Identity) for n in ("norm", "fc_norm"))
    assert isinstance(encoder.net.norm, nn.Identity) == (not normed)
    images, index = images_for(encoder), some_visible(encoder)
    features = encode(encoder, images, index)
    ours = torch.cat([features.prefix, features.patches], dim=1)
    torch.testing.assert_close(ours, timm_on_visible(encoder, images, index), atol=1e-6, rtol=1e-6)
    check_no_leak(encoder)
    again = make(model, grid=(4, 4), arguments=encoder.arguments)
    again.load_timm_state(encoder.timm_state())
    torch.testing.assert_close(again.features(images).patches, encoder.features(images).patches)
