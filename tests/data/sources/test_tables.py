"""Lists of images as data: every way to write a path, and every way to get it wrong."""

import json
from pathlib import Path

import pytest

from simmim.data.formats.image_file import UnreadableError
from simmim.data.sources.find import find_images
from simmim.data.sources.source import Entry
from simmim.data.sources.tables.image_table import (
    RECENT,
    TableReader,
    TableSource,
    _NameSet,
    table_source,
)
from simmim.data.sources.tables.rows import read_rows
from simmim.errors import DataError


@pytest.fixture
def folder(tmp_path: Path, photos: Path) -> Path:
    """Photos as a.jpg, sub/b ö.jpg and "c, d.jpg"."""
    files = sorted(photos.glob("*/*.jpg"))
    (tmp_path / "data" / "sub").mkdir(parents=True)
    for name, file in zip(("a.jpg", "sub/b ö.jpg", "c, d.jpg"), files, strict=False):
        (tmp_path / "data" / name).write_bytes(file.read_bytes())
    return tmp_path / "data"


def listed(file: Path) -> list[Entry]:
    source = table_source(str(file))
    assert source is not None
    return list(source.entries())


def pairs(file: Path) -> list[tuple[str, str | None]]:
    return [(entry.name, entry.label) for entry in listed(file)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'path,label\na.jpg,x\nsub/b ö.jpg,\n"c, d.jpg",y\n'),
        ("t.csv", '\ufeffFile;Class\r\na.jpg;x\r\nsub/b ö.jpg;\r\n"c, d.jpg";y\r\n'),
        ("t.tsv", "id\timage\tlabel\n1\ta.jpg\tx\n2\tsub/b ö.jpg\t\n3\tc, d.jpg\ty"),
        ("t.csv", 'path,label\na.jpg,x\nsub\\b ö.jpg,\n"c, d.jpg",y\n'),
        ("t.csv", 'path,label\n./a.jpg,x\nsub//../sub/b ö.jpg,\n"c, d.jpg",y\na.jpg,x\n'),
        (
            "t.jsonl",
            '{"file_name": "a.jpg", "label": "x"}\n\n{"file_name": "sub/b ö.jpg", "label": null}\n'
            '{"file_name": "c, d.jpg", "label": "y"}',
        ),
        (
            "t.json",
            '[{"path": "a.jpg", "label": "x"}, {"path": "sub/b ö.jpg"},'
            '\n{"path": "c, d.jpg", "label": "y"}]',
        ),
        ("t.csv", 'path,label\n{0}/a.jpg,x\n{0}/sub/b ö.jpg,\n"{0}/c, d.jpg",y\n'),
        ("t.csv", 'path,label\nfile://{0}/a.jpg,x\nsub/b ö.jpg,\n"{0}/c, d.jpg",y\n'),
    ],
)
def test_all_ways_to_write_a_list_mean_the_same(name: str, text: str, folder: Path):
    file = folder / name
    file.write_text(text.replace("{0}", str(folder)), encoding="utf-8", newline="")
    assert pairs(file) == [("a.jpg", "x"), ("sub/b ö.jpg", None), ("c, d.jpg", "y")]
    source = TableSource(file)
    entries = list(source.entries())
    reader = TableReader(source.info())
    for entry in entries:
        assert reader.read(entry) == (folder / entry.name).read_bytes()


def test_a_table_in_utf_16_is_read(folder: Path):
    (folder / "t.csv").write_text("path\tlabel\na.jpg\tö\n", encoding="utf-16")
    assert pairs(folder / "t.csv") == [("a.jpg", "ö")]


def test_paths_may_be_relative_to_other_folders(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (folder / "lists").mkdir()
    (folder / "lists" / "t.csv").write_text("path\na.jpg\nsub/b ö.jpg\n")
    assert TableSource(folder / "lists" / "t.csv").info().parts == [str(folder)]
    monkeypatch.chdir(tmp_path)
    (folder / "lists" / "t.csv").write_text("path\ndata/a.jpg\n")
    source = TableSource(folder / "lists" / "t.csv")
    assert [entry.name for entry in source.entries()] == ["data/a.jpg"]
    assert TableReader(source.info()).path(Entry("data/a.jpg")).samefile(folder / "a.jpg")
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "t.csv").write_text(f"path\n{folder}/a.jpg\n../data/sub/b ö.jpg\n")
    source = TableSource(outside / "t.csv")
    entries = list(source.entries())
    assert [entry.name for entry in entries] == [f"{folder}/a.jpg", "../data/sub/b ö.jpg"]
    assert all(TableReader(source.info()).read(entry) for entry in entries)


def test_a_missing_file_is_unreadable_and_only_all_missing_is_an_error(folder: Path):
    file = folder / "t.csv"
    file.write_text("path\n" + "".join(f"gone-{i}.jpg\n" for i in range(50)) + "a.jpg\n")
    source = TableSource(file)
    entries = list(source.entries())
    assert len(entries) == 51
    with pytest.raises(UnreadableError, match="No such file"):
        TableReader(source.info()).read(entries[0])
    file.write_text("path\n" + "".join(f"gone-{i}.jpg\n" for i in range(150)) + "a.jpg\n")
    with pytest.raises(
        DataError, match=r"first 100 files .*t\.csv names.*'gone-0.jpg'; tried: .*data"
    ):
        list(TableSource(file).entries())


def test_duplicate_rows_are_listed_once_and_may_not_contradict(folder: Path):
    file = folder / "t.csv"
    file.write_text("path,label\na.jpg,x\nsub/b ö.jpg,y\n./a.jpg,x\n")
    source = TableSource(file)
    assert len(list(source.entries())) == 2
    assert source.info().notes[0] == "1 rows name an image again"
    file.write_text("path,label\na.jpg,x\nsub/b ö.jpg,y\na.jpg,z\n")
    with pytest.raises(
        DataError, match=r"t\.csv, line 4: a.jpg has the label 'z' here and another"
    ):
        list(TableSource(file).entries())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", r"t\.csv has no rows"),
        ("t.csv", "path,label\n", r"t\.csv has no rows"),
        ("t.csv", "x,y\n1,2\n", r"line 1: no column of paths; it has 'x', 'y', one of path, "),
        ("t.csv", "path,label\na.jpg,x\n ,y\n", r"line 3: no path in column 'path', but ''"),
        ("t.csv", 'path,label\na.jpg,x\n"' + "b" * 200_000 + '",y\n', "line 3: field larger"),
        ("t.jsonl", '{"path": "a.jpg"}\n{"path": ', "line 2: not JSON"),
        ("t.jsonl", '{"path": "a.jpg"}\n3', "line 2: an object with a path"),
        ("t.jsonl", '{"path": 7}', "line 1: no path in column 'path', but 7"),
        (
            "t.jsonl",
            '{"path": "a.jpg", "label": ["x", "y"]}',
            "line 1: column 'label' has several labels",
        ),
        ("t.jsonl", '{"path": "a.jpg"}\n{"paht": "b.jpg"}', "line 2: no path in column 'path'"),
        ("t.jsonl", "[" * 100_000, "not JSON"),
        ("t.json", '[{"path": "a.jpg"}, 4]', "item 2: an object"),
    ],
)
def test_damaged_lists_are_told_with_their_line(name: str, text: str, message: str, folder: Path):
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        list(TableSource(folder / name).entries())


def test_bytes_that_are_no_text_are_told(folder: Path):
    (folder / "t.csv").write_bytes(b"path,label\na.jpg,\xe4\n")
    with pytest.raises(DataError, match=r"not text in UTF-8.*iconv"):
        list(TableSource(folder / "t.csv").entries())


def test_labels_of_numbers_and_truth_values(folder: Path):
    rows = [(1, "1"), (0, "0"), (True, "True"), ("", None), (float("nan"), None)]
    lines = [json.dumps({"path": "a.jpg", "label": label}) for label, _ in rows]
    (folder / "t.jsonl").write_text("\n".join(lines))
    assert [row.label for row in read_rows(folder / "t.jsonl")] == [text for _, text in rows]


def test_quoted_line_breaks_count_as_lines(folder: Path):
    (folder / "t.csv").write_text('path,caption\na.jpg,"two\nlines"\nsub/b ö.jpg,x\n')
    assert [(row.line, row.path) for row in read_rows(folder / "t.csv")] == [
        (3, "a.jpg"),
        (4, "sub/b ö.jpg"),
    ]


def test_a_folder_with_a_metadata_file_is_all_its_images(folder: Path, tmp_path: Path):
    every = ["a.jpg", "c, d.jpg", "sub/b ö.jpg"]
    (folder / "metadata.csv").write_text("width,height\n1,2\n")
    images = find_images(folder)
    assert list(images) == every
    assert images.infos[0].options == {}
    assert images.infos[0].notes == ["1 file passed over: 1 .csv"]
    (folder / "metadata.csv").write_text("file_name,label\na.jpg,x\n")
    images = find_images(folder)
    assert list(images) == every
    assert images.infos[0].options == {"labels": str(folder / "metadata.csv")}
    assert images.infos[0].notes == []
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "metadata.csv").write_text(f"file_name,label\n{folder}/a.jpg,x\n")
    images = find_images(elsewhere)  # which has no images of its own
    assert list(images) == [f"{folder}/a.jpg"]
    assert images.label(0) == "x"


def test_what_is_no_list_is_not_recognised(folder: Path):
    (folder / "notes.txt").write_text("path\na.jpg\n")
    for name in ("notes.txt", "a.jpg", "gone.csv", "."):
        assert table_source(str(folder / name)) is None


def test_the_state_changes_with_the_list(folder: Path):
    file = folder / "t.csv"
    file.write_text("path\na.jpg\n")
    before = TableSource(file).state()
    assert TableSource(file).state() == before
    file.write_text("path\nsub/b ö.jpg\n")
    assert TableSource(file).state() != before


def test_urls_stay_as_they_are_and_are_read(folder: Path, photos: Path):
    fsspec = pytest.importorskip("fsspec", reason="needs the extra `remote`")
    data = (folder / "a.jpg").read_bytes()
    fsspec.filesystem("memory").pipe_file("/in a/x.jpg", data)
    (folder / "t.csv").write_text("url,label\nmemory://in a/x.jpg,x\na.jpg,y\nmemory://in a/no,z\n")
    source = TableSource(folder / "t.csv")
    entries = list(source.entries())
    assert [entry.name for entry in entries] == ["memory://in a/x.jpg", "a.jpg", "memory://in a/no"]
    reader = TableReader(source.info())
    assert reader.read(entries[0]) == data
    assert reader.open_large(entries[0]).format == "JPEG"
    assert reader.stamp(entries[0]) == (0, 0)
    with pytest.raises(UnreadableError, match="there is no memory://in a/no"):
        reader.read(entries[2])


def test_names_are_remembered_in_eight_bytes_each():
    seen = _NameSet()
    count = 3 * RECENT + 100
    assert not any(seen.add(str(i)) for i in range(count))
    assert all(seen.add(str(i)) for i in range(0, count, 101))
    assert not seen.add("new")
    assert sum(keys.nbytes for keys in seen._sorted) == 3 * RECENT * 8


def test_a_list_is_found_as_data(folder: Path):
    (folder / "t.csv").write_text('path,label\na.jpg,2\n"c, d.jpg",10\nsub/b ö.jpg,\n')
    images = find_images(folder / "t.csv")
    assert list(images) == ["a.jpg", "c, d.jpg", "sub/b ö.jpg"]
    assert [images.label(i) for i in range(3)] == ["2", "10", None]
    assert images.indexes[0].classes == ["2", "10"]
    assert images.open(1).format == "JPEG"
