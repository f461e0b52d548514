import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from simmim.config.augment import AugmentConfig
from simmim.config.resolved import PixelFormat
from simmim.data import processes
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream, load_views
from simmim.data.loading.order import Order
from simmim.data.loading.quarantine import Quarantine
from simmim.data.sources.find import find_images
from simmim.errors import ConfigError, DataError, TrainingError
from simmim.tensors.batch import Batch

PHOTO = PixelFormat(channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.2,) * 3)
COUNT = 40
NAMES = [str(i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, listed) -> ImageSet:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = [f"{i:02}.jpg" for i in range(COUNT)]
    for path in paths:
        array = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        (folder / path).write_bytes(simplejpeg.encode_jpeg(array))
    return ImageSet(listed(folder, paths), PHOTO, list(range(COUNT)))


def stream(images: ImageSet, **changes: object) -> TrainStream:
    settings = {
        **{"augment": AugmentConfig(), "size": (16, 16), "seed": 3, "batch_size": 12},
        **{"micro_batch": 12, "workers": 0},
    }
    return TrainStream(images, **(settings | changes))


@contextlib.contextmanager
def started(source: TrainStream, step: int = 0) -> Iterator[Iterator[Batch]]:
    try:
        yield source.start(step)
    finally:
        source.close()


def take(source: TrainStream, count: int, step: int = 0) -> list[Batch]:
    with started(source, step) as batches:
        return list(itertools.islice(batches, count))


def joined(batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
    return torch.cat([b.images for b in batches]), torch.cat([b.t for b in batches]), labels


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(joined(a), joined(b), strict=True))


def with_bad(images: ImageSet, folder: Path, bad: set[int]) -> ImageSet:
    for i, path in enumerate(images.paths):
        data = images.paths.read(i)
        (folder / path).write_bytes(data[:100] if i in bad else data)
    return ImageSet(find_images(folder), images.pixels, images.labels)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(photos: ImageSet, workers: int, tmp_path: Path):
    images = with_bad(photos, tmp_path, {3, 17})
    expected = take(stream(images), 8)
    assert equal(expected, take(stream(images, workers=workers), 8))
    assert equal(expected[5:], take(stream(images, workers=workers), 3, step=5))


@pytest.mark.parametrize("micro_batch", [1, 5, 7, 100])
@pytest.mark.parametrize("workers", [0, 1])
def test_micro_batches_change_nothing(photos: ImageSet, micro_batch: int, workers: int):
    pieces = -(-12 // min(micro_batch, 12))
    cut = take(stream(photos, micro_batch=micro_batch, workers=workers), 3 * pieces)
    assert [len(batch.t) for batch in cut[:pieces]][:-1] == [micro_batch] * (pieces - 1)
    assert equal(take(stream(photos), 3), cut)


def test_a_large_micro_batch_is_made_in_chunks(photos: ImageSet):
    settings = {"batch_size": 100, "micro_batch": 90}
    expected = take(stream(photos, **settings), 4)
    assert [len(batch.t) for batch in expected] == [90, 10, 90, 10]
    assert equal(expected, take(stream(photos, workers=2, **settings), 4))


def test_ranks_share_each_global_batch_in_order(photos: ImageSet):
    whole = take(stream(photos), 3)
    parts = [take(stream(photos, rank=rank, ranks=2), 3) for rank in (0, 1)]
    assert equal(whole, [part[step] for step in range(3) for part in parts])
    assert parts[1][2].t.tolist() == list(range(30, 36))
    with pytest.raises(ConfigError, match=r"12 cannot be shared by 5 processes.*15"):
        stream(photos, rank=0, ranks=5)


def test_the_images_are_the_epochs_permutations_end_to_end(photos: ImageSet):
    _, t, labels = joined(take(stream(photos, batch_size=20, micro_batch=20), 4))
    assert t.tolist() == list(range(80))
    assert labels.tolist() == [Order((COUNT,), 3).index(int(i)) for i in t]
    assert sorted(labels[:COUNT].tolist()) == list(range(COUNT))


def workers_of(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(status[1]) == parent and status[0] != "Z":
                    found.append(int(entry.name))
    return sorted(found)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to find the workers")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_lost_worker_is_replaced_at_the_same_position(photos: ImageSet, number: int):
    before = workers_of(os.getpid())
    expected = take(stream(photos), 12)
    with started(stream(photos, workers=2, timeout=1.0)) as batches:
        got = list(itertools.islice(batches, 3))
        time.sleep(0.2)  # until some batches lie ready
        os.kill(next(p for p in workers_of(os.getpid()) if p not in before), number)
        got += itertools.islice(batches, 9)
    assert equal(expected, got)
    assert workers_of(os.getpid()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to find the workers")
def test_a_worker_lost_three_times_ends_the_run_with_a_hint(
    photos: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parent = os.getpid()

    def fatal(*_: object) -> None:
        if os.getpid() == parent:
            pytest.fail("meant for the workers")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("simmim.data.loading.loader.ImageSet.open", fatal)
    with (
        started(stream(photos, workers=2)) as batches,
        pytest.raises(
            TrainingError,
            match=r"pid \d+.*SIGKILL.*reading \d+\.jpg, for the third time.*memory.*--workers",
        ),
    ):
        next(batches)


def test_an_image_that_crashes_its_decoder_is_left_out_and_named(
    photos: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    opened = ImageSet.open
    expected = take(stream(with_bad(photos, tmp_path, {5})), 12)

    def crash(images: ImageSet, i: int) -> object:
        if images.paths[i] == "05.jpg":
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # no dump by pytest
            os.kill(os.getpid(), signal.SIGSEGV)
        return opened(images, i)

    monkeypatch.setattr("simmim.data.loading.loader.ImageSet.open", crash)
    file = tmp_path / "quarantine.jsonl"
    source = stream(photos, workers=2, quarantine=Quarantine(file, 1.0, NAMES))
    assert equal(expected, take(source, 12))
    reason = "the process that reads it was ended by SIGSEGV"
    assert json.loads(file.read_text()) == {"path": "05.jpg", "reason": reason}


def test_an_error_in_a_worker_is_raised_with_its_traceback(
    photos: ImageSet, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("our own mistake")

    monkeypatch.setattr("simmim.data.loading.loader.ImageSet.open", broken)
    with (
        started(stream(photos, workers=1)) as batches,
        pytest.raises(RuntimeError, match="our own mistake"),
    ):
        next(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_and_reported_once(
    photos: ImageSet, workers: int, tmp_path: Path
):
    images = with_bad(photos, tmp_path, {3, 17})
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.05, NAMES)
    batches = take(stream(images, workers=workers, quarantine=quarantine), 3)
    labels = joined(batches)[2].tolist()
    assert not {3, 17} & set(labels)
    regular = [Order((COUNT,), 3).index(t) for t in range(36)]
    assert [a for a, b in zip(labels, regular, strict=True) if a != b] != []
    assert quarantine.count == len({3, 17} & set(regular)) > 0
    with pytest.raises(TrainingError, match=r"2 of 40 images tried.*q\.jsonl"):
        take(
            stream(
                images,
                workers=workers,
                quarantine=Quarantine(tmp_path / "q.jsonl", 0.04, NAMES[:40]),
            ),
            4,
        )


def test_nothing_but_unreadable_images_ends_the_run(photos: ImageSet, tmp_path: Path):
    images = with_bad(photos, tmp_path, set(range(COUNT)))
    with pytest.raises(TrainingError, match="one after the other"):
        take(stream(images), 1)
    with pytest.raises(DataError, match="no images"):
        stream(ImageSet(photos.paths[:0], PHOTO))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_storage_that_fails_is_not_held_against_the_images(
    photos: ImageSet, workers: int, monkeypatch: pytest.MonkeyPatch
):
    def fail(self: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    monkeypatch.setattr("simmim.data.formats.decode.time.sleep", lambda seconds: None)
    quarantine = Quarantine(None, 0.05, NAMES)
    with pytest.raises(TrainingError, match=r"Input/output error.*the storage that fails"):
        take(stream(photos, workers=workers, quarantine=quarantine), 1)
    assert quarantine.count == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_plain_views_come_in_order_without_the_unreadable(
    photos: ImageSet, workers: int, tmp_path: Path
):
    images = with_bad(photos, tmp_path, {0, 17, *range(20, 30)})
    parts = list(load_views(images, (16, 24), bad={}, batch=10, workers=workers))
    assert [index for kept, _ in parts for index in kept] == [
        *(i for i in range(1, 20) if i != 17),
        *range(30, 40),
    ]
    assert all(len(kept) == len(batch.images) <= 10 for kept, batch in parts)
    assert all(kept == batch.t.tolist() for kept, batch in parts)
    again = joined([batch for _, batch in load_views(images, (16, 24), bad={}, batch=64)])
    assert torch.equal(joined([batch for _, batch in parts])[0], again[0])


def test_deep_images_come_as_floats(tmp_path: Path):
    array = np.arange(30 * 30, dtype=np.uint16).reshape(30, 30, 1) * 4
    np.save(tmp_path / "a.npy", array)
    pixels = PixelFormat(
        channels=1, low=(0.0,), high=(4095.0,), mean=(0.5,), std=(0.2,), depth="12-bit"
    )
    (batch,) = take(stream(ImageSet(find_images(tmp_path), pixels), workers=1), 1)
    assert batch.images.dtype == torch.float32
    assert batch.labels is None
    assert batch.images.max() > 3000


def test_spawned_workers_do_as_forked_ones(photos: ImageSet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "METHOD", "spawn")
    assert equal(take(stream(photos), 2), take(stream(photos, workers=1), 2))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to find the workers")
def test_workers_end_with_a_killed_parent_and_follow_one_that_used_threads(photos: ImageSet):
    script = f"""
        import os, time, torch
        from simmim.config.augment import AugmentConfig
        from simmim.config.resolved import PixelFormat
        from simmim.data.sources.find import find_images
        from simmim.data.loading.loader import ImageSet, TrainStream
        a = torch.randn(400, 400); (a @ a).sum()  # starts OpenMP's threads before the fork
        ends = {{"low": (0.0,) * 3, "high": (255.0,) * 3}}
        pixels = PixelFormat(channels=3, **ends, mean=(.5,) * 3, std=(.2,) * 3)
        images = ImageSet(find_images({photos.paths.where!r}), pixels)
        batches = TrainStream(images, augment=AugmentConfig(), size=(16, 16), seed=0,
                              batch_size=8, micro_batch=8, workers=2).start(0)
        next(batches)
        print("ready", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        orphans = workers_of(parent.pid)
        parent.kill()
    assert len(orphans) >= 2
    deadline = time.monotonic() + 15
    while any(Path(f"/proc/{pid}").exists() for pid in orphans):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)
