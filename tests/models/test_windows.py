"""Attention in windows with relative positions, against definitions written with loops."""

import pytest
import torch
from timm.layers import Attention
from torch import Tensor

from simmim.config.encoder import EncoderConfig
from simmim.errors import ConfigError
from simmim.models.build import build_encoder
from simmim.models.pyramid import Pyramid
from simmim.models.windows import Windows, attend, relative_logits

TINY = {"embed_dim": 24, "depth": 3, "num_heads": 3}
GRID = (4, 6)


def encoder_of(model: str = "vit_tiny_patch16_224", grid: tuple[int, int] = GRID, **more: object):
    torch.manual_seed(0)
    config = EncoderConfig(model=model, patch_size=4, arguments={**TINY, **more})
    return build_encoder(config, image_size=(4 * grid[0], 4 * grid[1]), channels=3).eval()


def attention_of(width: int = 12) -> Attention:
    torch.manual_seed(0)
    return Attention(width, num_heads=3, qkv_bias=True).eval()


def tables_of(size: tuple[int, int], width: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(2 * size[0] - 1, width), torch.randn(2 * size[1] - 1, width)


def test_relative_positions_are_those_of_their_definition():
    """detectron2 modeling/backbone/utils.py, add_decomposed_rel_pos."""
    torch.manual_seed(1)
    (height, width), query = (2, 3), torch.randn(2, 3, 6, 4)
    rows, columns = tables_of((height, width))
    found = relative_logits(query, (height, width), (rows, columns))
    for place in range(6):
        for other in range(6):
            (y, x), (v, u) = divmod(place, width), divmod(other, width)
            vector = rows[y - v + height - 1] + columns[x - u + width - 1]
            expected = (query[:, :, place] * vector).sum(-1)
            torch.testing.assert_close(found[:, :, place, other], expected)


@pytest.mark.parametrize("size", [(2, 2), (3, 4)])
def test_windows_are_those_of_their_definition(size: tuple[int, int]):
    """detectron2 modeling/backbone/vit.py: filled up with zeros, which are attended to."""
    attention, x = attention_of(), torch.randn(2, 4, 6, 12)
    tables = tables_of(size)
    with torch.no_grad():
        found = attend(attention, x, size, tables)
        for top in range(0, 4, size[0]):
            for left in range(0, 6, size[1]):
                window = torch.zeros(2, *size, 12)
                part = x[:, top : top + size[0], left : left + size[1]]
                height, width = part.shape[1:3]
                window[:, :height, :width] = part
                query = attention.qkv(window.flatten(1, 2))[..., :12].unflatten(2, (3, 4))
                bias = relative_logits(query.transpose(1, 2), size, tables)
                expected = attention(window.flatten(1, 2), bias).unflatten(1, size)
                torch.testing.assert_close(
                    found[:, top : top + height, left : left + width],
                    expected[:, :height, :width],
                )


def test_one_window_is_attention_everywhere_and_tables_of_zeros_change_nothing():
    encoder = encoder_of(grid=(4, 4), depth=5, class_token=False)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        plain = encoder.features(images, (4,)).layers[0]
        torch.testing.assert_close(Windows(encoder, 4)(encoder, images)[0], plain)
        assert (Windows(encoder, 2)(encoder, images)[0] - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("depth", "whole"), [(12, [2, 5, 8, 11]), (24, [5, 11, 17, 23]), (6, [1, 2, 4, 5]), (2, [0, 1])]
)
def test_four_blocks_evenly_spread_attend_everywhere(depth: int, whole: list[int]):
    windows = Windows(encoder_of(depth=depth), 2)
    assert [n for n, size in enumerate(windows.sizes) if size == GRID] == whole
    assert {size for size in windows.sizes if size != GRID} <= {(2, 2)}


def test_a_pyramid_trains_all_tables_and_no_class_token():
    encoder = encoder_of(depth=5)
    pyramid = Pyramid(encoder, 32, finest=True, window=2).train()
    images = torch.randn(2, 3, 16, 24)
    sum(each.square().sum() for each in pyramid(images).values()).backward()
    named = dict(pyramid.named_parameters())
    trained = {name for name, p in named.items() if p.requires_grad}
    assert trained == {name for name, p in named.items() if p.grad is not None}
    still = {"encoder.net.norm.weight", "encoder.net.norm.bias", "encoder.net.cls_token"}
    assert set(named) - trained == still
    roles = pyramid.roles()
    assert set(roles) == set(named)
    for n in range(5):
        for table in (f"blocks.rows.{n}", f"blocks.columns.{n}"):
            assert roles[table] == ("relative", n + 1)
            assert named[table].grad.abs().max() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "model", ["deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224"]
)
def test_other_blocks_are_refused(model: str):
    with pytest.raises(
        ConfigError, match=r"--task\.window is for the plain blocks .* Leave it out"
    ):
        Windows(encoder_of(model), 2)
