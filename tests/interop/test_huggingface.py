"""Hugging Face transformers: versions 4 (from files) and 5 (installed)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_transformers4 as made
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from simmim.config.encoder import EncoderConfig
from simmim.errors import CheckpointError
from simmim.interop.checkpoint import ModelCheckpoint
from simmim.interop.layouts.huggingface import is_huggingface, read_huggingface
from simmim.masking.build import build_sampler
from simmim.models.build import build_encoder
from simmim.models.decoders import build_decoder
from simmim.models.encoder import Encoder
from simmim.models.mim import MaskedImageModel, parts_for
from simmim.targets.build import build_target

State = dict[str, Tensor]


def encoder_of(found: ModelCheckpoint) -> Encoder:
    config = EncoderConfig(
        model=found.model, patch_size=found.patch, init="timm", arguments=found.arguments
    )
    encoder = build_encoder(config, image_size=found.image_size, channels=found.pixels.channels)
    encoder.load_timm_state(dict(found.encoder))
    return with_eps(encoder, found)


def with_eps(module: Any, found: ModelCheckpoint) -> Any:
    for part in module.modules():
        if isinstance(part, nn.LayerNorm) and found.norm_eps is not None:
            part.eps = found.norm_eps
    return module.eval()


def model_of(found: ModelCheckpoint) -> MaskedImageModel:
    head = found.pretraining
    assert head is not None
    encoder = encoder_of(found)
    parts = parts_for(encoder, found.pixels)
    target = build_target(head.target, parts)
    decoder: Any = build_decoder(head.decoder, parts, target.outputs)
    decoder.load_state_dict(head.state)
    if head.position is not None:
        decoder.position.copy_(head.position)
    sampler = build_sampler(head.mask, parts)
    model = MaskedImageModel(
        encoder, decoder, target, sampler, found.pixels, reads=head.decoder.reads
    )
    if head.mask_token is not None:
        assert model.mask_token is not None
        model.mask_token.data.copy_(head.mask_token)
    return with_eps(model, found)


@torch.no_grad()
def check(found: ModelCheckpoint, images: Tensor, masked: Tensor, expected: State) -> None:
    """Ours gives what transformers gave."""
    features = encoder_of(found).features(images)
    tokens = torch.cat([features.prefix, features.patches], dim=1)
    torch.testing.assert_close(tokens, expected["features"], rtol=0, atol=1e-5)
    assert (found.pretraining is not None) == ("prediction" in expected)
    if found.pretraining is None:
        return
    model = model_of(found)
    theirs = expected["prediction"]
    if theirs.ndim == 4:  # images: B C H W
        side = model.encoder.stride
        b, c, height, width = theirs.shape
        theirs = theirs.view(b, c, height // side, side, width // side, side)
        theirs = theirs.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, side * side * c)
    theirs = theirs[masked].view(len(images), -1, theirs.shape[-1])
    torch.testing.assert_close(model.predict(images, masked), theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.loss(images, masked), expected["loss"], rtol=1e-5, atol=1e-5)


def opened(folder: Path) -> tuple[State, dict[str, Any]]:
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", made.KEPT)
def test_files_of_transformers_4_give_what_its_own_code_gave(name: str):
    state, config = opened(made.FOLDER / name)
    with np.load(made.FOLDER / name / "expected.npz") as file:
        arrays = {key: torch.tensor(file[key]) for key in file if key != "version"}
        assert str(file["version"]).startswith("4.")
    images = arrays.pop("image").float() / 128

    assert is_huggingface(state)
    check(read_huggingface(state, config), images, arrays.pop("masked"), arrays)


@pytest.mark.parametrize("name", made.MODELS)
def test_models_of_the_installed_transformers_give_the_same_from_files_and_from_memory(
    name: str, tmp_path: Path
):
    model = made.build(name)
    images, masked = made.inputs(model)
    expected = made.outputs(model, images, masked)
    model.save_pretrained(tmp_path)
    state, config = opened(tmp_path)

    found = read_huggingface(state, config)
    check(found, images, masked, expected)

    memory = read_huggingface(dict(model.state_dict()), config)
    assert is_huggingface(dict(model.state_dict()))
    assert memory.encoder.keys() == found.encoder.keys()
    assert all(torch.equal(memory.encoder[key], found.encoder[key]) for key in found.encoder)
    if found.pretraining is not None:
        check(memory, images, masked, expected)


def test_all_names_of_a_file_are_used_or_named_as_left_out():
    left_out = {name: read_huggingface(*opened(made.FOLDER / name)).left_out for name in made.KEPT}

    assert left_out.pop("vit_classifier") == {
        "classifier.bias": "a classifier's head",
        "classifier.weight": "a classifier's head",
    }
    assert left_out.pop("mae") == {"decoder.decoder_pos_embed": "follows from the sizes"}
    assert set(left_out.pop("swin_mim").values()) == {"follows from the sizes"}
    assert left_out.pop("beit_shared") == {"embeddings.mask_token": "used in pretraining alone"}
    assert left_out.pop("dinov2") == {"embeddings.mask_token": "used in pretraining alone"}
    assert not any(left_out.values())


def test_published_sizes_get_the_names_of_timm():
    state, config = opened(made.FOLDER / "vit_classifier")

    found = read_huggingface(state, config)

    assert found.model == "vit_base_patch16_224"
    assert found.arguments == {
        "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.5}  # fmt: skip
    assert found.image_size == (32, 32)
    assert found.patch == 8


def test_normalisation_comes_from_the_preprocessor_or_is_assumed_and_told():
    state, config = opened(made.FOLDER / "vit_classifier")
    assumed = read_huggingface(state, config)
    assert assumed.pixels.mean == (0.5, 0.5, 0.5)
    assert any("no preprocessor_config.json" in note for note in assumed.notes)

    own = {"image_mean": [0.1, 0.2, 0.3], "image_std": 0.4, "rescale_factor": 1 / 65535}
    pixels = read_huggingface(state, config | {"_preprocessor": own}).pixels
    assert pixels.mean == (0.1, 0.2, 0.3)
    assert pixels.std == (0.4, 0.4, 0.4)
    assert (pixels.low, pixels.high, pixels.depth) == ((0,) * 3, (65535,) * 3, "16-bit")

    plain = {"do_rescale": False, "do_normalize": False}
    pixels = read_huggingface(state, config | {"_preprocessor": plain}).pixels
    assert (pixels.high, pixels.mean, pixels.std) == ((1.0,) * 3, (0.0,) * 3, (1.0,) * 3)


def _without(*names: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        for name in names:
            del state[name]

    return change


QUERY = "vit.encoder.layer.1.attention.attention.query"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_without(f"{QUERY}.weight"), [f"missing: {QUERY}.weight"]),
        (
            _without("vit.layernorm.bias", "decoder.decoder_layers.0.output.dense.bias"),
            ["vit.layernorm.bias", "decoder.decoder_layers.0.output.dense.bias"],
        ),
        (
            lambda state: state.update({f"{QUERY}.weight": torch.zeros(16, 17)}),
            [f"{QUERY}.weight is 16×17 and should be 16×16"],
        ),
    ],
)
def test_missing_names_and_wrong_shapes_are_told_by_the_names_of_the_file(
    change: Callable[[State], None], told: list[str]
):
    state, config = opened(made.FOLDER / "mae")
    change(state)

    with pytest.raises(CheckpointError) as error:
        read_huggingface(state, config)

    assert all(part in str(error.value) for part in told)


def test_a_missing_name_is_told_as_transformers_5_has_it_in_memory():
    model = made.build("mae")
    state = dict(model.state_dict())
    del state["decoder.decoder_layers.0.attention.q_proj.bias"]

    with pytest.raises(CheckpointError, match=r"decoder_layers\.0\.attention\.q_proj\.bias\."):
        read_huggingface(state, model.config.to_dict())


def test_an_unknown_name_is_left_out_by_name():
    state, config = opened(made.FOLDER / "mae")
    state["vit.encoder.layer.0.extra"] = torch.zeros(3)

    found = read_huggingface(state, config)

    assert found.left_out["vit.encoder.layer.0.extra"] == "not known"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "config.json is needed"),
        ({"model_type": "clip"}, "vit_mae, vit, swin, beit, dinov2"),
        ({"hidden_size": "wide"}, "hidden_size 'wide'"),
        ({"hidden_size": 10**9}, "hidden_size 1000000000"),
        ({"num_attention_heads": 5}, "does not divide"),
        ({"hidden_act": "mish"}, "hidden_act 'mish'"),
        ({"patch_size": [8, 4]}, "square"),
        ({"image_size": 4}, "less than its patch"),
        ({"image_size": 10**6}, "image_size 1000000"),
        ({"image_size": 64}, "should be 1×65×16"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"simmim": {"pixels": 3}}, "'simmim'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(config: dict[str, Any], told: str):
    state, whole = opened(made.FOLDER / "vit_mim")

    with pytest.raises(CheckpointError, match=told):
        read_huggingface(state, whole | config if config else {})


def test_a_swin_whose_windows_exceed_its_grid_is_refused():
    state, config = opened(made.FOLDER / "swin_mim")

    with pytest.raises(CheckpointError, match="window_size 4, and the last stage has 2"):
        read_huggingface(state, config | {"image_size": 8})
