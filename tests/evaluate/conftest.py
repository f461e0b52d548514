from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simmim.config.encoder import EncoderConfig
from simmim.config.resolved import PixelFormat
from simmim.data.loading.images import ImageSet
from simmim.models.build import build_encoder
from simmim.models.encoder import Encoder

PIXELS = PixelFormat(
    channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig(
        model="vit_tiny_patch16_224",
        patch_size=8,
        arguments={"depth": 2, "embed_dim": 32, "num_heads": 2},
    )
    return build_encoder(config, image_size=(32, 32), channels=3)


@pytest.fixture
def stripes(tmp_path: Path, listed) -> Callable[[str, int], ImageSet]:
    """Images of two classes that differ in the direction of their stripes alone."""

    def make(name: str, count: int) -> ImageSet:
        folder, rng = tmp_path / name, np.random.default_rng(len(name))
        folder.mkdir()
        paths, labels = [], []
        for number in range(count):
            wave = np.sin(np.arange(40) * 2 * np.pi / 8 + rng.uniform(0, 6))
            image = 128 + 60 * np.tile(wave, (40, 1)) + rng.normal(0, 30, (40, 40))
            label = number % 2
            image = np.repeat((image.T if label else image)[..., None], 3, 2)
            paths.append(f"{number:03d}.png")
            labels.append(label)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / paths[-1])
        return ImageSet(listed(folder, paths), PIXELS, labels)

    return make
