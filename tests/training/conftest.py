import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from setting import Setting

from simmim.config.optim import OptimConfig
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.data.find import find_images
from simmim.data.loader import ImageSet


@pytest.fixture
def setting(tiny: PretrainConfig, photos: Path, pixels: PixelFormat) -> Setting:
    optim = OptimConfig(lr=3e-3, warmup_share=0.2)
    return Setting(replace(tiny, optim=optim), ImageSet(find_images(photos), pixels))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with room for one page of 4 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted here by nobody but root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
