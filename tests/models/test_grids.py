"""Encoders at other grids than their own, against timm's models built for that size."""

import copy
import math

import numpy as np
import pytest
import timm
import torch
from timm.models import beit, eva, vision_transformer
from timm_oracle import (
    SWIN,
    TOKEN_MODELS,
    deployed,
    encode,
    images_for,
    make,
    some_visible,
    timm_on_visible,
)
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from simmim.config import models
from simmim.errors import ConfigError
from simmim.models.encoder import MOST_KEPT, Encoder
from simmim.models.resample import resample_positions, resample_state, resample_table
from simmim.tensors.patches import patchify

Grid = tuple[int, int]
OWN = (4, 4)
"""A square: timm's filter does not learn what rectangle the weights are for."""
GRIDS = [(4, 7), (9, 6), (3, 2), (1, 2)]
BEIT = "beit_base_patch16_224"
FILTERS = {
    "VisionTransformer": vision_transformer.checkpoint_filter_fn,
    "VisionTransformerDistilled": vision_transformer.checkpoint_filter_fn,
    "Eva": eva.checkpoint_filter_fn,
    "Beit": beit.checkpoint_filter_fn,
}


def timm_at(encoder: Encoder, grid: Grid) -> nn.Module:
    """timm's model of the same name for another grid, with the weights that timm resampled."""
    size = [side * encoder.patch for side in grid]
    model = timm.create_model(encoder.model, **{**encoder.arguments, "img_size": size})
    state = FILTERS[models.MODELS[encoder.model].family](encoder.timm_state(), model)
    model.load_state_dict(state, strict=True)
    return model.double().eval()


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


@pytest.mark.parametrize("model", TOKEN_MODELS)
@torch.no_grad()
def test_features_at_other_grids_are_those_of_timm_built_for_them(model: str):
    encoder = make(model, grid=OWN)
    for grid in GRIDS:
        built = timm_at(encoder, grid)
        images, index = images_for(encoder, grid), some_visible(encoder, grid)

        whole, part = encoder.features(images), encode(encoder, images, index)

        assert whole.patches.shape == (2, math.prod(grid), encoder.width)
        ours = torch.cat([whole.prefix, whole.patches], 1)
        assert difference(ours, built.forward_features(images)) < 1e-5
        ours = torch.cat([part.prefix, part.patches], 1)
        assert difference(ours, timm_on_visible(encoder, images, index, built)) < 1e-5


def plane(old: int, new: int) -> np.ndarray:
    """Values of the offsets of an axis that lie on a line at BEiT's geometric distances."""
    low, high = 1.01, 1.5
    for _ in range(60):
        ratio = (low + high) / 2
        places = np.cumsum([0, *ratio ** np.arange(old - 1)])
        low, high = (low, ratio) if places[-1] > new - 1 else (ratio, high)
    return 0.1 * np.concatenate([-places[:0:-1], places])


@torch.no_grad()
def set_planes(encoder: Encoder, old: Grid, new: Grid) -> None:
    """Tables on which timm's lines and BEiT's spline agree."""
    rows, columns = (torch.from_numpy(plane(a, b)) for a, b in zip(old, new, strict=True))
    for number, table in enumerate(encoder._relative_tables()):
        values = (1 + number) * rows[:, None] - columns + 0.3
        table[: values.numel()] = values.reshape(-1, 1)


@pytest.mark.parametrize("grid", [(7, 6), (3, 2), (2, 5)])
@torch.no_grad()
def test_tables_on_which_lines_and_splines_agree_are_resampled_as_timm_does(grid: Grid):
    encoder = make(BEIT, grid=OWN)
    set_planes(encoder, OWN, grid)
    size = [side * encoder.patch for side in grid]
    built = timm.create_model(BEIT, **{**encoder.arguments, "img_size": size}).double().eval()
    built.load_state_dict(FILTERS["Beit"](encoder.timm_state(), built))
    images = images_for(encoder, grid)
    theirs = built.forward_features(images)
    assert difference(encoder.features(images).patches, theirs[:, 1:]) < 1e-5


@torch.no_grad()
def test_swin_takes_any_multiple_of_its_stride():
    encoder = make(SWIN, grid=OWN)
    built = timm.create_model(SWIN, **encoder.arguments, strict_img_size=False).double().eval()
    built.load_state_dict(encoder.timm_state())
    for grid in [*GRIDS, OWN]:
        images = images_for(encoder, grid)
        theirs = built.forward_features(images).flatten(1, 2)
        assert difference(encoder.features(images).patches, theirs) < 1e-5


@torch.no_grad()
def test_swin_weights_are_resampled_for_the_windows_of_a_smaller_image():
    encoder = make(SWIN, grid=(7, 7))
    set_planes(encoder, (7, 7), (1, 1))
    built = deployed(encoder)
    built.set_input_size(img_size=(32, 96), window_size=7)
    smaller = make(SWIN, grid=(1, 3))
    smaller.load_timm_state(encoder.timm_state(), encoder.places())
    images = images_for(smaller)
    theirs = built.forward_features(images).flatten(1, 2)
    assert difference(smaller.features(images).patches, theirs) < 1e-5


def test_swin_weights_of_windows_that_are_no_squares_are_resampled_too():
    encoder, larger = make(SWIN, grid=(3, 4)), make(SWIN, grid=(4, 4))
    last = "layers.3.blocks.0.attn.relative_position_bias_table"
    assert encoder.places()[last] == (3, 4)
    larger.load_timm_state(encoder.timm_state(), encoder.places())
    before = encoder.timm_state()[last].view(5, 7, -1)
    after = larger.timm_state()[last].view(7, 7, -1)
    torch.testing.assert_close(after[2:5, 2:5], before[1:4, 2:5], atol=1e-6, rtol=1e-6)


def test_grids_are_kept_up_to_a_number():
    encoder = make("eva02_tiny_patch14_224")
    for width in range(1, MOST_KEPT + 8):
        encoder.features(images_for(encoder, (1, width)))
    assert len(encoder._kept) == MOST_KEPT


WEIGHTS = {
    "vit_tiny_patch16_224": "net.pos_embed",
    "vit_small_patch14_reg4_dinov2": "net.pos_embed",
    "eva02_tiny_patch14_224": "net.pos_embed",
    BEIT: "tables.0",
}


@pytest.mark.parametrize("model", WEIGHTS)
def test_resampled_once_or_on_the_fly_is_the_same_and_trains_the_weights_there_are(model: str):
    grid, name = (3, 6), WEIGHTS[model]
    encoder, built = make(model, grid=(2, 5)), make(model, grid=grid)
    state = encoder.timm_state()
    built.load_timm_state(
        {**state, **resample_state(state, encoder.places(), built.places(), "timm")}
    )
    images = images_for(built)
    features = [net.features(images).patches for net in (encoder, built)]
    assert difference(*features) < 1e-5

    for patches in features:
        patches.square().mean().backward()

    # Resampling is linear: a change v of the weights is one of Rv at the other grid.
    of_encoder, of_built = (net.get_parameter(name).grad for net in (encoder, built))
    change = torch.randn_like(encoder.get_parameter(name))
    resample = resample_table if model == BEIT else resample_positions
    there = resample(change, (2, 5), grid, "timm")
    assert of_encoder.norm() > 0
    torch.testing.assert_close(
        (of_encoder * change).sum(), (of_built * there).sum(), atol=1e-7, rtol=1e-4
    )


def test_learnt_rotary_frequencies_are_trained_at_another_grid():
    encoder = make("vit_small_patch16_rope_mixed_224")
    encoder.features(images_for(encoder, (2, 5))).patches.square().mean().backward()
    assert encoder.net.rope.freqs.grad.norm() > 0


@pytest.mark.parametrize(
    ("model", "grid"), [("eva02_tiny_patch14_224", (3, 4)), (BEIT, (2, 3)), (SWIN, (2, 3))]
)
@torch.no_grad()
def test_a_grid_is_one_graph_to_the_compiler(model: str, grid: Grid):
    encoder = make(model)
    images, step = images_for(encoder, grid), encoder.stride // encoder.patch
    tokens = encoder.project(patchify(images, encoder.patch))
    compiled = torch.compile(encoder, backend="eager", fullgraph=True, dynamic=False)
    found = compiled(tokens, None, (grid[0] * step, grid[1] * step)).patches
    torch.testing.assert_close(found, encoder.features(images).patches)


@pytest.mark.parametrize("model", ["eva02_tiny_patch14_224", BEIT, SWIN])
def test_what_is_kept_for_a_grid_is_never_that_of_a_trial_or_of_another_device(model: str):
    encoder = make(model)
    grids = [(3, 4), (2, 5)]
    expected = [make(model).features(images_for(encoder, grid)).patches for grid in grids]

    for grid, values in zip(grids, expected, strict=True):
        with FakeTensorMode(allow_non_fake_inputs=True):
            encoder.features(torch.zeros(2, 3, *images_for(encoder, grid).shape[2:]).double())
        with torch.inference_mode():
            encoder.features(images_for(encoder, grid))
        again = encoder.features(images_for(encoder, grid)).patches
        again.sum().backward()
        assert torch.equal(again, values)
        moved = copy.deepcopy(encoder).to("meta")
        assert moved.features(images_for(encoder, grid).to("meta")).patches.is_meta


@pytest.mark.parametrize(
    ("model", "tokens", "grid", "reason"),
    [
        ("vit_tiny_patch16_224", 12, (2, 5), "12 tokens do not fill a grid of 2×5 patches"),
        (BEIT, 0, (0, 5), "grid of 0×5 patches does not fit"),
        (SWIN, 4, (2, 2), "multiples of 8, those of the images of 32 pixels"),
    ],
)
def test_tokens_that_do_not_fill_their_grid_are_refused(model, tokens, grid, reason):
    encoder = make(model)
    empty = torch.zeros(1, tokens, encoder.token_width, dtype=torch.float64)
    with pytest.raises(ConfigError, match=reason):
        encoder(empty, None, grid)
