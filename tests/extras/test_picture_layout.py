"""The layout of a picture against loops over its cells."""

import math

import numpy as np
import pytest
import torch

from simmim.config.encoder import EncoderConfig
from simmim.config.extra import LayoutExtra
from simmim.config.resolved import PixelFormat
from simmim.errors import ConfigError
from simmim.extras.layout import Layout
from simmim.models.build import build_encoder
from simmim.models.mim import parts_for
from simmim.tensors.batch import Batch
from simmim.tensors.features import Features
from simmim.tensors.mask import Mask

SMOOTH = np.array([1.0, 2.0, 1.0])
SMALL = {"embed_dim": 24, "depth": 1, "num_heads": 2}


def layout(size: tuple[int, int], channels: int, **values: int) -> Layout:
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=8, arguments=SMALL)
    each = {"mean": 0.4, "std": 0.2, "low": 0.0, "high": 1.0}
    pixels = PixelFormat(channels=channels, **{name: (v,) * channels for name, v in each.items()})
    encoder = build_encoder(config, image_size=size, channels=channels)
    return Layout(LayoutExtra(**values), parts_for(encoder, pixels))


@pytest.mark.parametrize(
    ("channels", "size", "cells"), [(3, (16, 24), 4), (1, (24, 16), 3), (2, (16, 16), 16)]
)
def test_losses_are_those_of_loops_over_cells(channels, size, cells):
    torch.manual_seed(0)
    extra = layout(size, channels, cells=cells, bins=5)
    images = torch.rand(2, channels, *size)
    tokens = torch.randn(2, 4, 24)
    mask = Mask.given(torch.tensor([[True, True, False, False]] * 2), (2, 2))
    features = Features(prefix=tokens[:, :1] + 9, patches=tokens)
    found = extra(Batch(images, torch.arange(2)), mask, features, None)  # type: ignore[arg-type]

    seen = ((images.double() - 0.4) / 0.2).numpy()
    colours, count = np.zeros((2, 2, channels, cells, cells))
    sums = np.zeros((2, channels, cells, cells, 5))
    for image, c, y, x in np.ndindex(*seen.shape):
        around = np.pad(seen[image, c], 1, mode="reflect")[y : y + 3, x : x + 3]
        gx = SMOOTH @ around[:, 0] - SMOOTH @ around[:, 2]
        gy = SMOOTH @ around[0] - SMOOTH @ around[2]
        place = (image, c, y * cells // size[0], x * cells // size[1])
        sums[(*place, math.floor(5 * math.atan2(gx, gy) / math.pi) % 5)] += math.hypot(gx, gy)
        colours[place] += seen[image, c, y, x]
        count[place] += 1
    wanted = sums / np.maximum(np.sqrt((sums**2).sum(-1, keepdims=True)), 1e-12)
    mean = tokens.mean(1)
    for head, name, values in (
        (extra.colours, "colours", colours / count),
        (extra.histograms, "histograms", wanted),
    ):
        error = head(mean).double().detach().numpy() - values.reshape(2, -1)
        assert found[name].item() == pytest.approx((error**2).mean(), rel=1e-5)
    assert found["loss"].item() == pytest.approx(
        (found["colours"] + 90 * found["histograms"]).item(), rel=1e-6
    )


def test_more_cells_than_pixels_are_refused():
    with pytest.raises(ConfigError, match="17 cells a side are more than the 16 pixels"):
        layout((16, 24), 1, cells=17)
