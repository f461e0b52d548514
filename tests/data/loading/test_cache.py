import errno
import io
import json
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simmim.config.augment import AugmentConfig
from simmim.config.resolved import PixelFormat
from simmim.data.formats.decode import UnreadableError, inspect, read_pixels
from simmim.data.formats.image_file import ImageFile
from simmim.data.loading import cache as caches
from simmim.data.loading.augment import random_view
from simmim.data.loading.cache import ImageCache, file_bytes, kept_size, loss_in_words, pick_cache
from simmim.errors import ConfigError

PIXELS = PixelFormat(
    channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)
SIZE = (40, 40)  # kept at a short side of 46
HOME = Path(__file__).parents[3]


@dataclass
class Some:
    """Encoded images in memory, in the place of a listing."""

    data: list[bytes]
    name: str = "some"
    opened: int = 0

    def __len__(self) -> int:
        return len(self.data)

    def open(self, i: int) -> ImageFile:
        self.opened += 1
        return inspect(self.data[i])

    def sample(self, count: int) -> "Some":
        return Some(self.data[:count])

    def fingerprint(self) -> str:
        return self.name


def photos(count: int = 4) -> Some:
    made = []
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        stream = io.BytesIO()
        image = Image.fromarray(noise).resize((160, 90 + 10 * i), Image.Resampling.BICUBIC)
        image.save(stream, "JPEG" if i % 2 else "PNG", quality=95)
        made.append(stream.getvalue())
    return Some(made)


def view(cache: ImageCache, i: int, t: int = 0) -> torch.Tensor:
    return random_view(cache.open(i), PIXELS, AugmentConfig(), SIZE, (t,))


def fill(cache: ImageCache) -> list[np.ndarray]:
    return [read_pixels(cache.open(i)).copy() for i in range(len(cache))]


def test_an_image_is_decoded_once_and_kept_at_115_percent(tmp_path: Path):
    images = photos()
    cache = ImageCache(images, PIXELS, SIZE, tmp_path)
    assert cache.short == 46
    first = fill(cache)
    assert images.opened == 4
    assert [array.shape for array in first] == [(46, 82, 3), (46, 74, 3), (46, 67, 3), (46, 61, 3)]
    again = ImageCache(images, PIXELS, SIZE, tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(first, fill(again), strict=True))
    assert images.opened == 4
    assert again.filled() == 4
    by_pillow = Image.open(io.BytesIO(images.data[0])).resize((82, 46), Image.Resampling.BILINEAR)
    assert np.abs(first[0].astype(int) - np.asarray(by_pillow)).max() <= 1


def test_crops_are_the_same_before_and_after_an_image_is_kept(tmp_path: Path):
    cache = ImageCache(photos(), PIXELS, SIZE, tmp_path)
    missing = [view(cache, i, t) for i in range(4) for t in range(3)]
    kept = [view(cache, i, t) for i in range(4) for t in range(3)]
    other = ImageCache(photos(), PIXELS, SIZE, tmp_path / "other")
    other._full = True  # it never keeps anything
    never = [view(other, i, t) for i in reversed(range(4)) for t in range(3)]
    assert other.filled() == 0
    never = [never[3 * (3 - i) + t] for i in range(4) for t in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(missing, kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(missing, never, strict=True))


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((375, 500), (258, 344)),
        ((500, 375), (344, 258)),
        ((200, 300), (200, 300)),  # never enlarged
        ((258, 258), (258, 258)),
        ((3000, 6000), (258, 516)),
        ((1000, 10_000), (115, 1153)),  # as many pixels as one of 2:1 at most
        ((1, 1_000_000), (1, 133_128)),
    ],
)
def test_the_kept_size(size: tuple[int, int], kept: tuple[int, int]):
    assert kept_size(*size, 258) == kept
    assert kept[0] * kept[1] <= 2 * 258 * 258


def test_other_images_sizes_or_channels_have_caches_of_their_own(tmp_path: Path):
    grey = PixelFormat(channels=1, low=(0.0,), high=(255.0,), mean=(0.5,), std=(0.25,))
    folders = {
        ImageCache(images, pixels, size, tmp_path).folder
        for images in (photos(), Some(photos().data, "others"), photos(3))
        for pixels in (PIXELS, grey)
        for size in ((40, 40), (64, 40))
    }
    assert len(folders) == 12
    assert read_pixels(ImageCache(photos(), grey, SIZE, tmp_path).open(1)).shape == (46, 74, 1)


def test_an_unreadable_image_is_tried_again_each_time(tmp_path: Path):
    images = photos()
    images.data[0] = images.data[0][:-200]
    images.data[1] = b"no image"
    cache = ImageCache(images, PIXELS, SIZE, tmp_path)
    for _ in range(2):
        for i in (0, 1):
            with pytest.raises(UnreadableError):
                view(cache, i)
    assert cache.filled() == 0
    images.data[1] = photos().data[1]
    view(cache, 1)
    assert cache.filled() == 1


def damage(cache: ImageCache, what: str) -> None:
    file = cache.folder / {"about": "about.json"}.get(what.split()[0], what.split()[0])
    if what == "about json":
        file.write_text("{")
    elif what == "about others":
        file.write_text(json.dumps({**json.loads(file.read_text()), "fingerprint": "x"}))
    elif what.endswith("cut"):
        os.truncate(file, file.stat().st_size // 2)
    elif what.endswith("gone"):
        file.unlink()


@pytest.mark.parametrize(
    "what", ["about json", "about others", "about gone", "rows cut", "rows gone", "pixels cut"]
)
def test_a_damaged_or_foreign_cache_is_made_anew(what: str, tmp_path: Path):
    cache = ImageCache(photos(), PIXELS, SIZE, tmp_path)
    before = fill(cache)
    damage(cache, what)
    again = ImageCache(photos(), PIXELS, SIZE, tmp_path)
    assert again.filled() == 0
    assert all(np.array_equal(a, b) for a, b in zip(before, fill(again), strict=True))
    assert again.filled() == 4
    left = [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")]
    assert left == [again.folder.name]


def test_a_file_in_the_place_of_the_folder_is_replaced(tmp_path: Path):
    folder = ImageCache(photos(), PIXELS, SIZE, tmp_path / "a").folder
    (tmp_path / folder.name).write_text("a file")
    assert len(fill(ImageCache(photos(), PIXELS, SIZE, tmp_path))) == 4
    assert [path.name for path in tmp_path.glob("*-old")] == []


def test_damaged_rows_count_as_empty_and_pixels_of_an_earlier_start_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = ImageCache(photos(), PIXELS, SIZE, tmp_path)
    before = fill(cache)
    with (cache.folder / "rows").open("r+b") as file:
        file.seek(64 + 24 * 2 + 9)
        file.write(b"\xff")
    assert cache.filled() == 3
    with (cache.folder / "pixels").open("r+b") as file:  # as after a loss of power
        file.seek(3 * cache.short**2 * 6)
        file.write(bytes(4096))
    monkeypatch.setattr("simmim.data.loading.cache_file._boot", lambda: "a later start")
    later = ImageCache(photos(), PIXELS, SIZE, tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(before, fill(later), strict=True))
    assert later.images.opened == 2
    assert later.filled() == 4


def test_a_copy_sent_to_another_process_reads_the_same_files(tmp_path: Path):
    cache = ImageCache(photos(), PIXELS, SIZE, tmp_path)
    before = fill(cache)
    copy = pickle.loads(pickle.dumps(cache))
    assert all(np.array_equal(a, b) for a, b in zip(before, fill(copy), strict=True))
    assert copy.images.opened == cache.images.opened == 4


def _fill_in_turn(root: Path, start: int) -> None:
    torch.set_num_threads(1)
    cache = ImageCache(photos(24), PIXELS, SIZE, root)
    for k in range(48):
        view(cache, (start + k) % 24)


@pytest.mark.parametrize("killed", [False, True])
def test_processes_fill_at_once_and_may_be_killed(killed: bool, tmp_path: Path):
    spawn = multiprocessing.get_context("fork")
    processes = [spawn.Process(target=_fill_in_turn, args=(tmp_path, 8 * n)) for n in range(3)]
    for process in processes:
        process.start()
    if killed:
        time.sleep(0.05)
        for process in processes[:2]:
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join(30)
    assert processes[2].exitcode == 0
    cache = ImageCache(photos(24), PIXELS, SIZE, tmp_path)
    assert cache.filled() == 24
    found = fill(cache)
    assert cache.images.opened == 0
    fresh = fill(ImageCache(photos(24), PIXELS, SIZE, tmp_path / "fresh"))
    assert all(np.array_equal(a, b) for a, b in zip(found, fresh, strict=True))


def test_whoever_is_killed_between_pixels_and_row_leaves_an_empty_place(tmp_path: Path):
    child = os.fork()
    if child == 0:
        from simmim.data.loading import cache_file as slots

        write = slots._write

        def stop(descriptor: int, data: memoryview, at: int) -> None:
            write(descriptor, data[: len(data) // 2], at)
            os.kill(os.getpid(), signal.SIGKILL)

        cache = ImageCache(photos(), PIXELS, SIZE, tmp_path)
        slots._write = stop
        fill(cache)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    cache = ImageCache(photos(), PIXELS, SIZE, tmp_path)
    assert cache.filled() == 0
    fresh = fill(ImageCache(photos(), PIXELS, SIZE, tmp_path / "fresh"))
    assert all(np.array_equal(a, b) for a, b in zip(fill(cache), fresh, strict=True))


SMALL_DISK = """
import logging, resource, sys
sys.path[:0] = [{tests!r}]
import torch; torch.set_num_threads(1)
from test_cache import *
logging.basicConfig(format="%(message)s")
limit = 46 * 46 * 6 * 2
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
cache = ImageCache.__new__(ImageCache)
root = Path({root!r})
cache = ImageCache(photos(), PIXELS, SIZE, root)
workers = [os.fork() for _ in range(2)]
views = [view(cache, i) for i in range(4) for _ in range(2)]
if 0 in workers: os._exit(0)
for worker in workers: os.waitpid(worker, 0)
print(cache.filled())
"""


def test_a_full_disk_ends_the_keeping_with_one_warning_and_nothing_else(tmp_path: Path):
    """A limit on the size of files stands in for the disk: writing fails alike, past two images."""
    ImageCache(photos(), PIXELS, SIZE, tmp_path)  # made before the limit holds
    script = SMALL_DISK.format(tests=str(Path(__file__).parent), root=str(tmp_path))
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "2"
    assert result.stderr.count("decoded each time") == 1, result.stderr


def test_a_cache_that_cannot_be_made_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        cache = ImageCache(photos(), PIXELS, SIZE, tmp_path / "file" / "images")
        assert [array.shape[0] for array in fill(cache)] == [46] * 4
    assert [record.getMessage().count("decoded each time") for record in caplog.records] == [1]
    assert cache.filled() == 0
    pickle.loads(pickle.dumps(cache))
    assert len(caplog.records) == 1


def test_no_room_while_a_row_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = ImageCache(photos(), PIXELS, SIZE, tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    expected = fill(ImageCache(photos(), PIXELS, SIZE, tmp_path / "other"))
    monkeypatch.setattr("os.pwrite", full)
    assert all(np.array_equal(a, b) for a, b in zip(fill(cache), expected, strict=True))
    assert cache.filled() == 0


def test_the_choice_follows_from_disk_and_memory(monkeypatch: pytest.MonkeyPatch):
    images = photos()
    need = file_bytes(images, PIXELS, SIZE)
    assert need == 3 * 46 * (82 + 74 + 67 + 61) + 4 * 24
    monkeypatch.setattr(caches, "_free", lambda _: 4 * need)
    monkeypatch.setattr(caches, "total_memory", lambda: 2 * need)
    assert pick_cache("auto", images, PIXELS, SIZE)[0]
    assert pick_cache("off", images, PIXELS, SIZE) == (False, "given")
    monkeypatch.setattr(caches, "total_memory", lambda: 2 * need - 2)
    assert not pick_cache("auto", images, PIXELS, SIZE)[0]
    assert pick_cache("on", images, PIXELS, SIZE)[0]
    monkeypatch.setattr(caches, "total_memory", lambda: 2 * need)
    monkeypatch.setattr(caches, "_free", lambda _: 4 * need - 4)
    chosen, why = pick_cache("auto", images, PIXELS, SIZE)
    assert not chosen
    assert "46 pixels" in why
    assert "free disk" in why
    deep = PixelFormat(
        channels=1, low=(0.0,), high=(4095.0,), mean=(0.5,), std=(0.25,), depth="12-bit"
    )
    assert pick_cache("auto", images, deep, SIZE)[0] is False
    with pytest.raises(ConfigError, match="12-bit"):
        pick_cache("on", images, deep, SIZE)


def test_what_is_lost_is_said_in_numbers():
    text = loss_in_words((224, 224), 0.2)
    assert "258 pixels" in text
    assert "75%" in text
    assert "1.9 times" in text
    assert "enlarged" not in loss_in_words((224, 224), 0.8)


def test_free_disk_and_memory_are_numbers_of_this_machine(tmp_path: Path):
    assert caches._free(tmp_path / "not" / "yet") > 0
    assert 2**28 < caches.total_memory() <= os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
