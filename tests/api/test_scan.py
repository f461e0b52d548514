"""``simmim scan``: every planted fault is found and counted, and nothing else."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from simmim.api.scan import run_scan
from simmim.config.data import ScanConfig
from simmim.errors import ConfigError


def scanned(out: Path, *data: Path, **settings: Any) -> dict[str, Any]:
    """What the JSON inside the page says."""
    settings = {"workers": 0, "image_size": 64, **settings}
    run_scan(ScanConfig(data=tuple(map(str, data)), out=out, **settings))
    page = out.read_text()
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def planted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ of two classes, with one of each fault."""
    root = tmp_path_factory.mktemp("planted") / "data"
    for kind in ("dress", "shoes"):
        files = sorted((photos / kind).iterdir())
        for part, some in (("train", files[:40]), ("val", files[40:])):
            (root / part / kind).mkdir(parents=True)
            for file in some:
                shutil.copy(file, root / part / kind)
    dress, shoes = (sorted((root / "train" / kind).iterdir()) for kind in ("dress", "shoes"))
    Image.open(dress[0]).save(root / "val" / "dress" / "leak-exact.png")
    Image.open(dress[1]).save(root / "val" / "dress" / "leak-near.jpg", quality=45)
    Image.open(shoes[0]).save(root / "train" / "dress" / "zz-other-class.png")
    Image.new("RGB", (90, 90), (10, 200, 30)).save(root / "train" / "shoes" / "zz-blank.png")
    (root / "train" / "shoes" / "zz-broken.jpg").write_bytes(shoes[1].read_bytes()[:300])
    (root / "train" / "shoes" / "zz-text.jpg").write_text("<html><body>not found</body></html>")
    shutil.copy(shoes[2], root / "val" / "shoes" / "zz-named.png")  # another leak, wrong ending
    return root


@pytest.fixture(scope="module")
def facts(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return scanned(tmp_path_factory.mktemp("page") / "scan.html", planted)


def test_counts_sizes_and_formats_are_those_of_the_files(planted: Path, facts: dict[str, Any]):
    files = [path for path in planted.rglob("*") if path.is_file()]
    assert facts["images"] == facts["looked_at"] == len(files) == 107
    assert facts["bytes"] == sum(file.stat().st_size for file in files)
    assert facts["formats"] == {"JPEG": 102, "PNG": 3}
    assert facts["types"] == {"uint8": 105}
    sides = [Image.open(file).size for file in files if "zz-broken" not in file.name
             and "zz-text" not in file.name]  # fmt: skip
    assert facts["sides"]["height"][0] == min(height for _, height in sides)
    assert facts["sides"]["width"][2] == max(width for width, _ in sides)
    assert sum(count for _, count in facts["histogram"]) == 105


def test_classes_and_parts_are_counted(facts: dict[str, Any]):
    assert facts["classes"] == {"dress": 53, "shoes": 52}  # without the two that are broken
    assert facts["parts"] == {"train": 84, "val": 23}


def test_broken_blank_and_odd_images_are_named(facts: dict[str, Any]):
    assert facts["unreadable"] == 2
    bad = dict(facts["bad"])
    assert set(bad) == {"train/shoes/zz-broken.jpg", "train/shoes/zz-text.jpg"}
    assert bad["train/shoes/zz-text.jpg"] == "an HTML page, not an image"
    assert facts["blank"] == [1, ["train/shoes/zz-blank.png"]]
    assert facts["odd"] == {"named .png, but in the format JPEG": [1, ["val/shoes/zz-named.png"]]}


def test_duplicates_leaks_and_contradictions_are_found(facts: dict[str, Any]):
    assert (facts["exact"], facts["near"]) == (3, 1)
    assert facts["leaked"] == {"val": 3}
    assert facts["conflicts"] == 1
    leaks = {row["path"]: row for row in facts["leaks"]}
    assert leaks["val/dress/leak-exact.png"]["exact"]
    assert not leaks["val/dress/leak-near.jpg"]["exact"]
    assert all(row["like"].startswith("train/") for row in leaks.values())


def test_tiles_are_named_where_images_are_large(
    tmp_path: Path, planted: Path, capsys: pytest.CaptureFixture[str]
):
    Image.new("L", (1600, 1700), 9).save(tmp_path / "large.png")
    scanned(tmp_path / "scan.html", tmp_path / "large.png")
    assert f"  simmim pretrain {tmp_path / 'large.png'} --tile 256" in capsys.readouterr().out
    scanned(tmp_path / "scan.html", planted)
    assert "--tile" not in capsys.readouterr().out


def test_images_that_training_passes_over_are_counted(tmp_path: Path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i in range(4):
        Image.new("L", (40, 40), 50 * i).save(folder / f"{i}.png")
    tifffile.imwrite(folder / "float.tif", np.ones((40, 40), np.float32))
    five = np.ones((40, 40, 5), np.uint8)
    tifffile.imwrite(folder / "5.tif", five, photometric="minisblack", planarconfig="contig")
    found = scanned(tmp_path / "scan.html", folder)
    assert found["unreadable"] == 0
    assert found["misfits"] == 2
    assert "2 images do not fit the rest" in (tmp_path / "scan.html").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(
    planted: Path, facts: dict[str, Any], tmp_path: Path, workers: int
):
    assert scanned(tmp_path / "scan.html", planted, workers=workers) == facts


def test_images_to_measure_on_are_compared_with_data(planted: Path, tmp_path: Path):
    found = scanned(tmp_path / "scan.html", planted / "train", val=str(planted / "val"))
    assert found["leaked"] == {"--val": 3}
    assert found["parts"] == {"DATA": 84, "--val": 23}
    assert found["classes"] == {"dress": 41, "shoes": 41}  # of DATA, to see its balance


def test_the_page_needs_nothing_but_itself(planted: Path, tmp_path: Path):
    out, copy = tmp_path / "scan.html", tmp_path / "facts.json"
    facts = scanned(out, planted, json=copy)
    page = out.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("data:image/jpeg;base64,") > 8 * 4
    assert json.loads(copy.read_text()) == facts


def test_the_depth_in_use_is_told(tmp_path: Path, rng: np.random.Generator):
    data = tmp_path / "deep"
    data.mkdir()
    for i in range(4):
        array = rng.integers(0, 4000, (40, 50), np.uint16)
        array[0, 0] = 4095
        Image.fromarray(array).save(data / f"{i}.png")
    found = scanned(tmp_path / "scan.html", data)
    assert found["values"]["uint16"][1:] == [4095, "12 bits in use of 16"]
    assert found["pixels"]["high"] == [4095]


def test_a_few_foreign_values_make_no_image_blank_and_are_told(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
):
    for i in range(6):
        wave = np.sin(np.arange(96) / (3 + i))[:, None] * np.cos(np.arange(96) / 9)
        dim = (140 + 30 * wave + rng.normal(0, 3, (96, 96))).astype(np.uint16)
        counts = (2.5 + 2.5 * wave).round().astype(np.uint16)
        heights = (500 + 100 * wave).astype(np.float32)
        for name, array, far in (
            ("dim", dim, 65535),
            ("counts", counts, 12_000),
            ("heights", heights, 1e7),
        ):
            array.reshape(-1)[rng.choice(array.size, 4, replace=False)] = far
            if name == "heights":
                array[:9] = -3.4e38
            (tmp_path / name).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / name / f"{i}.tif", array)
    told = {"dim": "255 (up to 65,535)", "counts": "7.5 (up to 12,000)", "heights": "(up to 1e+07)"}
    for name, words in told.items():
        found = scanned(tmp_path / "scan.html", tmp_path / name)
        assert found["blank"] == [0, []]
        assert any(words in note for note in found["notes"])
        assert words in " ".join(capsys.readouterr().out.split())
        assert words in (tmp_path / "scan.html").read_text()
    assert found["odd"] == {
        "no measurement in places, which take their channel's mean": [
            6,
            [f"{i}.tif" for i in range(6)],
        ]
    }
    assert found["pixels"]["low"][0] == pytest.approx(400, abs=10)


def test_a_sample_is_said_to_be_one(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    found = scanned(tmp_path / "scan.html", planted, sample=20)
    assert (found["images"], found["looked_at"]) == (107, 20)
    text = capsys.readouterr().out
    assert "20 were looked at" in text
    assert len(text.split("images  ")[-1].splitlines()) < 24


def test_a_set_of_broken_images_still_gives_a_page(tmp_path: Path):
    data = tmp_path / "bad"
    data.mkdir()
    (data / "a.jpg").write_bytes(b"")
    assert scanned(tmp_path / "scan.html", data)["reasons"] == {"the file is empty": 1}


def test_a_page_without_a_folder_is_refused(planted: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="there is no folder"):
        scanned(tmp_path / "none" / "scan.html", planted)


def test_planes_that_are_not_used_are_counted_and_channels_in_pages_are_none(tmp_path: Path):
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for number, axes in enumerate(("ZCYX", "ZCYX", "CYX")):
        stored = rng.integers(0, 9000, [{"Z": 5, "C": 3}.get(axis, 40) for axis in axes])
        options = {"imagej": True, "metadata": {"axes": axes}, "photometric": "minisblack"}
        tifffile.imwrite(tmp_path / "data" / f"{number}.tif", stored.astype(np.uint16), **options)
    facts = scanned(tmp_path / "scan.html", tmp_path / "data")
    assert facts["channels"] == {"3": 3}
    assert facts["odd"] == {"5 planes in Z: only the first is used": [2, ["0.tif", "1.tif"]]}
