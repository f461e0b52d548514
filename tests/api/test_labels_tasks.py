"""Label curves of other tasks than a class of each image: the same study, as finetune measures."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_detect import squares
from test_segment import scenes

from simmim.cli.main import main
from simmim.config import studies
from simmim.data.loading.images import split_rows
from simmim.data.sources.find import find_images
from simmim.studies.label_curve import nested

STEPS = 8


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "labels.csv").open(newline="") as stream:
        every = list(csv.DictReader(stream))
    assert all(float(row.pop("seconds")) > 0 for row in every)
    return every


def asked(*words: object) -> int:
    return main(["labels", *map(str, words), "--workers", "0", "--draws", "1", "--epochs", "1"])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def last_row(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simmim.api.label_trials.LEAST_STEPS", STEPS)


def drawn(data: Path, groups: np.ndarray, count: int, *, boxes: bool = False) -> list[str]:
    """Names of the images of draw 1: of those that are not set aside to choose rates on."""
    kept, _ = split_rows(groups, 0.15, 0)
    names = find_images(data, boxes=boxes)
    return [Path(names[row]).name for row in kept[nested(groups[kept], 1, 0)[:count]]]


def test_masks_from_few_images_as_finetune_and_rows_that_are_there_stand(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(studies.MaskLabelsConfig, "rates", (1e-2, 1e9))
    data, val, out = scenes(tmp_path / "data", 9), scenes(tmp_path / "val", 3), tmp_path / "study"
    how = ["--task", "segment", "--task.head", "linear", "--task.balance", "0.5"]
    how += ["--from", tiny_run, "--val", val, "--image-size", "32x48"]
    assert asked(data, *how, "--counts", 4, "--out", out) == 0
    text = said(capsys)
    assert "6 trainings to make: about" in text
    assert "8 to draw from, 3 to measure on" in text
    assert "With 4 labels you are where training from scratch is with" in text
    page = (out / "report.html").read_text()
    for words in ("Mean IoU, ± one", "--task segment", "2 of 6 trainings, which count as 0"):
        assert words in page

    made = rows(out)
    assert [row["miou"] for row in made if row["astray"]] == ["0.0", "0.0"]  # at the rate 1e9
    *_, judged, _ = made
    assert (judged["draw"], judged["start"], judged["rate"]) == ("1", str(tiny_run), "0.01")
    few = tmp_path / "few"
    for name in drawn(data, np.zeros(9), 4):  # both classes are in each image
        for folder in ("images", "masks"):
            (few / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(data / folder / name, few / folder)
    same = ["--optim.lr", 1e-2, "--batch-size", 8, "--epochs", STEPS * 8 / 4, "--seed", 1]
    same += ["--picture-every", 1]
    run = tmp_path / "run"
    words = ["finetune", few, *how, *same, "--workers", 0, "--tensorboard", "false", "--out", run]
    assert main(list(map(str, words))) == 0
    assert {name: float(judged[name]) for name in ("miou", "pixel_accuracy")} == {
        name: last_row(run)[name] for name in ("miou", "pixel_accuracy")
    }

    # As a kill in the middle leaves it: each row is written whole.
    whole = (out / "labels.csv").read_text().splitlines(keepends=True)
    (out / "labels.csv").write_text("".join(whole[:6]))
    capsys.readouterr()
    assert asked(data, *how, "--counts", 4, "--out", out) == 0
    assert "1 training to make, 5 are there already" in said(capsys)
    assert rows(out) == made


def test_boxes_from_few_images_as_finetune(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(studies.BoxLabelsConfig, "rates", (3e-2,))
    data, val, out = squares(tmp_path, "train", 9), squares(tmp_path, "val", 4), tmp_path / "study"
    how = ["--task", "detect", "--task.detector", "fcos", "--from", tiny_run, "--val", val]
    how += ["--image-size", "32x48"]
    assert asked(data, *how, "--counts", 4, "--out", out) == 0
    assert "AP50, ± one" in (out / "report.html").read_text()
    judged, _ = rows(out)
    assert float(judged["ap"]) > 0

    names = drawn(data, np.arange(9) % 2, 4, boxes=True)
    told = json.loads(data.read_text())
    told["images"] = [each for each in told["images"] if each["file_name"] in names]
    ids = {each["id"] for each in told["images"]}
    told["annotations"] = [each for each in told["annotations"] if each["image_id"] in ids]
    few = tmp_path / "few" / "annotations" / "instances_train.json"
    shutil.copytree(tmp_path / "train", tmp_path / "few" / "train")
    few.parent.mkdir()
    few.write_text(json.dumps(told))
    same = ["--optim.lr", 3e-2, "--batch-size", 8, "--epochs", STEPS * 8 / 4, "--seed", 1]
    same += ["--picture-every", 1]
    run = tmp_path / "run"
    words = ["finetune", few, *how, *same, "--workers", 0, "--tensorboard", "false", "--out", run]
    assert main(list(map(str, words))) == 0
    assert {name: float(judged[name]) for name in ("ap", "ap50")} == {
        name: last_row(run)[name] for name in ("ap", "ap50")
    }


@pytest.mark.parametrize(("task", "figure"), [("multilabel", "map"), ("regress", "r2")])
def test_several_classes_and_numbers(
    task: str,
    figure: str,
    photos: Path,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(studies.LABEL_STUDIES[task], "rates", (1e-3,))
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    answers = [f"{Path(name).parent}|{'even' if k % 2 else 'odd'}" for k, name in enumerate(names)]
    answers[7] = answers[77] = "rare"
    if task == "regress":
        answers = [f"{k / 10}" for k in range(len(names))]
    table = tmp_path / "labels.csv"
    pairs = [f"{name},{answer}\n" for name, answer in zip(names, answers, strict=True)]
    table.write_text("path,label\n" + "".join(pairs))
    out = tmp_path / "study"
    how = ["--task", task, "--from", tiny_run, "--labels", table, "--out", out]
    assert asked(photos, *how, "--counts", "12") == 0
    assert [np.isfinite(float(row[figure])) for row in rows(out)] == [True, True]
    rule = "of 12 labels, 1 of 1 draws have no image of up to 1 of 5 classes, such as rare, which"
    assert (rule in said(capsys)) == (task == "multilabel")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--counts", "9"), "--counts asks for 9 labels, and there are 6 labelled images"),
        (("--counts", "1"), "from 1 label nothing can be learned, such as in draw 0: 1 of the"),
        (("--protocol", "linear"), "--protocol linear tells classes of whole images"),
        (("--labels", "a.csv"), "--task detect reads boxes of DATA"),
        (("--task.head", "linear"), "--task.head is a flag of the segment task"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(
    words: tuple[str, ...],
    message: str,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("path,label\n")
    file, val = squares(tmp_path, "train", 8), squares(tmp_path, "val", 2)
    told = json.loads(file.read_text())
    told["annotations"] = told["annotations"][:3:2]  # most images show nothing
    file.write_text(json.dumps(told))
    how = ["--task", "detect", "--from", tiny_run, "--val", val, "--out", "study"]
    assert asked(file, *how, *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("study").exists()
