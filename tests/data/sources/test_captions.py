"""Captions come from the entries of every source that has them, and stay with their images."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from test_archives import add, png

from simmim.data.sources import index
from simmim.data.sources.find import find_images

TEXTS = ["a cat", None, "zwei\nHunde, ä", "the last"]
SEVERAL = "of several captions of an image the first is taken: of 1 image, such as "


def in_tar(root: Path) -> Path:
    with tarfile.open(root / "a.tar", "w") as tar:
        for i, text in enumerate(TEXTS):
            add(tar, f"{i}.x.png", png(i))
            if text is not None:
                add(tar, f"{i}.{'x.' * (i % 2)}TXT", f" {text}\n".encode())
        add(tar, "license.txt", b"of nothing")
    return root / "a.tar"


def in_parquet(root: Path) -> Path:
    lists = [None if text is None else [text] for text in TEXTS]
    table = pa.table({"image": [png(i) for i in range(4)], "caption": lists, "text": ["no"] * 4})
    pq.write_table(table, root / "a.parquet", row_group_size=3)
    return root / "a.parquet"


def in_arrow(root: Path) -> Path:
    table = pa.table({"image": [png(i) for i in range(4)], "label": [3] * 4, "text": TEXTS})
    pyarrow.feather.write_feather(table, root / "a.feather", chunksize=3)
    return root / "a.feather"


def in_list(root: Path) -> Path:
    lines = []
    for i, text in enumerate(TEXTS):
        (root / f"{i}.png").write_bytes(png(i))
        lines.append(json.dumps({"file_name": f"{i}.png", "label": "x", "text": text}))
    (root / "t.jsonl").write_text("\n".join(lines))
    return root / "t.jsonl"


def beside_a_folder(root: Path) -> Path:
    in_list(root)
    lines = (root / "t.jsonl").read_text().replace('"0.png"', '"./0.png"')
    (root / "metadata.jsonl").write_text(lines)
    (root / "t.jsonl").unlink()
    return root


def in_coco(root: Path) -> Path:
    in_list(root)
    images = [{"id": 9 - i, "file_name": f"{i}.png"} for i in range(4)]
    told = [
        {"id": i, "image_id": 9 - i, "caption": text}
        for i, text in enumerate(TEXTS)
        if text is not None
    ]
    (root / "c.json").write_text(json.dumps({"images": images, "annotations": told}))
    return root / "c.json"


def in_python(root: Path) -> list[Any]:
    del root
    images = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), np.uint8)
    return [{"image": image, "text": text} for image, text in zip(images, TEXTS, strict=True)]


def drawn(root: Path) -> Any:
    return iter(in_python(root))


@pytest.mark.parametrize(
    "source",
    [in_tar, in_parquet, in_arrow, in_list, beside_a_folder, in_coco, in_python, drawn],
)
def test_captions_stay_with_their_images(
    source: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(index, "BATCH", 2)
    images = find_images(source(tmp_path))
    assert [images.caption(i) for i in range(4)] == TEXTS
    assert images.select([3, 1]).caption(0) == TEXTS[3]
    images.check_has("captions")
    assert not any("image" in note for note in images.infos[0].notes)
    if source is in_tar:
        assert images.infos[0].notes == ["1 file passed over: 1 .txt"]


def test_the_first_of_several_captions_is_taken_and_that_is_said(tmp_path: Path):
    table = pa.table({"image": [png(0), png(1)], "captions": [["a", "b"], ["c"]]})
    pq.write_table(table, tmp_path / "a.parquet")
    images = find_images(tmp_path / "a.parquet")
    assert [images.caption(i) for i in range(2)] == ["a", "c"]
    assert images.infos[0].notes == [SEVERAL + "a.parquet#0"]


def test_captions_of_no_image_in_the_folder_are_said(tmp_path: Path):
    beside_a_folder(tmp_path)
    (tmp_path / "2.png").unlink()
    images = find_images(tmp_path)
    assert [images.caption(i) for i in range(3)] == [TEXTS[0], None, TEXTS[3]]
    assert images.infos[0].notes == [
        "1 caption is of no image in the folder, such as that of 2.png"
    ]


def test_an_index_without_captions_has_no_place_for_them(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.png", png(0))
    images = find_images(tmp_path / "a.tar")
    assert images.caption(0) is None
    names = pa.ipc.open_file(str(images.indexes[0].file)).schema.names
    assert names == ["name", "rank", "part", "at", "size", "label"]
