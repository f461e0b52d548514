"""Fine-tuning for segmentation: from images and masks to a segmenter, in a run like any other."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, kill_at, pair
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import jaccard_score

from simmim.cli.main import main
from simmim.runs.metrics import NAMES

SMALL = [
    *("--task", "segment", "--from", "none", "--model", "vit_tiny_patch16_224"),
    *("--image-size", "32x48", "--patch-size", "8", "--threads", "1", "--workers", "0"),
    *("--arguments", "depth=2,embed_dim=48,num_heads=3", "--precision", "fp32"),
    *("--tensorboard", "false", "--batch-size", "4"),
]
CLOCK = ("time", "images_per_s", "data_wait")


def scenes(root: Path, count: int) -> Path:
    """A dark and a bright part in each image, with masks of 0 and 1 and an edge of 255."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        mask = np.zeros((40, 60), np.uint8)
        mask[:, rng.integers(15, 45) :] = 1
        values = rng.normal(60, 8, (40, 60, 3)) + 120 * mask[..., None]
        mask[0] = 255
        Image.fromarray(values.astype(np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes, one of them without its mask."""
    root = scenes(tmp_path_factory.mktemp("scenes") / "data", 10)
    (root / "masks" / "9.png").unlink()
    return root


def words(data: Path, out: Path, *more: str) -> list[str]:
    return ["finetune", str(data), *SMALL, "--val", str(data), *more, "--out", str(out)]


def rows_of(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {name for row in rows for name in row} <= set(NAMES)
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def test_scenes_are_learned_and_the_metric_is_that_of_the_files(data: Path, tmp_path: Path):
    run = tmp_path / "run"
    assert main(words(data, run, "--epochs", "30", "--optim.lr", "2e-2")) == 0
    last = rows_of(run)[-1]
    assert last["miou"] > 0.95
    log = " ".join((run / "log.txt").read_text().split())
    assert "1 of 10 images have no mask and are left out, such as 9.png" in log
    page = (run / "report.html").read_text()
    for text in ("with masks", "Each class", "What it says", "mean IoU"):
        assert text in page
    out = tmp_path / "out"
    assert main(["predict", str(run), str(data), "--out", str(out), "--workers", "0"]) == 0
    pairs = []
    for number in range(9):
        truth, said = (
            np.array(Image.open(folder / f"{number}.png"))
            for folder in (data / "masks", out / "masks")
        )
        assert said.shape == truth.shape
        pairs.append((truth[truth != 255], said[truth != 255]))
    truth, said = (np.concatenate(each) for each in zip(*pairs, strict=True))
    assert jaccard_score(truth, said, average="macro") == pytest.approx(last["miou"])
    assert (truth == said).mean() == pytest.approx(last["pixel_accuracy"])
    assert Image.open(out / "overlays" / "9.png").size == (60, 40)


def test_killed_and_resumed_it_ends_with_the_same_bits(data: Path, tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(words(data, whole, "--epochs", "3")) == 0
    first, again = words(data, killed, "--epochs", "3"), ["finetune", "--resume", str(killed)]
    for step in (2, 4):
        kill_at(step, killed, *first)
        first = again
    done = call(*again)
    assert done.returncode == 0, done.stderr
    assert rows_of(killed) == rows_of(whole)
    for name in ("segmenter.safetensors", "confusion.json", "pictures/masks.png"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_two_processes_give_what_one_gives(data: Path, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    flags = ["--epochs", "2", "--drop-path", "0", "--task.head", "linear", "--task.balance", "0.5"]
    assert main(words(data, one, *flags)) == 0
    # gloo's processes may die at exit under load: what they wrote counts.
    with pair(partial(main, words(data, two, *flags))) as both:
        told = [process.communicate() for process in both]
    assert (two / "report.html").exists(), told
    a, b = (load_file(run / "segmenter.safetensors") for run in (one, two))
    x, y = (torch.cat([state[name].flatten() for name in sorted(state)]) for state in (a, b))
    assert float((x - y).norm() / x.norm()) < 1e-5
    for mine, theirs in zip(rows_of(one), rows_of(two), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine.get("miou") == pytest.approx(theirs.get("miou"), abs=0.01)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("size", r"1 of \d masks in .* another size than their image"),
        ("beyond", "values that the list of classes lacks: 7, such as in 2.png"),
        ("colour", "in colour, such as 2.png, and nothing says"),
        ("one", "1 class; at least two"),
        ("plain", "has no maps"),
    ],
)
def test_bad_masks_give_one_line(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = scenes(tmp_path / "data", 6)
    mask = np.zeros((40, 60), np.uint8)
    if name == "size":
        mask = mask[:20, :30]
    elif name == "beyond":
        (data / "classes.json").write_text('["sky", "road"]')
        mask[5] = 7
    elif name == "colour":
        mask = np.stack([mask, mask, mask + 9], 2)
    elif name == "plain":
        data = data / "images"
    chosen = range(6) if name == "one" else [2]
    for number in chosen:
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{number}.png")
    assert main(["finetune", str(data), *SMALL, "--out", str(tmp_path / "run")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def shapes(root: Path, count: int) -> Path:
    """Discs and squares, of any colour, on a ground of noise: what tells them is their form."""
    rng = np.random.default_rng(1)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    rows, columns = np.mgrid[:64, :80]
    for number in range(count):
        mask, values = np.zeros((64, 80), np.uint8), rng.integers(0, 256, (64, 80, 3))
        for kind, middle in ((1, rng.integers(14, 26, 2)), (2, rng.integers((36, 50), (50, 66)))):
            away = abs(rows - middle[0]), abs(columns - middle[1])
            inside = np.hypot(*away) < 12 if kind == 1 else np.maximum(*away) < 11
            mask[inside] = kind
            values[inside] = rng.integers(0, 256, 3)
        Image.fromarray(values.astype(np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("head", ["upernet", "linear"])
def test_ten_images_are_learned_by_heart(head: str, tmp_path: Path):
    file = shapes(tmp_path / "data", 10)
    flags = ["--task.head", head, "--image-size", "64x80", "--epochs", "300"]
    flags += ["--arguments", "depth=3,embed_dim=96,num_heads=3"]
    assert main([*words(file, tmp_path / "run"), *flags]) == 0
    assert rows_of(tmp_path / "run")[-1]["miou"] > 0.95
