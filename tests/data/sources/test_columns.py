"""Columns of tables: which of them are images and labels, and what their values mean."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simmim.data.labels import labels_of
from simmim.data.sources.find import find_images
from simmim.data.sources.open import source_of


def told(
    file: Path, columns: dict[str, Any], features: dict[str, Any] | None = None
) -> tuple[list[str | None], list[str]]:
    """The labels of a table, and the notes; its images are not looked at."""
    table = pa.table({"image": [b"x"] * len(next(iter(columns.values()))), **columns})
    if features:
        found = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": found})
    pq.write_table(table, file, row_group_size=2)
    source = source_of(str(file))
    assert source is not None
    first, again = list(source.entries()), list(source.entries())
    assert first == again
    return [entry.label for entry in again], source.info().notes


@pytest.mark.parametrize("kind", ["int8", "int64", "float32", "float64", "string"])
def test_minus_one_is_no_label_whatever_its_type(kind: str, tmp_path: Path):
    file = tmp_path / "a.parquet"
    labels = pa.array([-1, 0, 1, None, -1, 10]).cast(pa.type_for_alias(kind))
    assert told(file, {"label": labels}) == (
        [None, "0", "1", None, None, "10"],
        [
            "2 labels are -1, which means none, such as that of a.parquet#0",
        ],
    )
    found = labels_of(find_images(file))
    assert found is not None
    assert found.classes == ["0", "1", "10"]


def test_unsigned_numbers_truth_and_whole_floats_are_labels(tmp_path: Path):
    kinds = [
        (pa.array([200, 3], pa.uint8()), ["200", "3"]),
        (pa.array([2**63, 1], pa.uint64()), [f"{2**63}", "1"]),
        (pa.array([True, False]), ["True", "False"]),
        (pa.array([3.0, 0.0], pa.float16()), ["3", "0"]),
        (pa.array([2.0, 5.0]).dictionary_encode(), ["2", "5"]),
    ]
    for values, expected in kinds:
        assert told(tmp_path / "a.parquet", {"label": values}) == (expected, [])


def test_fractions_and_numbers_beyond_the_names_are_said(tmp_path: Path):
    file = tmp_path / "a.parquet"
    labels, notes = told(file, {"target": [0.5, 1.0, float("nan"), float("inf")]})
    assert labels == [None, "1", None, None]
    assert notes[0] == (
        "2 labels are no name or whole number and taken for none, such as 0.5 of a.parquet#0"
    )
    features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    labels, notes = told(file, {"label": [0, 2, -1, 1]}, features)
    assert labels == ["cat", None, None, "dog"]
    assert notes == [
        "1 label is beyond the named classes and taken for none, such as 2 of a.parquet#1",
        "1 label is -1, which means none, such as that of a.parquet#2",
    ]


def test_of_several_columns_that_might_be_meant_the_one_that_is_taken_is_said(tmp_path: Path):
    file = tmp_path / "a.parquet"
    names = {"_type": "ClassLabel", "names": ["a", "b"]}
    features = {"fine_label": names, "coarse_label": names, "kind": names}
    columns = {"coarse_label": [1], "kind": [1], "fine_label": [0]}
    note = "labels are taken from the column 'fine_label', and not from 'coarse_label', 'kind'"
    assert told(file, columns, features) == (["a"], [note])
    assert told(file, {"label": [0.25], "class_name": ["x"], "mask": [b"y"]}) == (
        ["x"],
        [
            "labels are taken from the column 'class_name', and not from 'label'",
            "masks are those in the column 'mask'",
        ],
    )
    labels, notes = told(file, {"labels": [[1, 2]], "category": ["z"]})
    assert labels == ["z"]
    assert notes == [
        f"the column 'labels' holds {pa.list_(pa.int64())}, which are no labels".replace(
            "item", "element"
        )
    ]


def test_a_column_is_taken_before_folders_and_hives_null_is_no_label(tmp_path: Path):
    for folder in ("label=cat", "label=__HIVE_DEFAULT_PARTITION__", "label=-1"):
        (tmp_path / "a" / folder).mkdir(parents=True)
        pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "a" / folder / "0.parquet")
    source = source_of(str(tmp_path / "a"))
    assert source is not None
    assert [entry.label for entry in source.entries()] == [None, None, "cat"]
    file = tmp_path / "a" / "label=cat" / "0.parquet"
    pq.write_table(pa.table({"image": [b"x"], "class": ["dog"]}), file)
    assert [entry.label for entry in source.entries()] == [None, None, "dog"]
    assert source.info().notes[-1] == (
        "labels in 1 file are taken from a column, and not from folders, such as "
        "label=cat/0.parquet"
    )
