"""Several classes of an image, or a number: from a table to predictions, report and resume."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from api.test_finetune import SMALL, finetuned, rows_of
from commands import went_on_from
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score

import simmim
from simmim.cli.main import main


@pytest.fixture(scope="module")
def brightness(photos: Path) -> dict[str, float]:
    """Of each photo, by its path in the folder."""
    files = sorted(photos.rglob("*.jpg"))
    means = [float(np.asarray(Image.open(file).convert("L")).mean()) for file in files]
    return {str(file.relative_to(photos)): mean for file, mean in zip(files, means, strict=True)}


def table(file: Path, rows: dict[str, str], column: str = "label") -> Path:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", column), *rows.items()])
    return file


def read(file: Path) -> tuple[list[str], np.ndarray]:
    with file.open(newline="") as stream:
        header, *rows = csv.reader(stream)
    return header, np.array(rows)


@pytest.fixture(scope="module")
def tagged(photos: Path, brightness: dict[str, float], tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tagged")
    bright = {path: "bright" if value > 140 else "" for path, value in brightness.items()}
    labels = {
        path: ";".join(filter(None, ["dress" * path.startswith("dress"), mark]))
        for path, mark in bright.items()
    }
    flags = ("--labels", str(table(folder / "tags.csv", labels)), "--task", "multilabel")
    return finetuned(photos, folder / "run", *flags, "--task.weights", "balanced", "--keep", "20")


@pytest.fixture(scope="module")
def numbered(photos: Path, brightness: dict[str, float], tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("numbered")
    rows = {path: f"{value - 150:.3f}" for path, value in brightness.items()}
    rows[next(iter(rows))] = "-1"  # a number here, and no sign of a missing label
    flags = ("--labels", str(table(folder / "ages.csv", rows, "light")), "--task", "regress")
    return finetuned(photos, folder / "run", *flags, "--task.column", "light", "--keep", "20")


def test_several_classes_are_learned_and_told(tagged: Path, photos: Path, tmp_path: Path):
    header, rows = read(tagged / "predictions.csv")
    assert header == ["path", "label", "prediction", "bright", "dress"]
    truth = np.array([[name in row.split("|") for name in header[3:]] for row in rows[:, 1]])
    shares = rows[:, 3:].astype(float)
    last = rows_of(tagged)[-1]
    assert last["map"] == pytest.approx(average_precision_score(truth, shares), abs=1e-4)
    assert last["f1"] == pytest.approx(f1_score(truth, shares >= 0.5, average="micro"))
    assert last["f1_macro"] == pytest.approx(f1_score(truth, shares >= 0.5, average="macro"))
    assert last["map"] > truth.mean() + 0.15  # the chance of a random order
    told = ["|".join(np.array(header[3:])[row]) for row in shares >= 0.5]
    assert rows[:, 2].tolist() == told

    assert main(["predict", str(tagged), str(photos), "--out", str(tmp_path / "x.csv")]) == 0
    asked, more = read(tmp_path / "x.csv")
    assert asked == ["path", "prediction", "bright", "dress"]
    place = {path: k for k, path in enumerate(more[:, 0])}
    again = more[[place[path] for path in rows[:, 0]]]
    assert again[:, 1:].tolist() == rows[:, 2:].tolist()
    assert "Which classes are told" in (tagged / "report.html").read_text()


def test_a_number_is_learned_and_told(numbered: Path, photos: Path, tmp_path: Path):
    header, rows = read(numbered / "predictions.csv")
    assert header == ["path", "label", "prediction"]
    truth, told = rows[:, 1].astype(float), rows[:, 2].astype(float)
    last = rows_of(numbered)[-1]
    assert last["r2"] == pytest.approx(r2_score(truth, told))
    assert last["mae"] == pytest.approx(mean_absolute_error(truth, told))
    assert last["r2"] > 0.5
    page = (numbered / "report.html").read_text()
    assert "Where it is furthest off" in page
    assert "Told and true" in page

    both = ["predict", str(numbered), str(photos), "--also", str(numbered), "--out"]
    assert main([*both, str(tmp_path / "parts")]) == 0
    import pyarrow.parquet as pq

    parts = pq.read_table(tmp_path / "parts")
    assert parts.column_names == ["path", "prediction"]
    said = dict(zip(*(parts[name].to_pylist() for name in parts.column_names), strict=True))
    assert [said[path] for path in rows[:, 0]] == pytest.approx(told.tolist(), abs=1e-3)
    model = simmim.load(numbered, head=True)
    assert model.predict(photos).names == pytest.approx([*said.values()], abs=1e-3)  # type: ignore


@pytest.mark.parametrize("kind", ["tagged", "numbered"])
def test_it_goes_on_with_the_same_bits(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    run: Path = request.getfixturevalue(kind)
    again = went_on_from(20, run, tmp_path / "again")
    mine, theirs = (load_file(each / "classifier.safetensors") for each in (run, again))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (run / "predictions.csv").read_bytes() == (again / "predictions.csv").read_bytes()
    assert json.loads((run / "classes.json").read_text())["task"] in ("multilabel", "regress")


@pytest.fixture
def refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(task: str, text: str, *flags: str, name: str = "labels.csv") -> str:
        (tmp_path / name).write_text(text)
        words = [*SMALL, "--task", task, "--labels", str(tmp_path / name), *flags]
        out = tmp_path / "none"
        assert main(["finetune", str(photos), *words, "--out", str(out)]) == 2
        assert not (out / "metrics.jsonl").exists()
        return " ".join(capsys.readouterr().err.split())

    return run


def test_wrong_labels_are_one_clear_error(
    refused: Callable[..., str], brightness: dict[str, float]
):
    one, two, three = list(brightness)[:3]
    rows = f"path,age\n{one},31\n{two},old\n"
    said = refused("regress", rows, "--task.column", "age")
    assert "line 3: column 'age' has 'old', which is no number." in said
    assert "no column 'height'; it has 'path', 'age'" in refused(
        "regress", rows, "--task.column", "height"
    )
    same = f"path,label\n{one},5\n{two},5.0\n{three},5\n"
    assert "images to learn from have the same number" in refused("regress", same)
    assert "'inf', which is no number" in refused("regress", f"path,label\n{one},inf\n")
    same = f"path,label\n{one},a|b\n{two},b;a\n{three},a\n{three},b\n"
    assert "images to learn from are of the same classes" in refused("multilabel", same)
    only = "\n".join(json.dumps({"path": p, "label": [k]}) for p, k in ((one, "a"), (two, "b")))
    said = refused("multilabel", only, name="labels.jsonl")
    assert "is the only one of a class, so that none is left to measure on" in said


def test_a_class_to_measure_on_that_is_not_learned_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = {
        f"dress/{file.name}": "ab"[k % 2] for k, file in enumerate((photos / "dress").iterdir())
    }
    rows |= {f"shoes/{file.name}": "c" for file in (photos / "shoes").iterdir()}
    labels = table(
        tmp_path / "labels.csv", {str(photos / path): name for path, name in rows.items()}
    )
    words = ["finetune", str(photos / "dress"), "--val", str(photos / "shoes"), *SMALL]
    for task in ("classify", "multilabel"):
        assert (
            main([*words, "--task", task, "--labels", str(labels), "--out", str(tmp_path / "o")])
            == 2
        )
        assert "has classes that the training images lack: c." in capsys.readouterr().err
