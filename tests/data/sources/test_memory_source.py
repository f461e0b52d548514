"""Images from Python: arrays, tensors, Pillow images, paths, data sets and generators."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from simmim.data.formats.decode import read_pixels
from simmim.data.formats.image_file import UnreadableError
from simmim.data.loading.workers import Arrays, Crew
from simmim.data.sources import memory
from simmim.data.sources.memory import MemoryReader, data_source
from simmim.data.sources.source import Entry, Source
from simmim.errors import ConfigError, DataError


def listed(data: Any) -> tuple[Source, list[Entry]]:
    source = data_source(data)
    assert source is not None
    return source, list(source.entries())


def pixels(data: Any) -> list[np.ndarray]:
    source, entries = listed(data)
    reader = MemoryReader(source.info())
    return [read_pixels(reader.open(entry)) for entry in entries]


@pytest.fixture
def eight(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (40, 50, 3), np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("drawn", [False, True])
def test_all_forms_of_an_image_give_the_same_pixels(drawn: bool, eight: np.ndarray, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encoded(eight))
    forms = [
        eight,
        torch.from_numpy(eight).permute(2, 0, 1),
        np.ascontiguousarray(eight.transpose(2, 0, 1)),
        Image.fromarray(eight),
        encoded(eight),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (eight, 1),
        {"image": eight, "label": 1},
        {"image": {"bytes": encoded(eight), "path": None}},
        {"image": {"bytes": None, "path": str(tmp_path / "a.png")}},
    ]
    found = pixels(iter(forms) if drawn else forms)
    assert len(found) == len(forms)
    assert all(np.array_equal(array, eight) for array in found)


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.int64, bool])
def test_depths_are_kept(drawn: bool, dtype: Any, rng: np.random.Generator):
    array = (rng.random((40, 50)) * (2 if dtype is bool else 200)).astype(dtype)
    expected = array.astype(np.uint8) * 255 if dtype is bool else array
    wanted = {np.uint8: np.uint8, np.uint16: np.uint16, bool: np.uint8}.get(dtype, np.float32)
    (found,) = pixels(iter([array]) if drawn else [array])
    assert found.shape == (40, 50, 1)
    assert found.dtype == wanted
    assert np.array_equal(found[..., 0], expected.astype(wanted))


def test_many_channels_and_few_rows_are_not_mistaken_when_told(rng: np.random.Generator):
    tensor = torch.from_numpy(rng.random((200, 20, 20), np.float32))
    (found,) = pixels([tensor])
    assert found.shape == (20, 20, 200)
    array = rng.integers(0, 9, (33, 20, 200)).astype(np.uint8)
    (found,) = pixels(iter([array]))
    assert np.array_equal(found, array)


@pytest.mark.parametrize("side", [24, 32, 224])
def test_three_planes_are_colours_at_any_size(side: int, rng: np.random.Generator):
    planes = rng.integers(0, 255, (3, side, side), dtype=np.uint8)
    (found,) = pixels([planes])
    assert np.array_equal(found, planes.transpose(1, 2, 0))
    (found,) = pixels([found])
    assert np.array_equal(found, planes.transpose(1, 2, 0))


def test_half_and_brain_floats_become_float32():
    for dtype in (torch.float16, torch.bfloat16):
        (found,) = pixels([torch.full((3, 8, 9), 0.5, dtype=dtype)])
        assert found.dtype == np.float32
        assert (found == 0.5).all()


def test_odd_pillow_images_are_read_as_their_files_are(rng: np.random.Generator):
    grey = rng.integers(0, 65536, (20, 30), np.uint16)
    (found,) = pixels([Image.fromarray(grey)])
    assert np.array_equal(found[..., 0], grey)
    real = rng.random((20, 30), np.float32)
    (found,) = pixels([Image.fromarray(real)])
    assert np.array_equal(found[..., 0], real)
    clear = Image.new("RGBA", (30, 20), (0, 0, 0, 0))
    assert (pixels([clear])[0] == 255).all()
    palette = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).quantize(16)
    assert np.array_equal(pixels([palette])[0], np.asarray(palette.convert("RGB")))
    turned = Image.new("RGB", (30, 20))
    turned.getexif()[0x0112] = 6
    stream = io.BytesIO()
    turned.save(stream, "JPEG", exif=turned.getexif())
    assert pixels([Image.open(stream)])[0].shape == (30, 20, 3)


def test_what_is_no_image_is_unreadable(eight: np.ndarray):
    class Broken:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> np.ndarray:
            if i == 1:
                raise RuntimeError("no such row")
            return eight

    source, entries = listed(Broken())
    reader = MemoryReader(source.info())
    with pytest.raises(UnreadableError, match="the data set raised RuntimeError: no such row"):
        reader.open(entries[1])
    bad = [7, None, np.zeros((3,)), np.zeros((0, 4)), np.array([["a"]]), torch.zeros(2, 3, 4, 5)]
    source, entries = listed(bad)
    reader = MemoryReader(source.info())
    for entry in entries:
        with pytest.raises(UnreadableError, match="image"):
            reader.open(entry)
    source, entries = listed(iter([*bad, eight]))
    assert len(entries) == 1
    assert source.info().notes[0].startswith("6 items are no images and are left out: item 0")
    with pytest.raises(DataError, match="gave no images"):
        listed(iter(bad))
    with pytest.raises(DataError, match="gave no images"):
        listed(iter([]))


def test_labels_come_from_pairs_attributes_and_names(eight: np.ndarray):
    assert [entry.label for entry in listed([(eight, 3), (eight, "x"), (eight, None)])[1]] == [
        "3",
        "x",
        None,
    ]
    assert [entry.label for entry in listed([eight, eight])[1]] == [None, None]

    class Set(torch.utils.data.Dataset):
        classes: ClassVar = ["zebra", "ant"]
        asked = 0

        def __init__(self, targets: Any) -> None:
            self.targets = targets

        def __len__(self) -> int:
            return 200

        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            Set.asked += 1
            return eight, int(self.targets[i])

    for targets in ([0, 1] * 100, np.array([0, 1] * 100), torch.tensor([0, 1] * 100)):
        Set.asked = 0
        source, entries = listed(Set(targets))
        assert [entry.label for entry in entries[:3]] == ["zebra", "ant", "zebra"]
        assert source.info().options["classes"] == ["zebra", "ant"]
        assert Set.asked <= memory.HASHED + 4
    part = torch.utils.data.Subset(Set([0, 1] * 100), [1, 3, 4])
    source, entries = listed(part)
    assert [entry.label for entry in entries] == ["ant", "ant", "zebra"]
    assert source.info().options["classes"] == ["zebra", "ant"]


def test_minus_one_is_no_label_and_whole_floats_are_some(
    eight: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    items = [(eight, -1), (eight, 1.0), (eight, np.float32(2)), (eight, 0.5), (eight, "c")]
    notes = [
        "1 label is -1, which means none, such as that of item 0",
        "1 label is no name or whole number and taken for none, such as 0.5 of item 3",
    ]
    for given in (items, iter(items)):
        source, entries = listed(given)
        assert [entry.label for entry in entries] == [None, "1", "2", None, "c"]
        assert source.info().notes == notes
    monkeypatch.setattr(memory, "METHOD", "spawn")
    source, entries = listed(items)
    assert [entry.label for entry in entries] == [None, "1", "2", None, "c"]
    assert source.info().notes == notes


def test_a_data_set_of_the_hub_library(eight: np.ndarray):
    datasets = pytest.importorskip("datasets", reason="needs the extra `datasets`")
    features = datasets.Features(
        {"image": datasets.Image(), "kind": datasets.ClassLabel(names=["b", "a"])}
    )
    rows = {"image": [Image.fromarray(eight)] * 3, "kind": [0, 1, 0]}
    data = datasets.Dataset.from_dict(rows, features=features)
    source, entries = listed(data)
    assert [entry.label for entry in entries] == ["b", "a", "b"]
    assert source.info().options["classes"] == ["b", "a"]
    assert np.array_equal(pixels(data)[1], eight)


def test_the_state_follows_the_contents(eight: np.ndarray):
    other = eight.copy()
    other[0, 0, 0] += 1
    states = {
        listed(data)[0].state()
        for data in ([eight], [other], [eight, eight], [(eight, 1)], [(eight, 2)])
    }
    assert len(states) == 5
    assert listed([eight])[0].state() == listed([eight.copy()])[0].state()
    assert listed(iter([eight]))[0].state() == listed(iter([eight]))[0].state()
    assert listed(iter([eight]))[0].state() != listed(iter([other]))[0].state()


def test_images_that_change_each_time_are_noted(eight: np.ndarray):
    class Moving:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> np.ndarray:
            return np.roll(eight, np.random.default_rng().integers(1, 1000), 0) + np.uint8(
                np.random.default_rng().integers(256)
            )

    source, _ = listed(Moving())
    assert "differ each time" in source.info().notes[0]
    assert listed(Moving())[0].state() == source.state()


def test_arrays_of_images_are_sequences(rng: np.random.Generator):
    images = rng.integers(0, 256, (5, 40, 50, 3), np.uint8)
    assert np.array_equal(np.stack(pixels(images)), images)
    assert np.array_equal(np.stack(pixels(torch.from_numpy(images).permute(0, 3, 1, 2))), images)


def test_a_generator_is_drawn_once_into_the_cache(
    eight: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SIMMIM_CACHE", str(tmp_path))
    drawn = []

    def images() -> Iterator[tuple[Any, int]]:
        for i in range(5):
            drawn.append(i)
            yield (encoded(eight), 1) if i % 2 else (eight + np.uint8(i), 0)

    source, entries = listed(images())
    source.state()
    reader = MemoryReader(source.info())
    assert [entry.label for entry in entries] == ["0", "1", "0", "1", "0"]
    assert np.array_equal(read_pixels(reader.open(entries[2])), eight + np.uint8(2))
    assert reader.read(entries[1]) == encoded(eight)
    assert drawn == [0, 1, 2, 3, 4]
    assert len(list((tmp_path / "drawn").iterdir())) == 1
    (tmp_path / "drawn" / f"{source.state()}.bin").unlink()
    with pytest.raises(UnreadableError, match="is gone from the cache"):
        MemoryReader(source.info()).open(entries[0])

    def broken() -> Iterator[np.ndarray]:
        yield eight
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        listed(broken())
    assert list((tmp_path / "drawn").iterdir()) == []


def test_where_processes_are_not_forked_all_is_drawn(
    eight: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory, "METHOD", "spawn")
    source, entries = listed([(eight, "x"), (eight, None)])
    assert [entry.label for entry in entries] == ["x", None]
    monkeypatch.setattr(memory, "_LIVE", {})
    assert np.array_equal(read_pixels(MemoryReader(source.info()).open(entries[0])), eight)


def test_data_of_another_process_is_told(eight: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    info = listed([eight])[0].info()
    monkeypatch.setattr(memory, "_LIVE", {})
    with pytest.raises(DataError, match="list of 1 items was in the memory of another process"):
        MemoryReader(info)


def test_what_is_no_data_is_refused(tmp_path: Path):
    assert data_source("photos/") is None
    assert data_source(tmp_path) is None
    for data in (b"bytes", {"a": 1}, {1, 2}, list):
        with pytest.raises(ConfigError, match="no collection of images"):
            data_source(data)
    with pytest.raises(ConfigError, match="cannot be iterated over"):
        data_source(3)


class Sums:
    """Fills rows with the sums of the pixels of live data."""

    def __init__(self, data: Any) -> None:
        source, self.entries = listed(data)
        self.reader = MemoryReader(source.info())

    def __call__(self, task: int, out: Arrays, place: Any) -> int:
        out["sums"][0] = int(read_pixels(self.reader.open(self.entries[task])).sum())
        return 1


def test_forked_workers_have_the_data(rng: np.random.Generator):
    images = list(rng.integers(0, 256, (8, 40, 50, 3), np.uint8))
    slot = {"sums": ((1,), torch.int64)}
    crew = Crew(fill=Sums(images), slot=slot, workers=2, ahead=2, timeout=30)
    assert [int(arrays["sums"]) for arrays, _ in crew.run(0, 8)] == [
        int(image.sum()) for image in images
    ]
