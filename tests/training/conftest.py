from dataclasses import replace
from pathlib import Path

import pytest
from setting import Setting

from simmim.config.optim import OptimConfig
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.data.loading.images import ImageSet
from simmim.data.sources.find import find_images


@pytest.fixture
def setting(tiny: PretrainConfig, photos: Path, pixels: PixelFormat) -> Setting:
    optim = OptimConfig(lr=3e-3, warmup_share=0.2)
    return Setting(replace(tiny, optim=optim), ImageSet(find_images(photos), pixels))
