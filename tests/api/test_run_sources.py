"""A run on every kind of source that the command line and Python take."""

import io
import json
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import simmim
from simmim.api.pretrain import run_pretrain, run_resume
from simmim.config.run import PretrainConfig
from simmim.data.sources.find import find_images
from simmim.errors import CheckpointError, DataError


@pytest.fixture
def short(tiny: PretrainConfig, tmp_path: Path) -> PretrainConfig:
    """A run of two steps."""
    return replace(tiny, out=tmp_path / "run", epochs=0.3, batch_size=16, holdout=4)


def encoder_of(run: Path) -> bytes:
    return (run / "encoder.safetensors").read_bytes()


def test_a_folder_a_zip_and_a_tar_of_it_give_the_same_encoder(
    short: PretrainConfig, photos: Path, tmp_path: Path
):
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    names = [path.relative_to(photos).as_posix() for path in files]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file, name in zip(files, names, strict=True):
            archive.write(file, name)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for file, name in zip(files, names, strict=True):
            tar.add(file, name)
    runs = [
        run_pretrain(replace(short, data=(str(data),), out=tmp_path / f"run-{i}"))
        for i, data in enumerate((photos, tmp_path / "a.zip", tmp_path / "a.tar"))
    ]
    assert encoder_of(runs[0]) == encoder_of(runs[1]) == encoder_of(runs[2])
    rows = [json.loads(line) for line in (runs[1] / "metrics.jsonl").read_text().splitlines()]
    assert "knn" in rows[-1]  # the folders inside an archive are classes too


def test_weights_and_tiles_are_kept_over_a_resume(
    short: PretrainConfig, photos: Path, tmp_path: Path
):
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (200, 150, 3), dtype=np.uint8)).save(scenes / "a.png")
    config = replace(short, data=(str(photos), str(scenes)), weights=(1.0, 3.0), tile=64)
    run = run_pretrain(config)
    lists = [pa.ipc.open_file(str(run / f"images-{i}.arrow")).read_all() for i in (0, 1)]
    assert lists[0].num_rows > 100  # photos of 80 pixels take several tiles too
    assert lists[1].num_rows == 12
    whole = run_pretrain(replace(config, out=tmp_path / "whole", epochs=0.6))
    run_resume(run, {"epochs": 0.6})
    assert json.loads((run / "data.json").read_text())["sources"] == [str(photos), str(scenes)]
    steps = [json.loads(row)["step"] for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) == len((whole / "metrics.jsonl").read_text().splitlines())


class Squares:
    """A map-style data set, as torch knows them."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (40, 40), (6 * i, 255 - 6 * i, 90)), i % 2


def test_python_data_is_trained_on_and_resumed(short: PretrainConfig, tmp_path: Path):
    settings = {
        "model": short.encoder.model,
        "patch_size": 8,
        "image_size": 32,
        "arguments": short.encoder.arguments,
        "decoder": {"depth": 1, "width": 32},
        **{"epochs": 0.5, "batch_size": 16, "holdout": 4},
    }
    data = Squares()
    run = simmim.pretrain(data, out=tmp_path / "a", workers=2, **settings)
    arrays = [np.array(data[i][0]) for i in range(40)]
    other = simmim.pretrain(arrays, out=tmp_path / "b", workers=0, **settings)
    streamed = simmim.pretrain((a for a in arrays), out=tmp_path / "c", workers=0, **settings)
    assert encoder_of(run) == encoder_of(other) == encoder_of(streamed)
    simmim.resume(run, data=data, epochs=1)


def test_a_list_of_another_run_is_not_taken(short: PretrainConfig, photos: Path, tmp_path: Path):
    config = replace(short, data=(str(photos),))
    one = run_pretrain(config)
    other = run_pretrain(replace(config, out=tmp_path / "other", holdout=9))
    shutil.copy(other / "images.json", one)
    with pytest.raises(CheckpointError, match=r"images\.json is of another run"):
        run_resume(one, {"epochs": 2})
    index = find_images(photos / "dress").indexes[0].file
    shutil.copy(index, other / "images-0.arrow")
    with pytest.raises(CheckpointError, match=r"images-0\.arrow is the list of other images"):
        run_resume(other, {"epochs": 2})
    assert (one / "images-0.arrow").stat().st_nlink == 1  # what damages the cache stays there


def test_a_run_whose_images_are_gone_says_so(short: PretrainConfig, tmp_path: Path):
    (tmp_path / "x").mkdir()
    for i in range(20):
        stream = io.BytesIO()
        Image.new("RGB", (40, 40), (i, 0, 0)).save(stream, "PNG")
        (tmp_path / "x" / f"{i}.png").write_bytes(stream.getvalue())
    run = run_pretrain(replace(short, data=(str(tmp_path / "x"),)))
    (tmp_path / "x").rename(tmp_path / "y")
    with pytest.raises(DataError, match=r"were in .*x, which is gone"):
        run_resume(run, {"epochs": 2})
    (tmp_path / "x").symlink_to(tmp_path / "y")
    run_resume(run, {"epochs": 2})
