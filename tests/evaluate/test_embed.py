from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from simmim.errors import ConfigError, DataError
from simmim.evaluate.embed import write_embeddings
from simmim.evaluate.features import extract
from simmim.interop.load import LoadedEncoder
from simmim.models.encoder import Encoder

from .conftest import PIXELS


@pytest.fixture
def loaded(encoder: Encoder) -> LoadedEncoder:
    return LoadedEncoder(encoder, PIXELS)


def test_features_are_those_of_each_image_alone_in_order(loaded: LoadedEncoder, stripes):
    images = stripes("some", 7)
    loaded.train()
    table = extract(loaded, images, batch=3)
    assert loaded.training
    assert table.paths == images.paths
    assert table.labels is not None
    assert table.labels.tolist() == images.labels
    loaded.eval()
    for path, features in zip(table.paths, table.features, strict=True):
        alone = loaded(loaded.transform(Path(images.paths.infos[0].parts[0], path))[None])[0]
        torch.testing.assert_close(torch.from_numpy(features), alone.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["features.parquet", "deep/features.npz"])
def test_embeddings_come_back_and_a_broken_image_is_left_out(
    loaded: LoadedEncoder, stripes, tmp_path: Path, name: str
):
    images = stripes("some", 6)
    Path(images.paths.infos[0].parts[0], images.paths[2]).write_bytes(b"no image")
    seen = []
    table = extract(loaded, images, batch=2, progress=lambda *done: seen.append(done))
    assert table.skipped == {images.paths[2]: "not an image of a known format"}
    assert seen == [(2, 6), (4, 6), (6, 6)]

    file = write_embeddings(table, tmp_path / name, classes=["across", "along"])

    if file.suffix == ".parquet":
        back = pq.read_table(file).to_pydict()
        assert back["label"] == ["across", "along", "along", "across", "along"]
        paths, features = back["path"], np.array(back["embedding"], np.float32)
    else:
        back = np.load(file)
        assert [back["classes"][n] for n in back["labels"]][:3] == ["across", "along", "along"]
        paths, features = back["paths"].tolist(), back["features"]
    assert paths == [path for path in images.paths if path != images.paths[2]]
    assert np.array_equal(features, table.features)
    assert [path.name for path in file.parent.glob(".*")] == []
    with pytest.raises(ConfigError, match="not overwritten"):
        write_embeddings(table, file)


def test_no_readable_image_at_all_is_an_error(loaded: LoadedEncoder, stripes):
    images = stripes("some", 2)
    for path in images.paths:
        Path(images.paths.infos[0].parts[0], path).write_bytes(b"")
    with pytest.raises(
        DataError, match=r"none of the 2 images .*: 2 × the file is empty, such as 000\.png"
    ):
        extract(loaded, replace(images, labels=None))
    file = Path(images.paths.infos[0].parts[0], images.paths[1])
    with file.open("wb") as stream:
        np.save(stream, np.zeros((8, 8, 5), np.uint8))
    with pytest.raises(DataError, match=r"1 × the file is empty, .*1 × 5 channels, where .* 3"):
        extract(loaded, replace(images, labels=None))
