"""``simmim shard``: what the shards hold, that others read them, and that nothing stops it."""

import hashlib
import io
import json
import random
import shutil
import sys
import tarfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from commands import call, start
from PIL import Image

from simmim.api.shard import run_shard
from simmim.config.data import ShardConfig
from simmim.data.formats.decode import decode
from simmim.data.labels import labels_of
from simmim.data.shards import write
from simmim.data.shards.encode import encode
from simmim.data.shards.make import local, make_shards, plan_job
from simmim.data.shards.write import Shard
from simmim.data.sources.find import find_images
from simmim.errors import ConfigError, DataError, TrainingError

FLAGS = ("--size", 48, "--per-shard", 9, "--dedupe", "near", "--workers", 2)


def asked(data: Path, out: Path, **settings: Any) -> ShardConfig:
    values = {"size": 48, "per_shard": 9, "workers": 0, **settings}
    return ShardConfig(data=(str(data),), out=out, **values)


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """Every sample by its key, read by tarfile alone."""
    found: dict[str, dict[str, bytes]] = defaultdict(dict)
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                key, ending = member.name.split(".")
                stream = tar.extractfile(member)
                assert stream is not None
                assert ending not in found[key]
                found[key][ending] = stream.read()
    return dict(found)


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def mixed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in two classes, with a broken one, an exact copy and a compressed copy."""
    root = tmp_path_factory.mktemp("mixed") / "photos"
    shutil.copytree(photos, root)
    first, second, third = sorted((root / "dress").iterdir())[:3]
    third.write_bytes(third.read_bytes()[:400])
    Image.open(first).save(root / "shoes" / "zz-copy.png")
    Image.open(second).save(root / "shoes" / "zz-near.jpg", quality=50)
    return root


@pytest.fixture(scope="module")
def made(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_shard(asked(mixed, tmp_path_factory.mktemp("made") / "shards", dedupe="near"))


def test_each_sample_has_its_image_class_and_origin(mixed: Path, made: Path):
    found = samples(made)
    assert len(found) == 99
    for key, sample in found.items():
        assert key.isdecimal()
        facts = json.loads(sample["json"])
        original = Image.open(mixed / facts["name"])
        assert (facts["height"], facts["width"]) == (original.height, original.width)
        assert facts["label"] == facts["name"].split("/")[0]
        assert ["dress", "shoes"][int(sample["cls"])] == facts["label"]
        small = Image.open(io.BytesIO(sample["jpg"]))
        assert min(small.size) == 48
        expected = np.asarray(original.convert("RGB").resize(small.size, Image.Resampling.BILINEAR))
        error = np.asarray(small).astype(int) - expected
        assert np.sqrt((error**2).mean()) < 8


def test_the_index_says_what_there_is(made: Path):
    index = json.loads((made / "index.json").read_text())
    assert index["format"] == 1
    assert index["classes"] == ["dress", "shoes"]
    assert (index["images"], index["quarantine"], index["duplicates"]) == (99, 1, 2)
    assert sum(shard["images"] for shard in index["shards"]) == 99
    for shard in index["shards"]:
        data = (made / shard["file"]).read_bytes()
        assert len(data) == shard["bytes"]
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
    names = {"index.json", "quarantine.jsonl", "duplicates.jsonl"}
    assert {path.name for path in made.iterdir() if path.suffix != ".tar"} == names


def test_what_was_left_out_is_named_with_the_reason(mixed: Path, made: Path):
    first, second, third = sorted(p.name for p in (mixed / "dress").iterdir())[:3]
    (bad,) = map(json.loads, (made / "quarantine.jsonl").read_text().splitlines())
    assert bad["path"] == f"dress/{third}"
    assert "truncated" in bad["reason"].lower()
    rows = [json.loads(line) for line in (made / "duplicates.jsonl").read_text().splitlines()]
    assert rows == [
        {"path": "shoes/zz-copy.png", "like": f"dress/{first}", "kind": "exact"},
        {"path": "shoes/zz-near.jpg", "like": f"dress/{second}", "kind": "near"},
    ]


def test_simmim_reads_them_with_their_classes(made: Path):
    listing = find_images(made)
    labels = labels_of(listing)
    assert labels is not None
    assert labels.classes == ["dress", "shoes"]
    found = samples(made)
    assert len(listing) == len(found) == len(dict(labels.pairs()))
    for row, label in labels.pairs():
        sample = found[listing[row].rpartition("/")[2].split(".")[0]]
        assert listing.read(row) == sample["jpg"]
        assert label == int(sample["cls"])


def test_webdataset_reads_them(made: Path):
    wds = pytest.importorskip("webdataset")
    files = [str(file) for file in sorted(made.glob("*.tar"))]
    found = list(wds.WebDataset(files, shardshuffle=False).decode("rgb8"))
    expected = samples(made)
    assert [sample["__key__"] for sample in found] == sorted(expected)
    for sample in found:
        assert sample["cls"] == int(expected[sample["__key__"]]["cls"])
        assert sample["jpg"].shape[2] == 3


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_a_run_that_is_killed_at_any_time_ends_in_the_same_bytes(
    mixed: Path, made: Path, tmp_path: Path
):
    out = tmp_path / "shards"
    words = ("shard", mixed, "--out", out, *FLAGS)
    chance = random.Random(3)
    kills = 0
    for _ in range(40):
        run = start(*words)
        # From when it began to write, at any moment.
        while not out.exists() and run.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.5))
        if run.poll() is None:
            kills += 1
            run.kill()
        if run.poll() == 0 or kills == 4:
            break
    assert kills
    assert call(*words).returncode == 0
    assert content(out) == content(made)
    assert sorted(path.name for path in out.iterdir()) == sorted(p.name for p in made.iterdir())


def test_parts_make_what_one_makes_in_any_order(
    mixed: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "shards"
    for part in ("2/3", "3/3"):
        run_shard(asked(mixed, out, dedupe="near", part=part))
        assert "missing" in capsys.readouterr().out
        assert not (out / "index.json").exists()
    run_shard(asked(mixed, out, dedupe="near", part="1/3"))
    assert content(out) == content(made)


def test_a_finished_folder_is_left_alone(
    mixed: Path, made: Path, capsys: pytest.CaptureFixture[str]
):
    before = content(made)
    run_shard(asked(mixed, made, dedupe="near"))
    assert "there already" in capsys.readouterr().out
    assert content(made) == before
    with pytest.raises(ConfigError, match="begun with --size 48, and now it is 64"):
        run_shard(asked(mixed, made, dedupe="near", size=64))


def test_an_unfinished_folder_takes_no_other_images(mixed: Path, photos: Path, tmp_path: Path):
    out = tmp_path / "shards"
    run_shard(asked(mixed, out, part="1/2"))
    with pytest.raises(DataError, match="begun with other images"):
        run_shard(asked(photos, out, part="2/2"))


def test_a_folder_of_something_else_is_not_touched(photos: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        run_shard(asked(photos, tmp_path))
    with pytest.raises(ConfigError, match="lies in"):
        run_shard(asked(photos, photos / "shards"))
    assert content(tmp_path) == content(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_deep_images_keep_every_bit(tmp_path: Path, rng: np.random.Generator):
    data = tmp_path / "deep"
    data.mkdir()
    arrays: dict[str, np.ndarray] = {
        "a.tif": rng.integers(0, 4096, (30, 40), np.uint16),
        "b.tif": rng.integers(0, 65536, (30, 40, 3), np.uint16),
        "c.tif": rng.normal(size=(30, 40, 5)).astype(np.float32),
        "d.npy": rng.integers(0, 256, (30, 40, 4)).astype(np.uint8),
        "e.npy": rng.normal(size=(30, 40, 2)).astype(np.float32),
    }
    for name, array in arrays.items():
        if name.endswith(".npy"):
            np.save(data / name, array)
        else:
            colour = {2: None, 3: (), 5: (0,) * 4}[array.shape[2] if array.ndim > 2 else 2]
            kind = "rgb" if colour == () else "minisblack"
            tifffile.imwrite(data / name, array, photometric=kind, extrasamples=colour or None)
    out = run_shard(asked(data, tmp_path / "shards", size=256))
    found = samples(out)
    assert len(found) == len(arrays)
    for sample in found.values():
        facts = json.loads(sample.pop("json"))
        ((ending, image),) = sample.items()
        array = arrays[facts["name"]]
        assert ending == ("png" if facts["name"] == "a.tif" else "tif")
        decoded = decode(image)
        assert decoded.dtype == array.dtype
        np.testing.assert_array_equal(decoded, array[..., None] if array.ndim == 2 else array)
        other = (
            np.asarray(Image.open(io.BytesIO(image)))
            if ending == "png"
            else tifffile.imread(io.BytesIO(image))
        )
        np.testing.assert_array_equal(other, array)


def test_deep_images_are_resized_at_their_depth(rng: np.random.Generator):
    array = rng.integers(0, 4096, (64, 96), np.uint16)
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    encoded = encode(stream.getvalue(), 16, "auto", 90)
    small = decode(encoded.data)
    assert encoded.ending == "png"
    assert small.dtype == np.uint16
    assert small.shape == (16, 24, 1)
    # An independent reduction by areas; the triangle filter is a little wider.
    areas = array.reshape(16, 4, 24, 4).mean((1, 3))
    assert abs(small[..., 0].mean() - array.mean()) < 15
    assert np.corrcoef(small[..., 0].ravel(), areas.ravel())[0, 1] > 0.85


def test_small_jpegs_and_kept_files_stay_as_they_are(photos: Path, tmp_path: Path):
    for settings in ({"size": 256}, {"size": None, "format": "keep"}):
        out = run_shard(asked(photos, tmp_path / str(settings["size"]), **settings))
        for sample in samples(out).values():
            name = json.loads(sample["json"])["name"]
            assert sample["jpg"] == (photos / name).read_bytes()


def test_a_turned_photo_comes_upright_and_without_its_metadata(photos: Path):
    image = Image.open(min((photos / "dress").iterdir()))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=exif, quality=95)
    encoded = encode(stream.getvalue(), 256, "auto", 90)
    assert encoded.shape == (image.width, image.height, 3)
    assert b"a camera" in stream.getvalue()
    assert b"a camera" not in encoded.data
    assert Image.open(io.BytesIO(encoded.data)).getexif() == {}


def test_nothing_readable_is_an_error(tmp_path: Path):
    data = tmp_path / "bad"
    data.mkdir()
    (data / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        run_shard(asked(data, tmp_path / "shards"))
    assert not (tmp_path / "shards" / "index.json").exists()
    assert not list((tmp_path / "shards").rglob(".work"))


def test_a_shard_that_reads_back_otherwise_is_refused(made: Path, tmp_path: Path):
    file = tmp_path / "shard.tar"
    data = bytearray((made / "shard-000000.tar").read_bytes())
    shard = Shard("shard-000000.tar", 9, len(data), hashlib.sha256(data).hexdigest())
    file.write_bytes(data)
    shapes = [
        decode(content).shape
        for name, content in write.members_of(file)
        if not name.endswith((".cls", ".json"))
    ]
    write._verify(file, shard, shapes)
    data[700] ^= 1
    file.write_bytes(data)
    with pytest.raises(TrainingError, match="disk or the memory"):
        write._verify(file, shard, shapes)


def test_a_full_disk_ends_the_run_and_the_rest_follows_later(
    mixed: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "shards"
    job = plan_job(asked(mixed, out, dedupe="near"))

    def full(job: Any, number: int, place: Any) -> Any:
        if number == 4:
            raise OSError(28, "No space left on device")
        return write.write_shard(job, number, place)

    with monkeypatch.context() as patch:
        patch.setattr("simmim.data.shards.make.write_shard", full)
        with pytest.raises(TrainingError, match=r"the disk of \S+ is full"):
            make_shards(job, (0, 1), local(job, 0))
    assert not (out / "index.json").exists()
    make_shards(job, (0, 1), local(job, 0))
    assert content(out) == content(made)


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b"])
def test_a_part_that_is_none_is_refused(part: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="1/16"):
        ShardConfig(data=("x",), out=tmp_path, part=part)


def test_ray_makes_the_same_shards(mixed: Path, made: Path, tmp_path: Path):
    import ray

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000)
    try:
        config = asked(mixed, tmp_path / "shards", dedupe="near", workers=None)
        run_shard(replace(config, engine="ray"))
    finally:
        ray.shutdown()
    assert content(tmp_path / "shards") == content(made)


def test_shards_of_samples_keep_each_image_its_label_whatever_its_format(tmp_path: Path):
    formats = {"jp2": "JPEG2000", "ico": "ICO", "pcx": "PCX", "png": "PNG"}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for ending, name in formats.items():
            stream = io.BytesIO()
            Image.new("RGB", (48, 48), "red").save(stream, name)
            # The content tells the format; a tar tells images by their endings.
            for key, data in (
                (f"s.{name}.tif", stream.getvalue()),
                (f"s.{name}.cls", ending.encode()),
            ):
                member = tarfile.TarInfo(key)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    run_shard(asked(tmp_path / "a.tar", tmp_path / "out", size=None, format="keep"))
    images = find_images(tmp_path / "out")
    assert [images.label(i) for i in range(len(images))] == list(formats)
    assert [images.open(i).format for i in range(len(images))] == list(formats.values())
    assert not images.infos[0].notes
