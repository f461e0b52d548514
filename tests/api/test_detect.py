"""Fine-tuning to find objects: from files with boxes to a detector, in a run like any other."""

import json
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, kill_at, pair
from PIL import Image, ImageColor
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file

import simmim
from simmim.cli.main import main
from simmim.data.sources.segmentation import encode_mask
from simmim.report import boxes
from simmim.runs.metrics import NAMES

SMALL = [
    *("--task", "detect", "--from", "none", "--model", "vit_tiny_patch16_224"),
    *("--image-size", "64", "--patch-size", "8", "--arguments", "depth=1,embed_dim=48,num_heads=3"),
    *("--epochs", "2", "--batch-size", "4", "--threads", "1", "--workers", "0"),
    *("--precision", "fp32", "--tensorboard", "false"),
]
CLOCK = ("time", "images_per_s", "data_wait")
DISC = np.hypot(*np.mgrid[-13.5:14, -13.5:14]) < 14
COLOURS = {"red": (230, 30, 30), "blue": (30, 30, 230)}


def squares(root: Path, part: str, count: int) -> Path:
    """Images of 80×60 pixels with a red square or a blue disc each, and their COCO json."""
    rng = np.random.default_rng(len(part))
    images, annotations = [], []
    (root / part).mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 40, (60, 80, 3)).astype(np.uint8)
        left, top = int(rng.integers(0, 50)), int(rng.integers(0, 30))
        kind = i % 2
        mask = np.zeros((60, 80), bool)
        mask[top : top + 28, left : left + 28] = [np.ones((28, 28), bool), DISC][kind]
        pixels[mask] = list(COLOURS.values())[kind]
        Image.fromarray(pixels).save(root / part / f"{i}.png")
        images.append({"id": 7 + i, "file_name": f"{i}.png", "height": 60, "width": 80})
        box = {"bbox": [left, top, 28, 28], "image_id": 7 + i, "category_id": kind, "id": i + 1}
        box |= {"area": int(mask.sum()), "iscrowd": 0, "segmentation": encode_mask(mask)}
        annotations.append(box)
    names = [{"id": k, "name": name} for k, name in enumerate(COLOURS)]
    told = {"images": images, "annotations": annotations, "categories": names}
    file = root / "annotations" / f"instances_{part}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(told))
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("squares")
    squares(root, "train", 12)
    squares(root, "val", 4)
    return root / "annotations"


def words(data: Path, *more: str) -> list[str]:
    val = ("--val", str(data / "instances_val.json"))
    return ["finetune", str(data / "instances_train.json"), *SMALL, *val, *more]


def rows_of(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    known = {*NAMES, "objectness_loss", "proposal_loss", "class_loss", "box_loss", "centre_loss"}
    known |= {"mask_loss"}
    assert {name for row in rows for name in row} <= known
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main([*words(data), "--out", str(run)]) == 0
    return run


def test_killed_and_resumed_it_ends_with_the_same_bits(whole: Path, data: Path, tmp_path: Path):
    killed = tmp_path / "killed"
    first, again = [*words(data), "--out", killed], ["finetune", "--resume", killed]
    for step in (2, 4):
        kill_at(step, killed, *first)
        first = again
    done = call(*again)
    assert done.returncode == 0, done.stderr
    assert rows_of(killed) == rows_of(whole)
    mine, theirs = (load_file(each / "detector.safetensors") for each in (killed, whole))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    for name in ("predictions.json", "precision.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("kind", ["fcos", pytest.param("faster-rcnn", marks=pytest.mark.slow)])
def test_two_processes_give_what_one_gives(kind: str, data: Path, tmp_path: Path):
    flags = ("--task.detector", kind, "--micro-batch", "2", "--epochs", "1")
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*words(data, *flags), "--out", str(one)]) == 0
    with pair(partial(main, [*words(data, *flags), "--out", str(two)])) as both:
        said = [process.communicate() for process in both]
    assert (two / "report.html").exists(), said
    a, b = (load_file(run / "detector.safetensors") for run in (one, two))
    x, y = (torch.cat([state[name].flatten() for name in sorted(state)]) for state in (a, b))
    assert float((x - y).norm() / x.norm()) < 1e-5
    for mine, theirs in zip(rows_of(one), rows_of(two), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_the_run_folder_tells_what_was_found(whole: Path):
    results = json.loads((whole / "predictions.json").read_text())
    assert {each["image_id"] for each in results} == set(range(7, 11))
    last = rows_of(whole)[-1]
    assert 0 <= last["ap"] <= last["ap50"] <= 1
    page = (whole / "report.html").read_text()
    for text in ("with boxes", "What was found", "Which objects are found", "average precision"):
        assert text in page


def test_predict_writes_what_pycocotools_measures_alike(
    whole: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    val, out = data / "instances_val.json", tmp_path / "found.json"
    assert main(["predict", str(whole), str(val), "--out", str(out), "--workers", "0"]) == 0
    assert "in 4 images" in capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results == json.loads((whole / "predictions.json").read_text())
    detector = simmim.load(whole, head=True)
    detector.predict(val).write(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == results
    known = COCO(val)
    measure = COCOeval(known, known.loadRes(str(out)), "bbox")
    measure.evaluate()
    measure.accumulate()
    measure.summarize()
    last = rows_of(whole)[-1]
    assert measure.stats[:2] == pytest.approx([last["ap"], last["ap50"]], abs=1e-6)
    # The folder of these images means their json too; photos alone are numbered in their order.
    again = tmp_path / "folder.json"
    assert main(["predict", str(whole), str(data.parent / "val"), "--out", str(again)]) == 0
    assert json.loads(again.read_text()) == results
    Image.open(data.parent / "val" / "1.png").save(tmp_path / "photo.png")
    (tmp_path / "found.json").unlink()
    assert main(["predict", str(whole), str(tmp_path / "photo.png"), "--out", str(out)]) == 0
    named = json.loads(out.read_text())
    assert {(each["image_id"], each["file_name"]) for each in named} == {(1, "photo.png")}
    sides = [(each["bbox"], each["score"]) for each in results if each["image_id"] == 8]
    assert [(each["bbox"], each["score"]) for each in named] == [
        (pytest.approx(box, abs=0.01), pytest.approx(score, abs=1e-5)) for box, score in sides
    ]


def test_predict_says_what_a_detector_cannot_do(
    whole: Path, data: Path, capsys: pytest.CaptureFixture[str]
):
    val = str(data / "instances_val.json")
    for more, said in (
        (["--out", "x.csv"], "what a detector finds goes to a .json file, or with overlays to a"),
        (["--out", "x", "--engine", "ray"], "--engine ray makes Parquet parts"),
        (["--out", "x.json", "--also", str(whole)], "boxes are of one run"),
    ):
        assert main(["predict", str(whole), val, *more]) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_a_folder_has_overlays_to_look_at_and_is_gone_on_with(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(boxes, "SURE", 0.0)  # hardly trained, it is sure of nothing
    command = ["predict", str(whole), str(data.parent / "val"), "--out", str(tmp_path / "found")]
    assert main(command) == 0
    results = (tmp_path / "found" / "predictions.json").read_bytes()
    assert results == (whole / "predictions.json").read_bytes()
    for number in range(4):
        shown = Image.open(tmp_path / "found" / "overlays" / f"{number}.png")
        assert shown.size == (80, 60)
        surest = next(each for each in json.loads(results) if each["image_id"] == 7 + number)
        left, top, width, height = surest["bbox"]
        corner = int(left + width) - 1, int(top + height) - 1
        colour = ImageColor.getrgb(boxes._COLOURS[surest["category_id"]])
        assert colour in [
            shown.getpixel((corner[0] + i, corner[1] + j)) for i in (0, 1) for j in (0, 1)
        ]
    (tmp_path / "found" / "overlays" / "2.png").unlink()
    kept = (tmp_path / "found" / "overlays" / "1.png").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "found" / "overlays" / "2.png").exists()
    assert (tmp_path / "found" / "overlays" / "1.png").stat().st_mtime_ns == kept
    command[2] = str(data.parent / "train")
    assert main(command) == 2


def test_what_cannot_be_learned_from_is_said_before_anything_starts(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    told = json.loads((data / "instances_train.json").read_text())
    boxes = told["annotations"]
    cases: list[tuple[dict, str]] = [
        ({"annotations": [{**boxes[0], "bbox": [1, 1, -4, 5]}]}, "such as annotation 1. Correct"),
        ({"annotations": []}, "has no boxes"),
        ({"annotations": [{**boxes[0], "iscrowd": 1}]}, "has no box to learn from"),
        ({"images": [{"id": 1}]}, "json of another kind"),
        (
            {"categories": [{"id": 0, "name": "red"}, {"id": 1, "name": "green"}]},
            "has classes that the training images lack: blue",
        ),
    ]
    for number, (changes, said) in enumerate(cases):
        file = data.parent / "annotations" / f"bad{number}_train.json"
        file.write_text(json.dumps(told | changes))
        command = words(data, "--out", str(tmp_path / "run"))
        command[1] = str(file)
        assert main(command) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert said in error
        assert not (tmp_path / "run").exists()
    assert main([*words(data), "--labels", str(data / "instances_val.json"), "--out", "run"]) == 2


def test_notes_tell_of_missing_images_crowds_and_background(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    told = json.loads((data / "instances_train.json").read_text())
    told["images"] += [{"id": 90, "file_name": "gone.png"}]
    told["annotations"][0]["iscrowd"] = 1
    told["annotations"].pop()
    file = data / "notes_train.json"
    file.write_text(json.dumps(told))
    command = words(data, "--epochs", "0.4", "--out", str(tmp_path / "run"))
    command[1] = str(file)
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in (
        "images that are not there: 1 of 13, such as gone.png",
        "boxes of crowds, neither learned from nor judged by: 1",
        "1 image with boxes of crowds alone left out, such as 0.png",
        "images without a box, which count as background: 1 of 11",
    ):
        assert text in said


def test_masks_are_learned_measured_and_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    told = json.loads((data / "instances_train.json").read_text())
    told["annotations"][0]["segmentation"] = []
    file, run = data / "masks_train.json", tmp_path / "run"
    file.write_text(json.dumps(told))
    flags = ["--task.detector", "mask-rcnn", "--epochs", "0.4", "--out", str(run)]
    command = words(data, *flags)
    command[1] = str(file)
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    note = (
        "objects without a mask, neither learned from nor judged by their masks: 1 of 12, such as"
    )
    assert f"{note} in 0.png" in said
    last = rows_of(run)[-1]
    assert last["mask_loss"] > 0
    val = data / "instances_val.json"
    with redirect_stdout(StringIO()):
        known = COCO(val)
        for kind, names in (("bbox", ("ap", "ap50")), ("segm", ("ap_mask", "ap50_mask"))):
            measure = COCOeval(known, known.loadRes(str(run / "predictions.json")), kind)
            measure.evaluate()
            measure.accumulate()
            measure.summarize()
            assert measure.stats[:2] == pytest.approx([last[name] for name in names], abs=1e-6)
    assert "AP of masks" in (run / "report.html").read_text()
    out = tmp_path / "found"
    assert main(["predict", str(run), str(val), "--out", str(out)]) == 0
    assert (out / "predictions.json").read_bytes() == (run / "predictions.json").read_bytes()
    for each in told["annotations"]:
        each["segmentation"] = []
    file.write_text(json.dumps(told))
    command[-1] = str(tmp_path / "none")
    assert main(command) == 2
    assert f"{file} has no masks" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["faster-rcnn", "mask-rcnn", "retinanet", "fcos"])
def test_ten_images_are_learned_by_heart(kind: str, tmp_path: Path):
    file = str(squares(tmp_path, "train", 10))
    flags = ["--epochs", "60", "--val", file, "--task.detector", kind, "--optim.lr", "4e-3"]
    flags += ["--arguments", "depth=2,embed_dim=96,num_heads=3", "--optim.layer-decay", "1"]
    assert main(["finetune", file, *SMALL, *flags, "--out", str(tmp_path / "run")]) == 0
    last = rows_of(tmp_path / "run")[-1]
    assert last["ap50"] > 0.95
    assert kind != "mask-rcnn" or last["ap_mask"] > 0.75
