"""The list of images: what is in it comes back, from any source, after any change."""

import hashlib
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from simmim.data.loading.order import Order
from simmim.data.sources.find import find_images, split_holdout
from simmim.data.sources.index import BATCH, Index, build
from simmim.data.sources.listing import Listing, Without
from simmim.data.sources.source import Entry, Source, SourceInfo
from simmim.errors import DataError


def rank_of(name: str) -> int:
    """The first 64 bits of the hash of a name."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")


class Given(Source):
    """A source of given entries."""

    def __init__(self, entries, **options: object) -> None:
        self.given = list(entries)
        self.options = options

    def state(self):
        return len(self.given)

    def entries(self):
        return iter(self.given)

    def info(self) -> SourceInfo:
        return SourceInfo("folder", "/given", ["/given"], self.options)


def test_entries_come_back_over_several_batches(tmp_path: Path):
    labels = ["10", "9", None]
    entries = [
        Entry(f"{i % 7}/\udcff图{i}.jpg", i % 3, i * 2**33, i, labels[i % 3])
        for i in range(BATCH + 100)
    ]
    index = build(Given(entries), tmp_path / "index.arrow")
    assert len(index) == len(entries)
    for row in (0, 1, 2, BATCH - 1, BATCH, BATCH + 99):
        assert index.entry(row) == entries[row]
    assert index.classes == ["9", "10"]
    ranks = np.concatenate(list(index.ranks()))
    assert ranks[BATCH + 3] == rank_of(entries[BATCH + 3].name)
    assert index.folders is not None
    assert index.folders["6"] == sum(i % 7 == 6 for i in range(len(entries)))
    with pytest.raises(IndexError):
        index.name(len(entries))


def test_the_order_of_classes_may_be_given(tmp_path: Path):
    entries = [Entry(f"{i}.jpg", 0, i, 1, name) for i, name in enumerate(["b", "z", "a"])]
    index = build(Given(entries, classes=["z", "b", "never"]), tmp_path / "i.arrow")
    assert index.classes == ["z", "b", "never", "a"]
    assert [index.label(row) for row in range(3)] == ["b", "z", "a"]


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "other"])
def test_a_damaged_index_is_refused_and_made_anew(damage: str, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    listing = find_images(tmp_path / "photos")
    file = listing.indexes[0].file
    data = file.read_bytes()
    torn = {"cut": data[:200], "noise": b"\x07" * 999, "empty": b"", "other": data[:-40]}[damage]
    file.unlink()  # the listing above keeps what it has mapped
    file.write_bytes(torn)
    with pytest.raises(DataError, match="not a whole index"):
        Index(file)
    assert find_images(tmp_path / "photos") == ["a.jpg"]
    assert listing == ["a.jpg"]


def test_no_flipped_bit_reaches_the_reader(tmp_path: Path):
    entries = [Entry(f"{i % 3}/{i}.jpg", 0, i, 9, str(i % 3)) for i in range(500)]
    file = build(Given(entries), tmp_path / "i.arrow").file
    whole, chance = file.read_bytes(), random.Random(3)
    (tmp_path / "x").mkdir()
    for number in range(300):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        damaged = tmp_path / "x" / f"{number}.arrow"
        damaged.write_bytes(data)
        with pytest.raises(DataError, match=f"{number}.arrow is not a whole index of images"):
            Index(damaged)
        with pytest.raises(DataError, match=f"{number}.arrow is not a whole index of images"):
            find_images(damaged)  # is known as a list all the same
        damaged.unlink()


def test_a_damaged_list_in_the_cache_is_made_anew(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    for i in range(50):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(b"x")
    os.utime(tmp_path / "photos", (1e9, 1e9))  # so that it counts as unchanged
    names = list(find_images(tmp_path / "photos"))
    file = find_images(tmp_path / "photos").indexes[0].file
    data = file.read_bytes()
    at = data.index(b"17.jpg")
    file.unlink()
    file.write_bytes(data[:at] + b"71" + data[at + 2 :])
    assert find_images(tmp_path / "photos") == names


def test_other_readers_of_arrow_find_the_images_too(tmp_path: Path):
    file = build(Given([Entry("a.jpg"), Entry("b.jpg")]), tmp_path / "i.arrow").file
    assert pa.ipc.open_file(str(file)).read_all()["name"].to_pylist() == [b"a.jpg", b"b.jpg"]
    stream = pa.ipc.open_stream(file.read_bytes()[8:])
    assert stream.read_all()["name"].to_pylist() == [b"a.jpg", b"b.jpg"]


def test_a_list_that_was_replaced_is_not_taken_for_the_one_in_use(tmp_path: Path):
    index = build(Given([Entry("a.jpg")]), tmp_path / "i.arrow")
    sent = pickle.dumps(Listing([index]))
    assert pickle.loads(sent) == ["a.jpg"]
    build(Given([Entry("b.jpg")]), tmp_path / "i.arrow")
    with pytest.raises(DataError, match="was replaced by another one"):
        pickle.loads(sent)


def test_an_index_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("simmim.data.sources.index.FORMAT", 7)
    with monkeypatch.context() as patch:
        patch.setattr("simmim.data.sources.index.Index.__init__", lambda self, file: None)
        build(Given([Entry("a.jpg")]), tmp_path / "i.arrow")
    monkeypatch.undo()
    with pytest.raises(DataError, match="format 7, and this simmim reads format 1"):
        Index(tmp_path / "i.arrow")


def test_a_folder_is_listed_anew_only_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    for name in ("b.jpg", "deep/a.jpg"):
        (photos / name).write_bytes(b"x")
    old = time.time() - 60
    for folder in (photos, photos / "deep"):
        os.utime(folder, (old, old))
    listings = []
    real = build

    def counted(*arguments):
        listings.append(1)
        return real(*arguments)

    monkeypatch.setattr("simmim.data.sources.find.build", counted)
    assert find_images(photos) == find_images(photos) == ["b.jpg", "deep/a.jpg"]
    assert len(listings) == 1
    (photos / "deep" / "c.jpg").write_bytes(b"x")
    assert find_images(photos) == ["b.jpg", "deep/a.jpg", "deep/c.jpg"]
    # A change within the resolution of the clock of files is not overlooked either.
    (photos / "deep" / "d.jpg").write_bytes(b"x")
    assert len(find_images(photos)) == 4
    (photos / "b.jpg").unlink()
    assert find_images(photos) == ["deep/a.jpg", "deep/c.jpg", "deep/d.jpg"]


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setenv("SIMMIM_CACHE", str(tmp_path / "file"))
    assert find_images(tmp_path) == ["a.jpg"]
    assert "cannot be kept" in caplog.text


def test_several_sources_are_one_list_with_names_that_tell_them_apart(tmp_path: Path):
    for folder in ("x/photos", "y/photos", "scans"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("L", (4, 4), len(folder)).save(tmp_path / folder / "1.png")
    listing = find_images(*(tmp_path / name for name in ("x/photos", "y/photos", "scans")))
    assert listing == ["photos/1.png", "photos~2/1.png", "scans/1.png"]
    assert listing.counts() == [1, 1, 1]
    assert [listing.open(i).read(1)[0, 0, 0] for i in range(3)] == [8, 8, 5]
    again = pickle.loads(pickle.dumps(listing.select([2, 0])))
    assert again == ["scans/1.png", "photos/1.png"]
    assert again.read(0) == (tmp_path / "scans" / "1.png").read_bytes()
    assert listing.without([1]).counts() == [1, 0, 1]


def test_a_list_without_a_few_stores_only_those():
    rows = Without(12, [11, 0, 4, 5, 4])
    assert list(rows) == [1, 2, 3, 6, 7, 8, 9, 10] == np.asarray(rows).tolist()
    with pytest.raises(IndexError):
        rows[8]


def test_a_sample_hangs_on_names_alone(tmp_path: Path):
    names = [f"{i}.jpg" for i in range(3000)]
    listing = Listing([Index(build(Given(map(Entry, names)), tmp_path / "i.arrow").file)])
    expected = sorted(names, key=rank_of)[:50]
    assert listing.sample(50) == expected
    assert listing.select(range(2999, -1, -1)).sample(50) == expected
    train, held = split_holdout(listing, 50)
    assert held == sorted(expected, key=names.index)
    assert len(train) == 2950
    assert not set(train) & set(held)


def test_shares_of_sources_are_kept_and_every_image_is_seen():
    order = Order((1000, 10, 2000), 5, (1.0, 1.0, 2.0))
    ends = np.cumsum([1000, 10, 2000])
    epoch = order.count
    seen = [np.array([order.index(t) for t in range(e * epoch, (e + 1) * epoch)]) for e in (0, 1)]
    for rows in seen:
        shares = np.bincount(np.searchsorted(ends, rows, side="right"), minlength=3) / epoch
        assert np.abs(shares - [0.25, 0.25, 0.5]).max() < 1 / epoch
    # Each source goes through all of its images before one comes again.
    for source, (low, high) in enumerate(((0, 1000), (1000, 1010), (1010, 3010))):
        stream = np.concatenate(seen)
        stream = stream[(stream >= low) & (stream < high)]
        counts = np.bincount(stream - low, minlength=high - low)
        assert counts.max() - counts.min() <= 2 if source == 1 else counts.max() <= 2
    assert order.index(7) == Order((1000, 10, 2000), 5, (1.0, 1.0, 2.0)).index(7)


def test_ten_thousand_folders_open_in_no_time(tmp_path: Path):
    """The index of a million images opens in well under a second, in little memory."""
    entries = (Entry(f"{i // 100}/{i}.jpg") for i in range(300_000))
    file = tmp_path / "i.arrow"
    build(Given(entries), file)
    script = f"""
import time
from pathlib import Path
from simmim.data.sources.index import Index
from simmim.data.sources.listing import Listing
began = time.perf_counter()
images = Listing([Index(Path({str(file)!r}))])
names = [images[i * 7919 % len(images)] for i in range(1000)]
took = time.perf_counter() - began
assert len(set(names)) == 1000
print(took)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 1
