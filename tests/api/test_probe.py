"""`simmim probe`: every protocol, each figure beside a random encoder's."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim.cli.main import main

REFERENCE = Path(__file__).parents[1] / "interop" / "reference" / "simmim_vit.pth"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("simmim.evaluate.attentive.STEPS", 10)


def test_all_protocols_are_printed_beside_a_random_encoder(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = tmp_path / "data"
    for name, number in (("dress", 12), ("shoes", 6)):
        for file in sorted((photos / name).iterdir())[:number]:
            (data / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, data / name)
    words = ["probe", str(REFERENCE), str(data), "--workers", "0", "--protocol", "all"]
    assert main([*words, "--layers", "all", "--k", "3"]) == 0
    text = capsys.readouterr().out
    assert "15 images to learn from, 3 asked, 2 classes" in text
    number = r"\d+\.\d% \((?:−?-?\d+\.\d|nan) … \d+\.\d\)"
    for name in ("k-NN, k = 3, cosine", "logistic regression", "attentive probe"):
        rows = rf"^{name}\n  accuracy +{number} +a random encoder: {number}\n  balanced accuracy"
        assert re.search(rows, text, re.MULTILINE), name
    for each in ("1 label a class", "2 labels a class", "5 labels a class"):
        assert re.search(rf"  {each} +{number} +a random encoder: {number}\n", text)
    said = "10 labels a class: 1 of 2 classes have fewer than 10 images to learn from, such as"
    assert f"{said} shoes: all are taken" in text
    assert "25 labels a class: not measured, as all have fewer than 25 images" in text
    assert len(re.findall(r"^best block: \d+ for ", text, re.MULTILINE)) == 2
    assert re.search(r"always the largest class\n  accuracy +66.7% .*\n  balanced.* 50.0%", text)
    assert "exact binomial" in text
    assert "Student's t over the draws" in text


def masked(photos: Path, root: Path) -> Path:
    """Photos with masks of what is bright, and one that is no image."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number, file in enumerate(sorted((photos / "dress").iterdir())[:12]):
        image = Image.open(file).convert("RGB")
        image.save(root / "images" / f"{number:02d}.png")
        bright = (np.array(image.convert("L")) > 128).astype(np.uint8)
        Image.fromarray(bright).save(root / "masks" / f"{number:02d}.png")
    return root


def test_pixels_are_told_beside_a_random_encoder_and_the_largest_class(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data, val = masked(photos, tmp_path / "data"), masked(photos, tmp_path / "val")
    (val / "images" / "03.png").write_bytes((val / "images" / "03.png").read_bytes()[:200])
    words = ["probe", str(REFERENCE), str(data), "--val", str(val), "--workers", "0"]
    assert main(words) != 0
    assert "has masks, which --task segment takes" in capsys.readouterr().err
    more = ["--task", "segment", "--protocol", "all", "--layers", "all", "--k", "3"]
    assert main([*words, *more]) == 0
    text = capsys.readouterr().out
    assert "1 of 12 images asked about could not be read" in text
    assert "no list of classes was found" in text
    assert "augmentation" not in text
    assert re.search(r"frozen patches: [\d,]+ of [\d,]+ to learn from, at most 1,666 of an", text)
    assert "12 images to learn from, 11 asked, 2 classes" in text
    number = r"\d+\.\d% \(\d+\.\d … \d+\.\d\)"
    for name in ("k-NN of patches, k = 3, cosine", "logistic regression on patches"):
        beside = rf"{number} +a random encoder: {number}"
        rows = rf"^{name}\n  mean IoU +{beside}\n  pixel accuracy +{beside}"
        assert re.search(rows, text, re.MULTILINE), name
    assert len(re.findall(r"^best block: \d+ for ", text, re.MULTILINE)) == 2
    assert re.search(
        rf"always the largest class\n  mean IoU +{number}\n  pixel acc.* {number}", text
    )
    assert "bootstrap's interval over the images asked about" in text
