"""Images in Parquet, Arrow and `datasets`: right bytes, labels in order, damage told."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch

from simmim.data.formats.image_file import UnreadableError
from simmim.data.loading.workers import Arrays, Crew
from simmim.data.sources.folder import FolderSource
from simmim.data.sources.open import source_of
from simmim.data.sources.remote.hub import hub_source
from simmim.data.sources.source import Entry, Source
from simmim.data.sources.tables import parquet
from simmim.data.sources.tables.parquet import ArrowReader, ColumnSource, ParquetReader
from simmim.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def files(photos: Path) -> list[Path]:
    """Sixty photos, thirty of each class."""
    return sorted(photos.glob("*/*.jpg"))[20:80]


def table(files: list[Path], **columns: Any) -> pa.Table:
    images = [file.read_bytes() for file in files]
    return pa.table({"image": images, "label": [file.parent.name for file in files], **columns})


def listed(where: Path | str) -> tuple[Source, list[Entry]]:
    source = source_of(str(where))
    assert source is not None
    return source, list(source.entries())


def reader_of(source: Source) -> ParquetReader | ArrowReader:
    info = source.info()
    json.dumps(info.options)
    return (ParquetReader if info.kind == "parquet" else ArrowReader)(info)


def all_bytes(where: Path | str) -> list[bytes]:
    source, entries = listed(where)
    reader = reader_of(source)
    return [reader.read(entry) for entry in entries]


def test_a_parquet_file_is_read_row_by_row(files: list[Path], tmp_path: Path):
    file = tmp_path / "a.parquet"
    pq.write_table(table(files), file, row_group_size=7)
    source, entries = listed(file)
    assert [entry.name for entry in entries] == [f"a.parquet#{i}" for i in range(60)]
    assert [entry.label for entry in entries] == [file.parent.name for file in files]
    reader = reader_of(source)
    order = np.random.default_rng(1).permutation(60)
    assert [reader.read(entries[i]) for i in order] == [files[i].read_bytes() for i in order]
    assert reader.open(entries[3]).format == "JPEG"


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_a_feather_file_is_read_row_by_row(files: list[Path], tmp_path: Path, compression: str):
    file = tmp_path / "a.feather"
    pyarrow.feather.write_feather(table(files), file, compression=compression, chunksize=11)
    assert all_bytes(file) == [file.read_bytes() for file in files]


def test_a_stream_is_read_where_it_is_not_compressed(files: list[Path], tmp_path: Path):
    rows = table(files)
    for name, compression in (("plain.arrow", None), ("small.arrow", "zstd")):
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(str(tmp_path / name), rows.schema, options=options) as writer:
            writer.write_table(rows, max_chunksize=9)
    assert all_bytes(tmp_path / "plain.arrow") == [file.read_bytes() for file in files]
    with pytest.raises(DataError, match=r"small.arrow is a compressed Arrow stream"):
        listed(tmp_path / "small.arrow")


def test_held_row_groups_are_bounded_and_one_is_always_held(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "a.parquet"
    pq.write_table(table(files), file, row_group_size=10, compression="none")
    largest = max(sum(each.stat().st_size for each in files[i : i + 10]) for i in range(0, 60, 10))
    for bound in (1, 2 * largest):
        monkeypatch.setattr(parquet, "HELD", bound)
        source, entries = listed(file)
        reader = reader_of(source)
        for i in range(0, 60, 7):
            assert reader.read(entries[i]) == files[i].read_bytes()
            held = [size for _, size in reader._groups.values()]
            assert len(held) == 1 or sum(held) <= bound
    assert len(reader._groups) > 1


def test_large_row_groups_are_noted(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pq.write_table(table(files), tmp_path / "a.parquet")
    source, _ = listed(tmp_path / "a.parquet")
    assert not source.info().notes
    monkeypatch.setattr(parquet, "HELD", 1000)
    monkeypatch.setattr(parquet, "NOTED", 1000)
    source, _ = listed(tmp_path / "a.parquet")
    assert "simmim shard" in source.info().notes[0]


def test_structs_of_bytes_and_paths(files: list[Path], tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "å.jpg").write_bytes(files[1].read_bytes())
    rows = [
        {"bytes": files[0].read_bytes(), "path": "x.jpg"},
        {"bytes": None, "path": "sub/å.jpg"},
        {"bytes": None, "path": str(files[2])},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": None},
    ]
    pq.write_table(pa.table({"img": rows}), tmp_path / "s.parquet")
    source, entries = listed(tmp_path / "s.parquet")
    assert {entry.label for entry in entries} == {None}
    reader = reader_of(source)
    assert [reader.read(entry) for entry in entries[:3]] == [f.read_bytes() for f in files[:3]]
    for row, text in ((3, "No such file"), (4, "no image"), (5, "no image")):
        with pytest.raises(UnreadableError, match=text):
            reader.read(entries[row])
    with pytest.raises(UnreadableError, match="empty"):
        reader.open(entries[6])


def test_columns_of_paths_lists_and_dictionaries(files: list[Path], tmp_path: Path):
    paths = pa.array([str(file) for file in files]).dictionary_encode()
    labels = pa.array([file.parent.name for file in files]).dictionary_encode()
    pq.write_table(
        pa.table({"n": range(60), "file_name": paths, "class": labels}), tmp_path / "p.pq"
    )
    source, entries = listed(tmp_path / "p.pq")
    assert [entry.label for entry in entries] == [file.parent.name for file in files]
    assert reader_of(source).read(entries[5]) == files[5].read_bytes()
    lists = pa.array([list(file.read_bytes()) for file in files[:3]], pa.list_(pa.uint8()))
    pq.write_table(pa.table({"image": lists}), tmp_path / "l.parquet")
    assert all_bytes(tmp_path / "l.parquet") == [file.read_bytes() for file in files[:3]]


def test_nested_lists_are_pixels(tmp_path: Path):
    rng = np.random.default_rng(0)
    eight = rng.integers(0, 256, (40, 50, 3))
    deep = rng.integers(0, 4096, (40, 50))
    real = rng.random((40, 50)).astype(np.float32)
    for name, array, dtype in (
        ("e", eight, "uint8"),
        ("d", deep, "uint16"),
        ("f", real, "float32"),
    ):
        kind = pa.list_(pa.list_(pa.type_for_alias(dtype)))
        file = tmp_path / f"{name}.parquet"
        ragged = [[1, 2], [3]]
        if array.ndim == 3:
            kind, ragged = pa.list_(kind), [[[1, 2], [3]]]
        pq.write_table(pa.table({"image": pa.array([array.tolist(), ragged], kind)}), file)
        source, entries = listed(file)
        opened = reader_of(source).open(entries[0])
        assert (opened.height, opened.width, opened.dtype) == (40, 50, dtype)
        pixels = np.load(io.BytesIO(reader_of(source).read(entries[0])))
        assert np.array_equal(pixels, array)
        with pytest.raises(UnreadableError, match="different lengths"):
            reader_of(source).read(entries[1])


def test_odd_labels(tmp_path: Path):
    kinds = [
        (pa.array([3, None, 0]), ["3", None, "0"]),
        (pa.array(["", "b ", None]), [None, "b", None]),
        (pa.array([True, False, None]), ["True", "False", None]),
        (pa.array([[1], [2, 3], []]), [None, None, None]),
        (pa.array([0.5, 1.5, None]), [None, None, None]),
    ]
    for labels, expected in kinds:
        pq.write_table(pa.table({"image": [b"x"] * 3, "label": labels}), tmp_path / "a.parquet")
        assert [entry.label for entry in listed(tmp_path / "a.parquet")[1]] == expected


def test_columns_that_cannot_be_told_are_listed(tmp_path: Path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"left": [b"x"], "right": [b"y"], "n": [1]}), file)
    with pytest.raises(DataError, match=r"a\.parquet: no column of images.*left \(binary\), right"):
        listed(file)
    pq.write_table(pa.table({"thing": [b"x"], "n": [1]}), file)
    assert all_bytes(file) == [b"x"]
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), file)
    with pytest.raises(DataError, match=r"text .string."):
        listed(file)
    pq.write_table(pa.table({"Image": [b"x"], " Label": ["a"]}), file)
    assert [entry.label for entry in listed(file)[1]] == ["a"]


def test_empty_files_and_row_groups(files: list[Path], tmp_path: Path):
    rows = table(files[:4])
    with pq.ParquetWriter(tmp_path / "a.parquet", rows.schema) as writer:
        for piece in (rows[:0], rows[:2], rows[:0], rows[2:]):
            writer.write_table(piece)
    assert all_bytes(tmp_path / "a.parquet") == [file.read_bytes() for file in files[:4]]
    pq.write_table(rows[:0], tmp_path / "none.parquet")
    assert listed(tmp_path / "none.parquet")[1] == []
    (tmp_path / "zero.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot list .*zero\.parquet"):
        listed(tmp_path / "zero.parquet")
    (tmp_path / "zero.arrow").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot list .*zero\.arrow"):
        listed(tmp_path / "zero.arrow")


def test_damaged_files_are_told_and_left_out_of_many(files: list[Path], tmp_path: Path):
    for name in "abc":
        pq.write_table(table(files[:6]), tmp_path / f"{name}.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot list .*b\.parquet: .*magic bytes"):
        listed(tmp_path / "b.parquet")
    source, entries = listed(tmp_path)
    assert [entry.name for entry in entries] == [f"{n}.parquet#{i}" for n in "ac" for i in range(6)]
    assert "1 of 3 files cannot be read" in source.info().notes[0]
    assert reader_of(source).read(entries[7]) == files[1].read_bytes()
    for name in "ac":
        (tmp_path / f"{name}.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="none of the 3 files can be read"):
        listed(tmp_path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_flipped_bytes_and_a_file_that_vanishes_are_unreadable(
    name: str, files: list[Path], tmp_path: Path
):
    file = tmp_path / name
    rows = table(files)
    if name == "a.parquet":
        pq.write_table(rows, file, row_group_size=10)
    else:
        pyarrow.feather.write_feather(rows, file, compression="zstd", chunksize=10)
    source, entries = listed(file)
    data = bytearray(file.read_bytes())
    rng = np.random.default_rng(3)
    for place in rng.integers(100, len(data) * 2 // 3, 400):
        data[place] ^= 0xFF
    file.write_bytes(data)
    reader = reader_of(source)
    outcomes = set()
    for entry in entries[::5]:
        try:
            reader.read(entry)
            outcomes.add("read")
        except UnreadableError:
            outcomes.add("unreadable")
    assert "unreadable" in outcomes
    file.unlink()
    with pytest.raises(UnreadableError, match="cannot be read"):
        reader_of(source).read(entries[0])


def test_the_state_changes_with_a_file(files: list[Path], tmp_path: Path):
    pq.write_table(table(files[:3]), tmp_path / "a.parquet")
    before = listed(tmp_path)[0].state()
    assert listed(tmp_path)[0].state() == before
    os.utime(tmp_path / "a.parquet", (1, 1))
    assert listed(tmp_path)[0].state() != before


def test_folders_of_files(files: list[Path], tmp_path: Path):
    for label in ("dress", "shoes"):
        (tmp_path / "hive" / f"label={label}").mkdir(parents=True)
        rows = pa.table({"image": [f.read_bytes() for f in files if f.parent.name == label][:4]})
        pq.write_table(rows, tmp_path / "hive" / f"label={label}" / "0.parquet")
    _, entries = listed(tmp_path / "hive")
    assert [entry.label for entry in entries] == ["dress"] * 4 + ["shoes"] * 4
    assert entries[0].name == "label=dress/0.parquet#0"
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    (photos / "sub" / "a.jpg").write_bytes(b"")
    pq.write_table(table(files[:2]), photos / "features.parquet")
    # A folder of images, with a table beside.
    assert isinstance(source_of(str(photos)), FolderSource)
    (tmp_path / "empty").mkdir()
    assert isinstance(source_of(str(tmp_path / "empty")), FolderSource)


@pytest.fixture(scope="module")
def dataset(files: list[Path]) -> Any:
    datasets = pytest.importorskip("datasets", reason="needs the extra `datasets`")
    features = datasets.Features(
        {"pic": datasets.Image(), "kind": datasets.ClassLabel(names=["shoes", "dress", "hat"])}
    )
    rows = {
        "pic": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "kind": [file.parent.name for file in files[:-1]] + [-1],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def kinds_of(files: list[Path]) -> list[str | None]:
    return [*(file.parent.name for file in files[:-1]), None]


def test_a_saved_data_set_keeps_the_order_of_its_classes(
    dataset: Any, files: list[Path], tmp_path: Path
):
    dataset.save_to_disk(tmp_path / "saved", num_shards=3)
    source, entries = listed(tmp_path / "saved")
    assert source.info().options["classes"] == ["shoes", "dress", "hat"]
    assert [entry.label for entry in entries] == kinds_of(files)
    assert all_bytes(tmp_path / "saved") == [file.read_bytes() for file in files]
    (tmp_path / "saved" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(DataError, match=r"names data-00001-of-00003.arrow, which is not there"):
        source_of(str(tmp_path / "saved"))


def test_of_a_saved_dictionary_the_training_split_is_taken(
    dataset: Any, files: list[Path], tmp_path: Path
):
    import datasets

    parts = {"test": dataset.select(range(50, 60)), "train": dataset.select(range(50))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    source, entries = listed(tmp_path / "both")
    assert len(entries) == 50
    assert entries[0].name == "train/data-00000-of-00001.arrow#0"
    assert str(tmp_path / "both" / "test") in source.info().notes[0]
    assert len(listed(tmp_path / "both" / "test")[1]) == 10


def test_parquet_of_a_data_set_and_its_name(
    dataset: Any, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "owner-name" / "data"
    folder.mkdir(parents=True)
    dataset.select(range(40)).to_parquet(folder / "train-00000-of-00001.parquet")
    dataset.select(range(40, 60)).to_parquet(folder / "test-00000-of-00001.parquet")
    _, entries = listed(tmp_path / "owner-name")
    assert len(entries) == 60
    where = f"hf-dataset:{tmp_path / 'owner-name'}"
    source, entries = listed(where)
    assert len(entries) == 40
    assert source.info().options["classes"] == ["shoes", "dress", "hat"]
    assert source.info().notes[0].endswith("#SPLIT: test")
    assert all_bytes(where) == [file.read_bytes() for file in files[:40]]
    assert all_bytes(f"{where}#test") == [file.read_bytes() for file in files[40:]]
    with pytest.raises(DataError, match=r"cannot load .*#nosuch"):
        listed(f"{where}#nosuch")


def test_names_of_data_sets_that_cannot_be():
    with pytest.raises(ConfigError, match="hf-dataset:OWNER/NAME is needed"):
        hub_source("hf-dataset:")


class Sums:
    """Fills a row with the sum of each image's bytes."""

    def __init__(self, source: ColumnSource, entries: list[Entry]) -> None:
        self.reader, self.entries = reader_of(source), entries
        self.reader.read(entries[0])  # the files are open when workers are forked

    def __call__(self, task: int, out: Arrays, place: Any) -> int:
        for row, entry in enumerate(self.entries[4 * task : 4 * task + 4]):
            out["sums"][row] = sum(self.reader.read(entry))
        return 4


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_forked_workers_read_the_same(name: str, files: list[Path], tmp_path: Path):
    file = tmp_path / name
    if name == "a.parquet":
        pq.write_table(table(files), file, row_group_size=6)
    else:
        pyarrow.feather.write_feather(table(files), file, compression="lz4", chunksize=6)
    source, entries = listed(file)
    assert isinstance(source, ColumnSource)
    order = [entries[i] for i in np.random.default_rng(2).permutation(60)]
    slot = {"sums": ((4,), torch.int64)}
    crew = Crew(fill=Sums(source, order), slot=slot, workers=2, ahead=2, timeout=30)
    found = torch.cat([arrays["sums"].clone() for arrays, _ in crew.run(0, 15)]).tolist()
    assert found == [sum(reader_of(source).read(entry)) for entry in order]
