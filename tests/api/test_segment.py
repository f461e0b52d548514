"""Fine-tuning for segmentation: from images and masks to a segmenter, in a run like any other."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, kill_at, pair
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import jaccard_score

from simmim.api.remarks import notes
from simmim.api.tasks.segment import MAPS
from simmim.cli.main import main
from simmim.data.loading.images import ImageSet
from simmim.data.sources.find import find_images
from simmim.runs.metrics import NAMES
from simmim.tasks.segmenter import load_segmenter

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


BLANK = np.zeros((40, 60), np.uint8)
SEVENS = np.concatenate([BLANK[:20], BLANK[20:] + 7])
COLOUR = np.stack([BLANK, BLANK, BLANK + 9], 2)


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a fine-tuning says that does not begin."""
    out = Path(str(words[0])).parent / "run"
    assert main(["finetune", *map(str, words), *SMALL, "--out", str(out)]) == 2
    assert not (out / "metrics.jsonl").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("mask", "classes", "message"),
    [
        (BLANK[:20, :30], "", r"1 of \d masks in .* another size than their image"),
        (SEVENS, '["sky", "road"]', "values that the list of classes lacks: 7, such as in 2.png"),
        (COLOUR, "", "in colour, such as 2.png, and nothing says"),
        (
            COLOUR,
            '{"sky": [0, 0, 0], "road": [1, 1, 1], "void": [255, 255, 255]}',
            r"1 colours that the list of classes lacks: \(0, 0, 9\) in 2.png",
        ),
    ],
)
def test_a_bad_mask_gives_one_line(
    mask: np.ndarray,
    classes: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    data = scenes(tmp_path / "data", 6)
    Image.fromarray(mask).save(data / "masks" / "2.png")
    if classes:
        (data / "classes.json").write_text(classes)
    assert re.search(message, refusal(capsys, data))


def test_masks_that_teach_nothing_give_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data, val = scenes(tmp_path / "data", 6), scenes(tmp_path / "val", 4)
    Image.fromarray(SEVENS).save(val / "masks" / "2.png")
    message = "to measure on have the class 7, such as in 2.png, which no mask to learn"
    assert message in refusal(capsys, data, "--val", val)
    (data / "a.json").write_text('{"shapes": [], "imagePath": "images/1.png"}')
    assert "a.json is a json of another kind" in refusal(capsys, data / "a.json")
    for number in range(6):
        Image.fromarray(BLANK).save(data / "masks" / f"{number}.png")
    assert "1 class; at least two" in refusal(capsys, data)
    (data / "classes.json").write_text('["sky", "road"]')
    message = "masks to learn from have 1 of the 2 classes, sky; at least two"
    assert message in refusal(capsys, data)
    shutil.rmtree(data / "masks")
    assert "has no maps" in refusal(capsys, data)


def outlines(file: Path, data: Path, numbers: range, *categories: str) -> Path:
    """COCO's json of scenes, with a polygon around the bright part of each."""
    kinds = [{"id": 3 * k, "name": name} for k, name in enumerate(categories)]
    road, images, annotations = 3 * categories.index("road"), [], []
    for number in numbers:
        left = int((np.array(Image.open(data / "masks" / f"{number}.png"))[1] == 0).sum())
        images.append({"id": number, "file_name": f"images/{number}.png"})
        around = [left, 1, 60, 1, 60, 40, left, 40]
        told = {"id": number, "image_id": number, "category_id": road, "segmentation": [around]}
        annotations.append(told)
    content = {"images": images, "annotations": annotations, "categories": kinds}
    file.write_text(json.dumps(content))
    return file


def test_polygons_are_learned_and_measured_by_the_names_of_their_categories(tmp_path: Path):
    data, run = scenes(tmp_path / "data", 10), tmp_path / "run"
    train = outlines(data / "train.json", data, range(7), "road")
    val = outlines(data / "val.json", data, range(7, 10), "lake", "road")
    flags = ["--val", str(val), "--epochs", "20", "--optim.lr", "2e-2", "--task.head", "linear"]
    assert main(["finetune", str(train), *SMALL, *flags, "--out", str(run)]) == 0
    last = rows_of(run)[-1]
    assert last["miou"] > 0.9
    assert json.loads((run / "confusion.json").read_text())["classes"] == ["background", "road"]
    out = tmp_path / "out"
    assert main(["predict", str(run), str(val), "--out", str(out), "--workers", "0"]) == 0
    truth, said = (
        np.stack([np.array(Image.open(folder / f"{n}.png")) for n in range(7, 10)])
        for folder in (data / "masks", out / "masks" / "images")
    )
    truth[truth == 255] = 0
    assert jaccard_score(truth.ravel(), said.ravel(), average="macro") == pytest.approx(
        last["miou"]
    )
    segmenter = load_segmenter(run)
    images = ImageSet(find_images(val, maps=True), segmenter.pixels, annotations=MAPS)
    assert segmenter.measure(images, workers=2).miou == pytest.approx(last["miou"])


def test_a_split_says_which_parts_are_used_for_what(tmp_path: Path):
    data = scenes(tmp_path / "data", 9)
    for folder in ("images", "masks"):
        for number in range(9):
            part = ("train", "val", "test")[number // 3]
            (data / folder / part).mkdir(exist_ok=True)
            (data / folder / f"{number}.png").rename(data / folder / part / f"{number}.png")
    Image.new("L", (60, 40)).save(data / "masks" / "train" / "more.png")
    assert main(["finetune", str(data), *SMALL, "--epochs", "1", "--out", str(tmp_path / "a")]) == 0
    log = " ".join((tmp_path / "a" / "log.txt").read_text().split())
    assert "3 folders are taken for parts of a split, not for classes: train, val, test" in log
    assert "measured on val, a part of" in log
    assert "3 images of test are left out" in log
    assert "1 file among the masks is the mask of no image that is there" in log
    assert "are used" not in log
    assert ("note", "all parts of the split are used") in notes(find_images(data))
    one = [str(data / "images" / "train"), "--val", str(data / "images" / "val")]
    assert main(["finetune", *one, *SMALL, "--epochs", "1", "--out", str(tmp_path / "b")]) == 0
    a, b = (rows_of(tmp_path / name) for name in "ab")
    assert len(a) == len(b)


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
@pytest.mark.parametrize("head", ["upernet", "linear", "dpt"])
def test_ten_images_are_learned_by_heart(head: str, tmp_path: Path):
    file = shapes(tmp_path / "data", 10)
    flags = ["--task.head", head, "--image-size", "64x80", "--epochs", "300"]
    flags += ["--arguments", "depth=3,embed_dim=96,num_heads=3"]
    assert main([*words(file, tmp_path / "run"), *flags]) == 0
    assert rows_of(tmp_path / "run")[-1]["miou"] > 0.95
