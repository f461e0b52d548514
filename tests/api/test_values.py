"""The commands that use an encoder, on images of another depth or other channels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from simmim.cli.main import main
from simmim.config.encoder import EncoderConfig
from simmim.config.resolved import PixelFormat
from simmim.errors import DataError
from simmim.interop.load import LoadedEncoder, load_encoder
from simmim.models.build import build_encoder
from simmim.runs.encoder import save_encoder

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def encoder_for(folder: Path, channels: int) -> Path:
    """An encoder as an 8-bit run leaves it behind, of random weights."""
    torch.manual_seed(0)
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=8, arguments=TINY)
    encoder = build_encoder(config, image_size=(32, 32), channels=channels)
    ends = {"low": (0.0,) * channels, "high": (255.0,) * channels}
    pixels = PixelFormat(channels=channels, **ends, mean=(0.5,) * channels, std=(0.25,) * channels)
    folder.mkdir()
    save_encoder(folder, encoder, pixels, {})
    return folder


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*words: object) -> tuple[int, str]:
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return status, " ".join((out + err).split())

    return run


@pytest.fixture
def grey(photos: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The same grey photos of two classes in 8 bits, and in 12 of 16."""
    folders = tmp_path / "g8", tmp_path / "g12"
    for file in [*sorted(photos.glob("*/*"))[:8], *sorted(photos.glob("*/*"))[-8:]]:
        array = np.asarray(Image.open(file).convert("L"))
        deep = np.round(array * (4095 / 255)).astype(np.uint16)
        for folder, values in zip(folders, (array, deep), strict=True):
            (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / file.parent.name / f"{file.stem}.png")
    return folders


def test_features_are_the_same_in_8_and_in_12_bits(
    grey: tuple[Path, Path], said: Callable[..., tuple[int, str]], tmp_path: Path
):
    run, told = encoder_for(tmp_path / "run", 1), []
    for folder in grey:
        status, text = said("embed", run, folder, "--out", tmp_path / f"{folder.name}.npz")
        assert status == 0
        told.append(text)
    shallow, deep = (np.load(tmp_path / f"{folder.name}.npz")["features"] for folder in grey)
    assert np.abs(shallow - deep).max() < 0.05 * shallow.std(0).max()
    assert "values 1 channel, 8-bit" in told[0]
    assert "12-bit here, 8-bit in training: each is scaled by its own depth" in told[1]


def test_one_image_alone_is_scaled_by_its_type(tmp_path: Path, rng: np.random.Generator):
    shallow = load_encoder(encoder_for(tmp_path / "run", 1))
    units = replace(shallow.pixels, low=(0.0,), high=(4095.0,), depth="12-bit")
    deep = LoadedEncoder(shallow.encoder, units)
    image = rng.integers(0, 256, (32, 32), np.uint8)
    right = shallow.transform(image)
    full, twelve = image.astype(np.uint16) * 257, (image * (4095 / 255)).round().astype(np.uint16)
    assert torch.allclose(shallow.transform(full), right)
    assert torch.allclose(deep.transform(image), right, atol=1e-5)
    assert torch.allclose(deep.transform(twelve), right, atol=1e-3)
    assert float(deep.transform(full).max()) == pytest.approx(2)  # clipped at 4095
    with pytest.raises(DataError, match="float"):
        deep.transform(image.astype(np.float32))


def test_an_encoder_is_fine_tuned_and_probed_on_another_depth(
    grey: tuple[Path, Path], said: Callable[..., tuple[int, str]], tmp_path: Path
):
    run = encoder_for(tmp_path / "run", 1)
    words = ("--from", run, "--epochs", "1", "--workers", "0", "--out", tmp_path / "fine")
    status, text = said("finetune", grey[1], *words)
    assert status == 0
    assert "12-bit here, 8-bit in training: each is scaled by its own depth" in text
    fine = load_encoder(tmp_path / "fine")
    assert (fine.pixels.high, fine.pixels.mean) == ((4095.0,), (0.5,))
    status, text = said("probe", run, grey[0], "--val", grey[1], "--workers", "0")
    assert status == 0
    assert "12-bit here, 8-bit in training" in text
    assert "16 files of another depth" in text


def test_other_channels_are_adapted_by_fine_tuning_and_named_elsewhere(
    said: Callable[..., tuple[int, str]], tmp_path: Path, rng: np.random.Generator
):
    data = tmp_path / "four"
    for i in range(12):
        (data / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(
            *(data / "ab"[i % 2] / f"{i}.tif", rng.integers(0, 256, (40, 40, 4), np.uint8)),
            **{"photometric": "minisblack", "planarconfig": "contig"},
        )
    run = encoder_for(tmp_path / "run", 3)
    for words in (("embed", run, data, "--out", tmp_path / "x.npz"), ("probe", run, data)):
        status, text = said(*words)
        assert status == 2
        assert "have 4 channels, where the encoder has 3" in text
    words = ("--from", run, "--epochs", "1", "--workers", "0", "--out", tmp_path / "fine")
    status, text = said("finetune", data, *words)
    assert status == 0
    assert "channels 3 → 4" in text
    assert said("embed", tmp_path / "fine", data, "--out", tmp_path / "y.npz")[0] == 0
