"""A place of images that is gone as a whole says nothing about its images."""

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from simmim.config.augment import AugmentConfig
from simmim.config.resolved import PixelFormat
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream, load_views
from simmim.data.loading.quarantine import Quarantine
from simmim.data.sources.find import find_images
from simmim.errors import DataError, TrainingError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        array = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        (folder / f"{i:02}.jpg").write_bytes(simplejpeg.encode_jpeg(array))
    return folder


def in_tar(folder: Path) -> Path:
    with tarfile.open(folder.with_suffix(".tar"), "w") as tar:
        tar.add(folder, "photos")
    return folder.with_suffix(".tar")


def in_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return folder.with_suffix(".zip")


def in_parquet(folder: Path) -> Path:
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in sorted(folder.iterdir())]
    pq.write_table(pa.table({"image": images}), folder.with_suffix(".parquet"))
    return folder.with_suffix(".parquet")


RGB = PixelFormat(channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.2,) * 3)
PLACES: dict[str, Callable[[Path], Path]] = {
    **{"folder": lambda folder: folder, "tar": in_tar, "zip": in_zip, "parquet": in_parquet},
}


def run(where: Path, quarantine: Quarantine, workers: int, tile: int | None) -> TrainStream:
    return TrainStream(
        ImageSet(find_images(str(where), tile=tile), RGB),
        augment=AugmentConfig(),
        size=(16, 16),
        seed=0,
        batch_size=4,
        micro_batch=4,
        workers=workers,
        quarantine=quarantine,
    )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [*PLACES, "tiles"])
def test_what_went_as_a_whole_ends_the_run_and_is_held_against_no_image(
    folder: Path, kind: str, workers: int
):
    where = PLACES.get(kind, PLACES["folder"])(folder)
    quarantine = Quarantine(folder.parent / "q.jsonl", 0.05, [str(i) for i in range(48)])
    stream = run(where, quarantine, workers, 16 if kind == "tiles" else None)
    where.rename(folder.parent / "away")
    with pytest.raises(TrainingError, match="is not there any more") as caught:
        next(stream.start(0))
    stream.close()
    assert str(caught.value).startswith(str(where))
    assert quarantine.count == 0
    (folder.parent / "away").rename(where)
    next(stream.start(0))
    stream.close()


def test_a_mount_point_without_its_disk_is_gone_too(folder: Path):
    quarantine = Quarantine(None, 0.05, [str(i) for i in range(12)])
    stream = run(folder, quarantine, 0, None)
    folder.rename(folder.parent / "away")
    folder.mkdir()
    with pytest.raises(TrainingError, match="is a disk not mounted"):
        next(stream.start(0))


def test_single_images_that_are_gone_are_bad_images(folder: Path):
    quarantine = Quarantine(None, 1.0, [str(i) for i in range(12)])
    stream = run(folder, quarantine, 0, None)
    for i in range(6):
        (folder / f"{i:02}.jpg").unlink()
    batches = stream.start(0)
    for _ in range(6):
        next(batches)
    assert quarantine.count == 6


def test_views_of_what_is_gone_are_no_views_without_unreadable_images(folder: Path):
    images = ImageSet(find_images(str(folder)), RGB)
    folder.rename(folder.parent / "away")
    with pytest.raises(DataError, match="is not there any more"):
        list(load_views(images, (16, 16), bad={}))
