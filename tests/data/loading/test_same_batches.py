"""The same batches in the same order, whoever makes them, from wherever they are made on."""

import io
import itertools
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from simmim.config.augment import AugmentConfig
from simmim.config.resolved import PixelFormat
from simmim.data.loading.cache import ImageCache
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream
from simmim.data.sources.find import find_images
from simmim.tensors.batch import Batch

COLOUR = PixelFormat(channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.2,) * 3)
COUNT, BATCH, SIZE = 53, 12, (16, 16)
STEPS = 11
"""Two and a half epochs."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images in a folder and in shards; some of them are damaged."""
    root = tmp_path_factory.mktemp("same")
    rng = np.random.default_rng(0)
    (root / "photos").mkdir()
    (root / "shards").mkdir()
    for i in range(COUNT):
        height, width = rng.integers(20, 90, 2)
        array = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        data = simplejpeg.encode_jpeg(array)[: 60 if i in (7, 30) else None]
        (root / "photos" / f"{i:02}.jpg").write_bytes(data)
        with tarfile.open(root / "shards" / f"shard-{i // 20}.tar", "a") as tar:
            member = tarfile.TarInfo(f"{i:02}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return {"folder": root / "photos", "shards": root / "shards"}


def images(kind: str, places: dict[str, Path]) -> ImageSet:
    if kind == "mix":
        listing = find_images(places["folder"], places["shards"])
    else:
        listing = find_images(places["shards" if kind == "shards" else "folder"])
    cache = ImageCache(listing, COLOUR, SIZE) if kind == "cache" else None
    return ImageSet(listing, COLOUR, list(range(len(listing))), cache)


def stream(
    kind: str, places: dict[str, Path], *, workers: int = 0, rank: int = 0, ranks: int = 1
) -> TrainStream:
    return TrainStream(
        images(kind, places),
        augment=AugmentConfig(),
        size=SIZE,
        seed=9,
        batch_size=BATCH,
        micro_batch=BATCH // ranks,
        workers=workers,
        weights=(3.0, 1.0) if kind == "mix" else (),
        rank=rank,
        ranks=ranks,
    )


def take(source: TrainStream, step: int, steps: int) -> list[Batch]:
    try:
        return list(itertools.islice(source.start(step), steps))
    finally:
        source.close()


def parts(batches: list[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    for batch in batches:
        assert batch.labels is not None
        yield batch.images, batch.t, batch.labels


def same(left: list[Batch], right: list[Batch]) -> bool:
    pairs = zip(parts(left), parts(right), strict=True)
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


KINDS = ["folder", "shards", "mix", "cache"]


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_for_any_number_of_workers(kind: str, workers: int, places: dict[str, Path]):
    expected = take(stream(kind, places), 0, STEPS)
    assert same(expected, take(stream(kind, places, workers=workers), 0, STEPS))


@pytest.mark.parametrize("step", [2, 4, 5, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_after_a_resume_anywhere(kind: str, step: int, places: dict[str, Path]):
    """In the middle of an epoch, where it ends (53 images: within step 4), and after it."""
    expected = take(stream(kind, places), 0, STEPS)
    again = take(stream(kind, places, workers=2), step, STEPS - step)
    assert same(expected[step:], again)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_for_any_number_of_processes(kind: str, workers: int, places: dict[str, Path]):
    """What each process took is disjoint, and together the batch, in order."""
    whole = take(stream(kind, places), 0, STEPS)
    ranks = [
        take(stream(kind, places, workers=workers, rank=rank, ranks=2), 0, STEPS)
        for rank in range(2)
    ]
    for step, batch in enumerate(whole):
        logs = [taken[step].t.tolist() for taken in ranks]
        assert not set(logs[0]) & set(logs[1])
        assert (
            logs[0] + logs[1] == batch.t.tolist() == list(range(step * BATCH, (step + 1) * BATCH))
        )
        both = [
            torch.cat(pair) for pair in zip(*parts([taken[step] for taken in ranks]), strict=True)
        ]
        assert all(torch.equal(a, b) for a, b in zip(both, next(parts([batch])), strict=True))


def test_a_folder_and_shards_of_the_same_images_give_the_same_batches(places: dict[str, Path]):
    assert same(take(stream("folder", places), 0, STEPS), take(stream("shards", places), 0, STEPS))


def test_every_image_comes_once_in_an_epoch_but_the_damaged(places: dict[str, Path]):
    labels = torch.cat([part[2] for part in parts(take(stream("folder", places), 0, 5))])[:COUNT]
    assert len(set(labels.tolist())) >= COUNT - 4
    assert not {7, 30} & set(labels.tolist())
