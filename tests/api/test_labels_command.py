import csv
from pathlib import Path

import pytest

from simmim.api import labels
from simmim.cli.main import main
from simmim.config import studies


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def asked(*words: object) -> int:
    return main(["labels", *map(str, words), "--workers", "0"])


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simmim.api.label_trials.LEAST_STEPS", 2)
    monkeypatch.setattr("simmim.api.label_trials.REHEARSED", 8)
    assert studies.LEAST_STEPS == 200


def test_frozen_features_at_growing_numbers_of_labels(
    photos: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "study"
    words = (photos, "--from", tiny_run, "--protocol", "linear", "--out", out)
    assert asked(*words, "--counts", "10,40", "--draws", 2) == 0

    text = " ".join(capsys.readouterr().out.split())
    assert "8 trainings to make" in text
    assert "80 to draw from, 20 to measure on" in text
    assert "With 40 labels you are where training from scratch is with" in text
    made = rows(out / "labels.csv")
    assert [(row["start"], row["labels"], row["draw"]) for row in made] == [
        (start, count, draw)
        for draw in ("1", "2")
        for count in ("10", "40")
        for start in (str(tiny_run), "scratch")
    ]
    assert all(round(float(row["accuracy"]) * 20, 6).is_integer() for row in made)
    page = (out / "report.html").read_text()
    assert "from scratch" in page
    assert "labelled images" in page

    # One draw more: what is there stands, and is not made again.
    before = (out / "labels.csv").read_text()
    assert asked(*words, "--counts", "10,40", "--draws", 3) == 0
    assert "4 trainings to make, 8 are there already" in " ".join(capsys.readouterr().out.split())
    assert (out / "labels.csv").read_text().startswith(before)

    assert asked(*words, "--seed", 1) == 2
    assert "another setting of seed (0 there, 1 asked for)" in capsys.readouterr().err


def test_fine_tuning_chooses_the_rate_of_each_start_on_other_images(
    photos: Path,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(studies.LabelsConfig, "rates", (1e-3, 1e-2))
    out = tmp_path / "study"
    other = tmp_path / "other"
    other.symlink_to(tiny_run)
    words = (photos, "--from", tiny_run, "--against", other, "--epochs", 0.1, "--out", out)
    assert asked(*words, "--counts", 12, "--draws", 1) == 0

    text = " ".join(capsys.readouterr().out.split())
    assert "by a rehearsal of each start" in text
    assert "chosen on 12 other images" in text
    assert "68 to draw from, 20 to measure on" in text
    made = rows(out / "labels.csv")
    tuned = [row for row in made if row["draw"] == "0"]
    assert len(tuned) == 3 * 2
    for start in (str(tiny_run), "scratch", str(other)):
        tried = {float(row["accuracy"]): row["rate"] for row in tuned if row["start"] == start}
        (measured,) = [row for row in made if row["start"] == start and row["draw"] == "1"]
        assert measured["rate"] in {row["rate"] for row in tuned}
        assert max(tried) >= 0.0
    # Both starts are the same weights: the same labels, order and rates give the same figures.
    one, same = ([row for row in made if row["start"] == str(start)] for start in (tiny_run, other))
    assert [row["accuracy"] for row in one] == [row["accuracy"] for row in same]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--counts", "10,500"), "--counts asks for 500 labels, and there are 80"),
        (("--from", "none"), "from scratch is always among the starts"),
        (("--val-share", "1"), "--val-share is a share"),
        (("--draws", "0"), "--draws must be above 0"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(
    words: tuple[str, ...],
    said: str,
    photos: Path,
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "study"
    assert asked(photos, "--from", tiny_run, "--protocol", "linear", "--out", out, *words) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_with_something_else_is_left_alone(
    photos: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "mine.txt").write_text("mine")
    assert asked(photos, "--from", tiny_run, "--protocol", "linear", "--out", tmp_path) == 2
    assert "is not empty" in capsys.readouterr().err
    assert labels.ROWS not in {file.name for file in tmp_path.iterdir()}
