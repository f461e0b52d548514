"""Small images, models and runs that many tests share."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands set it

import numpy as np
import pytest
import torch
from PIL import Image

from simmim.config.decoder import TransformerDecoder
from simmim.config.encoder import EncoderConfig
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.data.sources.index import build
from simmim.data.sources.listing import Listing
from simmim.data.sources.source import Entry, Source, SourceInfo

DEMO = Path(__file__).parents[1] / "simmim" / "data" / "clothing-demo.tar"

RGB = PixelFormat(
    channels=3,
    low=(0.0,) * 3,
    high=(255.0,) * 3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="write the golden losses anew")


@dataclass(frozen=True)
class PathsSource(Source):
    """Lists paths in a folder that are known already."""

    folder: Path
    names: list[str]

    def state(self) -> None:
        """It is never listed again."""

    def entries(self) -> Iterator[Entry]:
        return map(Entry, self.names)

    def info(self) -> SourceInfo:
        return SourceInfo("folder", str(self.folder), [str(self.folder)])


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["SIMMIM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Listing]:
    """Turns known paths in a folder into images."""

    def make(folder: Path, names: list[str]) -> Listing:
        file = tmp_path_factory.mktemp("listed") / "paths.arrow"
        return Listing([build(PathsSource(folder, names), file)])

    return make


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)  # small models gain nothing from more


@pytest.fixture
def tiny() -> PretrainConfig:
    """The default recipe with an encoder 48 wide, 2 deep, for images of 32 pixels."""
    return PretrainConfig(
        encoder=EncoderConfig(
            model="vit_tiny_patch16_224", patch_size=8, image_size=(32, 32), arguments=TINY
        ),
        decoder=TransformerDecoder(depth=2, width=32),
    )


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred real photos in two class folders, from the embedded demo set."""
    root = tmp_path_factory.mktemp("photos")
    wanted = {"dress": 0, "shoes": 0}
    with tarfile.open(DEMO) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if len(parts) < 4 or parts[1] != "train" or wanted.get(parts[2], 50) >= 50:
                continue
            file = tar.extractfile(member)
            assert file is not None
            wanted[parts[2]] += 1
            (root / parts[2]).mkdir(exist_ok=True)
            Image.open(io.BytesIO(file.read())).save(root / parts[2] / parts[3], quality=90)
    assert wanted == {"dress": 50, "shoes": 50}
    return root


@pytest.fixture
def pixels() -> PixelFormat:
    return RGB


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
