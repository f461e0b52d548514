import csv
from pathlib import Path

import pytest
from PIL import Image

from simmim.api.study import _gather
from simmim.cli.main import main
from simmim.cli.study import parse_study
from simmim.errors import ConfigError
from simmim.studies.equal_compute import pace
from simmim.training.world import ALONE

TINY = [
    *("--model", "vit_tiny_patch16_224", "--image-size", "32", "--patch-size", "8"),
    *("--arguments", "depth=1,embed_dim=24,num_heads=2", "--decoder.width", "16"),
    *("--decoder.depth", "1", "--decoder.heads", "2", "--batch-size", "8"),
    *("--workers", "0", "--threads", "1"),
]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def studied(*words: object) -> int:
    return main(["study", *map(str, words), *TINY])


def test_runs_of_equal_compute_over_seeds_and_what_is_recommended(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "study"
    words = (photos, "--over", "mask.ratio=0.25,0.75", "--steps", 26, "--out", out)
    assert studied(*words, "--seeds", 1) == 0

    text = " ".join(capsys.readouterr().out.split())
    assert "without a second seed nothing is claimed" in text
    first = rows(out / "study.csv")
    assert [(row["value"], row["run"]) for row in first] == [("0.25", "0"), ("0.75", "0")]
    flops = [int(row["flops"]) for row in first]
    assert max(flops) / min(flops) < 1.02
    assert int(first[0]["steps"]) == 26 < int(first[1]["steps"])
    assert {"explained", "knn", "linear", "seconds"} <= set(first[0])

    # A seed more: what is there stands, with the same steps.
    assert studied(*words, "--seeds", 2) == 0
    assert rows(out / "study.csv")[:2] == first
    assert len(rows(out / "study.csv")) == 4
    assert "mask.ratio" in (out / "report.html").read_text()

    assert studied(photos, "--over", "mask.ratio=0.25,0.5", "--steps", 26, "--out", out) == 2
    assert "Choose another --out" in capsys.readouterr().err


def test_without_labels_only_difficulty_is_measured_and_nothing_recommended(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    plain = tmp_path / "plain"
    plain.mkdir()
    for number, file in enumerate(sorted(photos.glob("*/*"))[:40]):
        Image.open(file).save(plain / f"{number}.png")
    words = (plain, "--over", "mask.ratio=0.25,0.75", "--steps", 26, "--seeds", 1)
    assert studied(*words, "--out", tmp_path / "other") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "there are no labels, so that only the difficulty" in text
    assert "Without labels nothing is recommended" in text
    assert "linear" not in rows(tmp_path / "other" / "study.csv")[0]


def test_the_flops_of_a_step_are_those_of_its_products(photos: Path):
    """Counted by hand for one block without a decoder block: attention is among them."""
    words = [
        *(str(photos), "--over", "mask.ratio=0.5,0.75", "--model", "vit_tiny_patch16_224"),
        *("--image-size", "32", "--patch-size", "8", "--decoder", "linear", "--mask.unit", "8"),
        *("--arguments", "depth=1,embed_dim=24,num_heads=2", "--batch-size", "4"),
        *("--workers", "0", "--threads", "1"),
    ]
    _, runs = parse_study(words)
    study, _ = _gather(runs["0.5"], ALONE)
    found = pace(runs["0.5"], study).flops

    tokens, width, patch, rows_ = 16 + 1, 24, 3 * 64, 4
    seen = 8  # patches that are projected: the masked ones are replaced after
    block = tokens * (4 * width**2 + 8 * width**2) + 2 * tokens**2 * width
    head = 8 * width * patch
    forward = 2 * rows_ * (block + seen * patch * width + head)
    # Backward takes twice as much, but for the gradient by the pixels, which nobody needs.
    expected = 3 * forward - 2 * rows_ * seen * patch * width
    assert found == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["photos", "--over", "mask.ratio=0.4"], "two values at least"),
        (["photos", "--over", "mask.ratio=0.4,0.4"], "the value 0.4 is given 2 times"),
        (["photos", "--epochs", "3"], "--epochs has no place in a study"),
        (["photos", "--mask.ratio", "0.4"], "is what the study is over"),
        (["photos", "--over", "mask.ration=0.4,0.5"], "Did you mean --mask.ratio"),
        (["photos", "--over", "mask.ratio=0.4,2"], "mask ratio"),
        (["--over", "mask.ratio=0.4,0.5"], "no images given"),
    ],
)
def test_a_study_that_cannot_be_is_told_at_once(words: list[str], said: str):
    with pytest.raises(ConfigError) as caught:
        parse_study(words)
    assert said in str(caught.value)


def test_any_flag_of_pretrain_can_be_studied():
    _, runs = parse_study(["photos", "--over", "recipe=mae,simmim-fast", "--seed", "3"])
    assert [run.recipe for run in runs.values()] == ["mae", "simmim-fast"]
    assert {run.seed for run in runs.values()} == {3}
    _, runs = parse_study(["photos", "--over", "augment.scale=0.2,1;0.5,1"])
    assert [run.augment.scale for run in runs.values()] == [(0.2, 1.0), (0.5, 1.0)]
