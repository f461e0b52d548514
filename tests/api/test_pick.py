import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from simmim.cli.main import main
from simmim.data.labels import read_labels
from simmim.data.sources.find import find_images


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def picked(*words: object) -> int:
    return main(["pick", *map(str, words), "--workers", "0"])


def test_a_list_and_a_contact_sheet_are_written_and_the_list_filled_in_gives_labels(
    photos: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "next.csv"
    assert picked(photos, "--from", tiny_run, "--n", 12, "--out", out) == 0

    assert "all 100 images have a label" in " ".join(capsys.readouterr().out.split())
    chosen = rows(out)
    names = [row["path"] for row in chosen]
    assert len(set(names)) == 12
    assert set(names) <= set(find_images(photos))
    assert {row["label"] for row in chosen} == {""}
    assert sum(int(row["stands_for"]) for row in chosen) == 100
    with Image.open(tmp_path / "next.png") as sheet:
        assert sheet.width == 10 * (112 + 4)

    text = out.read_text().replace(",,", ",cat,", 1)
    out.write_text(text)
    assert [place for place, _ in read_labels(out, find_images(photos)).pairs()] == [
        list(find_images(photos)).index(names[0])
    ]


def test_the_same_seed_gives_the_same_list_and_no_list_is_overwritten(
    photos: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = (photos, "--from", tiny_run, "--n", 5, "--out")
    assert picked(*words, tmp_path / "a.jsonl") == picked(*words, tmp_path / "b.jsonl") == 0
    text = (tmp_path / "a.jsonl").read_text()
    assert text == (tmp_path / "b.jsonl").read_text()
    assert json.loads(text.splitlines()[0])["label"] is None

    assert picked(*words, tmp_path / "a.jsonl") == 2
    assert "not overwritten" in capsys.readouterr().err


def test_images_with_labels_are_not_chosen_and_those_like_them_come_late(
    photos: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    names = list(find_images(photos))
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{name},x\n" for name in names[:95]))
    words = (photos, "--from", tiny_run, "--labels", table)
    assert picked(*words, "--n", 5, "--out", tmp_path / "rest.csv") == 0
    assert {row["path"] for row in rows(tmp_path / "rest.csv")} == set(names[95:])

    assert picked(*words, "--n", 6, "--out", tmp_path / "more.csv") == 2
    assert "has 5 images without a label, and --n asks for 6" in capsys.readouterr().err

    # A folder of labelled images: what was chosen first without it is known then.
    assert picked(photos, "--from", tiny_run, "--n", 1, "--out", tmp_path / "free.csv") == 0
    (first,) = rows(tmp_path / "free.csv")
    words = (photos, "--from", tiny_run, "--labels", photos, "--n", 1)
    assert picked(*words, "--out", tmp_path / "known.csv") == 0
    (other,) = rows(tmp_path / "known.csv")
    assert int(first["stands_for"]) == 100
    assert int(other["stands_for"]) < 100


def test_the_hardest_are_chosen_by_the_error_of_the_run_or_by_a_classifier(
    photos: Path, tiny_run: Path, tmp_path: Path
):
    words = (photos, "--hardest", "--n", 3, "--out")
    assert picked(*words, tmp_path / "error.csv", "--from", tiny_run) == 0
    errors = [float(row["reconstruction_error"]) for row in rows(tmp_path / "error.csv")]
    assert picked(*words[:1], *words[1:], tmp_path / "all.csv", "--from", tiny_run, "--n", 25) == 0
    every = [float(row["reconstruction_error"]) for row in rows(tmp_path / "all.csv")]
    assert min(errors) >= sorted(every)[-12]  # of a hundred, among the hardest dozen

    tuned = tmp_path / "tuned"
    training = ["--epochs", "1", "--batch-size", "8", "--workers", "0", "--threads", "1"]
    assert main(["finetune", str(photos), "--from", str(tiny_run), *training, "--tensorboard",
                 "false", "--out", str(tuned)]) == 0  # fmt: skip
    assert picked(*words, tmp_path / "unsure.csv", "--from", tuned) == 0
    assert all(0 <= float(row["uncertainty"]) <= 0.5 for row in rows(tmp_path / "unsure.csv"))


def test_an_encoder_alone_tells_no_hard_images(
    photos: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("encoder.json", "encoder.safetensors"):
        (alone / name).write_bytes((tiny_run / name).read_bytes())
    words = (photos, "--hardest", "--n", 3, "--from", alone, "--out", tmp_path / "x.csv")
    assert picked(*words) == 2
    assert "encoder alone" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()
