"""Every command says what it leaves out: how many, why, such as which."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from simmim.cli.main import main
from simmim.data.sources.find import find_images

TINY = [
    *("--model", "vit_tiny_patch16_224", "--image-size", "32", "--patch-size", "16"),
    *("--epochs", "1", "--batch-size", "8", "--workers", "0", "--threads", "1"),
    *("--decoder.depth", "1", "--decoder.width", "32", "--max-bad", "0.5"),
]
MASKS = "the images are those in .*, their masks those in .*"
PAGES = (
    "1 of 24 images looked at hold more than the picture that is used, such as a/0.gif: animated"
)
BROKEN = "not an image of a known format, such as a/1.png"


def pictures(root: Path) -> Path:
    """Two classes of 13 images and their masks: one is animated, two are broken."""
    rng = np.random.default_rng(0)
    for number, kind in enumerate("ab"):
        for folder in ("images", "masks"):
            (root / folder / kind).mkdir(parents=True)
        for i in range(13):
            values = rng.integers(0, 120, (40, 48, 3)).astype(np.uint8)
            values[..., number] += 100
            image = Image.fromarray(values)
            image.save(root / "masks" / kind / f"{i}.png")
            if (i, kind) == (0, "a"):
                image.save(
                    root / "images" / kind / "0.gif",
                    save_all=True,
                    append_images=[Image.fromarray(values[::-1])],
                )
            else:
                image.save(root / "images" / kind / f"{i}.png")
    for name in ("a/1.png", "b/2.png"):
        (root / "images" / name).write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("said") / "data")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    assert main(["pretrain", str(data), *TINY, "--holdout", "12", "--out", str(out)]) == 0
    return out


def said(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    """What a command prints, in one line, whatever the terminal's width."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    return " ".join(capsys.readouterr()[code > 0].split())


def test_pretrain_tells_of_all_images_that_it_measures_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text = said(capsys, "pretrain", data, *TINY, "--holdout", "12", "--out", tmp_path / "run")
    assert re.search(MASKS, text)
    assert PAGES in text
    assert "2 of 26 images looked at could not be read: 2 × not an image" in text
    assert "2 of 26 images of the k-NN probe could not be read: 2 × not an image" in text
    listed = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert {json.loads(line)["path"] for line in listed} == {"a/1.png", "b/2.png"}


def noise(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        values = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")


def test_unreadable_images_among_those_held_out_count_for_max_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    noise(tmp_path, 48)
    held = find_images(tmp_path).lowest(8)
    names = [find_images(tmp_path)[row] for row in held]
    for name in names[:4]:
        (tmp_path / name).write_bytes(b"no image")
    words = [tmp_path, *TINY[:-1], "0.05", "--epochs", "3", "--holdout", "8"]
    text = said(capsys, "pretrain", *words, "--out", tmp_path / "some", code=1)
    # How many were tried before hangs on how many steps the rehearsal had time for.
    found = re.search(r"4 of (\d+) images tried could not be read .*than --max-bad 0.05\)", text)
    assert found
    assert 32 <= int(found[1]) <= 48
    listed = (tmp_path / "some" / "quarantine.jsonl").read_text().splitlines()
    assert {json.loads(line)["path"] for line in listed} == set(names[:4])
    for name in names:
        (tmp_path / name).write_bytes(b"no image")
    words += ["--max-bad", "0.5"]
    text = said(capsys, "pretrain", *words, "--out", tmp_path / "all", code=1)
    assert "none of the 8 images in" in text
    assert "could be read: 8 × not an image of a known format" in text


def test_more_held_out_images_than_are_measured_on_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    noise(tmp_path, 72)
    text = said(capsys, "pretrain", tmp_path, *TINY, "--holdout", "66", "--out", tmp_path / "run")
    assert "66 held out, and progress measured on 64 of these" in text


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_embed_tells_which_rows_are_missing(
    ending: str, run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text = said(capsys, "embed", run, data, "--out", tmp_path / f"x.{ending}", "--workers", "0")
    assert re.search(MASKS, text)
    assert f"no row: 2 of 26 images could not be read: 2 × {BROKEN}" in text
    assert "24 embeddings" in text


def test_embed_keeps_the_labels_that_there_are(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = pictures(tmp_path / "data")
    (root / "images" / "a" / "3.png").rename(root / "images" / "loose.png")
    text = said(capsys, "embed", run, root / "images", "--out", tmp_path / "x.parquet")
    assert "no label: 1 of 24" in text
    table = pq.read_table(tmp_path / "x.parquet").to_pydict()
    found = dict(zip(table["path"], table["label"], strict=True))
    assert found["loose.png"] is None
    assert (found["a/4.png"], found["b/4.png"]) == ("a", "b")
    said(capsys, "embed", run, root / "images", "--out", tmp_path / "x.npz")
    arrays = np.load(tmp_path / "x.npz")
    places = dict(zip(arrays["paths"].tolist(), arrays["labels"].tolist(), strict=True))
    assert (places["loose.png"], places["a/4.png"], places["b/4.png"]) == (-1, 0, 1)


def test_probe_tells_what_it_did_not_learn_from_and_ask_about(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
):
    text = said(capsys, "probe", run, data, "--val", data / "images", "--workers", "0")
    assert re.search(MASKS, text)
    for what in ("images to learn from", "images asked about"):
        assert f"2 of 26 {what} could not be read: 2 × {BROKEN}" in text
    assert "24 images to learn from, 24 asked" in text


def test_reconstruct_tells_what_it_does_not_show(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text = said(capsys, "reconstruct", run, data, "--out", tmp_path / "x.png")
    assert re.search(MASKS, text)
    assert re.search(r"1[45] of 26 images, .*[12] of 16 images could not be read: \d × not", text)
    broken = data / "images" / "a" / "1.png"
    text = said(capsys, "reconstruct", run, broken, "--out", tmp_path / "y.png", code=2)
    assert "not an image of a known format" in text


def test_bench_and_shard_tell_what_they_leave_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ("--model", "none", "--seconds", "0.05", "--image-size", "32", "--workers", "0")
    text = said(capsys, "bench", data, *words, "--out", tmp_path / "bench.json")
    assert re.search(MASKS, text)
    assert PAGES in text
    assert f"2 of 26 images looked at could not be read: 2 × {BROKEN}" in text
    out = tmp_path / "shards of mine"
    text = said(capsys, "shard", data, "--out", out, "--workers", "0")
    assert re.search(MASKS, text)
    assert "unreadable 2 images, left out" in text
    assert "left out 1 image held more than the picture that is kept" in text
    assert f"simmim pretrain '{out}'" in text


def test_finetune_reads_what_it_measures_on_before_it_trains(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--from", "none", "--model", "vit_tiny_patch16_224", "--image-size", "32"]
    words += ["--epochs", "1", "--batch-size", "8", "--workers", "0", "--threads", "1"]
    val = data / "images"
    out = tmp_path / "two words"
    text = said(capsys, "finetune", data, "--val", val, *words, "--max-bad", "0.5", "--out", out)
    assert re.search(MASKS, text)
    assert "2 of 48 images looked at hold more than the picture that is used" in text
    assert "24 to measure on" in text
    assert "2 of 26 images to measure on could not be read: 2 × not an image" in text
    assert "on 24 images" in text
    assert f"unreadable 4 images, all in {out / 'quarantine.jsonl'}" in text
    assert f"simmim embed '{out}' {data}" in text
    rows = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    reason = "not an image of a known format"
    assert {"path": f"{val}: a/1.png", "reason": reason} in rows
    assert {"path": "a/1.png", "reason": reason} in rows  # learned from, too
    text = said(capsys, "finetune", data, "--val", val, *words, "--out", tmp_path / "x", code=2)
    assert "2 of 26 images tried could not be read (7.7%, more than --max-bad 0.05)" in text
    assert not (tmp_path / "x" / "metrics.jsonl").exists()


ODD = """
import os, sys
from simmim.cli.main import main
from simmim.data.sources.find import find_images
tiny = sys.argv[1:]
for words in (
    ["pretrain", "data", *tiny, "--holdout", "12", "--out", "run"],
    ["scan", "data", "--out", "scan.html", "--json", "scan.json", "--workers", "0"],
    ["embed", "run", "data", "--out", "x.parquet"],
    ["embed", "run", "data", "--out", "x.npz"],
    ["embed", "run", "data", "--out", "parts"],
    ["probe", "run", "data"],
    ["reconstruct", "run", "data", "--out", "x.png"],
    ["finetune", "data", "--from", "run", "--epochs", "1", "--max-bad", "0.5", "--out", "tuned"],
    ["predict", "tuned", "data", "--out", "y.parquet"],
    ["shard", "data", "--out", "shards", "--workers", "0"],
):
    assert main(words) == 0, words
"""


def test_names_that_are_no_utf8_go_through_every_command(tmp_path: Path):
    root = pictures(tmp_path / "pairs") / "images"
    for old, new in (("a", b"chap\xe9u"), ("b", "clé".encode())):
        folder = tmp_path / "data" / os.fsdecode(new)
        folder.mkdir(parents=True)
        for file in (root / old).iterdir():
            file.rename(folder / os.fsdecode(b"f\xe9to " + file.name.encode()))
    words = [sys.executable, "-c", ODD, *TINY]
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert rb"f\xe9to 1.png" in done.stdout
    names = {rf"chap\xe9u/f\xe9to {i}.png" for i in range(2, 13)} | {r"chap\xe9u/f\xe9to 0.gif"}
    names |= {rf"clé/f\xe9to {i}.png" for i in range(13) if i != 2}
    for name in ("x.parquet", "y.parquet", "parts"):
        assert set(pq.read_table(tmp_path / name).to_pydict()["path"]) == names
    assert set(np.load(tmp_path / "x.npz")["paths"].tolist()) == names
    rows = (tmp_path / "tuned" / "predictions.csv").read_text("utf-8").splitlines()[1:]
    assert rows
    assert {row.split(",")[0] for row in rows} < names
    bad = {r"chap\xe9u/f\xe9to 1.png", r"clé/f\xe9to 2.png"}
    facts = json.loads((tmp_path / "run" / "data.json").read_text("utf-8"))
    assert {each["path"] for each in facts["bad"]} == bad
    scan = json.loads((tmp_path / "scan.json").read_text("utf-8"))
    assert scan["classes"] == {r"chap\xe9u": 12, "clé": 12}
    assert {name for name, _ in scan["bad"]} == bad
    for folder in ("run", "tuned", "shards"):
        lines = (tmp_path / folder / "quarantine.jsonl").read_text("utf-8").splitlines()
        assert {json.loads(line)["path"] for line in lines} == bad, folder
