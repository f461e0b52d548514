"""Labelled data as people have it, from the command line to the figures."""

from collections.abc import Callable
from pathlib import Path

import pytest

from simmim.cli.main import main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process; its status, and what it printed in one line each."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return status, *(" ".join(text.split()) for text in capsys.readouterr())

    return run


@pytest.fixture
def files(photos: Path) -> list[Path]:
    return sorted(photos.glob("*/*.jpg"))


def laid_out(root: Path, files: list[Path], *names: str) -> Path:
    for name, file in zip(names, files, strict=False):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(file.read_bytes())
    return root


FIVE = ("dress", "hat", "pants", "shirt", "shoes")
SCRATCH = (
    *("--from", "none", "--model", "vit_tiny_patch16_224", "--image-size", 32),
    *("--arguments", "depth=1,embed_dim=48,num_heads=3"),
)


def test_five_folders_of_one_image_are_five_classes(tmp_path: Path, files: list[Path], call: Call):
    data = laid_out(tmp_path / "one", files, *(f"{name}/a.jpg" for name in FIVE))
    (data / "socks").mkdir()
    val = laid_out(tmp_path / "val", files[5:], *(f"{name}/b.jpg" for name in FIVE[:3]))
    words = ("finetune", data, *SCRATCH, "--epochs", 1, "--workers", 0, "--out", tmp_path / "out")
    status, out, err = call(*words, "--val", val)
    assert status == 0, err
    assert "5 to learn from, 3 to measure on" in out
    assert f"5: {', '.join(FIVE)}" in out
    assert "note 1 of 6 folders hold no image, and are no classes: socks" in out
    status, _, err = call("finetune", data, *SCRATCH, "--out", tmp_path / "other")
    assert status == 2
    assert "1 image per class (5 classes), so that none is left to measure on: name other im" in err
    one = laid_out(tmp_path / "single", files, *(f"dress/{i}.jpg" for i in range(9)))
    status, _, err = call("probe", tmp_path / "out", one)
    assert status == 2
    assert f"{one} has one class only, dress, and two are needed at least." in err
    more = laid_out(tmp_path / "more", files, *(f"{name}/{i}.jpg" for name in "ab" for i in "123"))
    laid_out(more, files[7:], "c/1.jpg")
    status, out, err = call("probe", tmp_path / "out", more, "--train-share", 0.1)
    assert status == 0, err
    assert "3 images to learn from, 4 asked, 3 classes" in out
    assert (
        "1 of 3 classes have 1 image, which is learned from and not measured on, such as c" in out
    )


def test_parts_of_a_split_are_named_with_the_flags(tmp_path: Path, files: list[Path], call: Call):
    names = [
        f"{part}/{name}/{i}.jpg"
        for part in ("Training_set", "Test_set")
        for name in "ab"
        for i in "12"
    ]
    data = laid_out(tmp_path / "data", files, *names)
    status, _, err = call("finetune", data, *SCRATCH, "--out", tmp_path / "out")
    assert status == 2
    assert "holds the parts of a split (Test_set, Training_set): name one of them as DATA" in err
    assert f"such as {data}/Training_set, and another by --val, such as {data}/Test_set." in err
    status, out, _ = call(
        "scan", data, "--out", tmp_path / "scan.html", "--json", tmp_path / "s.json"
    )
    assert status == 0
    assert "parts Training_set 4, Test_set 4" in out


def test_a_table_that_labels_some_images_says_how_many(
    tmp_path: Path, files: list[Path], call: Call, monkeypatch: pytest.MonkeyPatch
):
    data = laid_out(tmp_path / "deep" / "data", files, *(f"{i}.jpg" for i in range(8)))
    rows = [f"data/{i}.jpg,{'ab'[i % 2]}" for i in range(6)] + ["gone/1.jpg,a"]
    (tmp_path / "deep" / "labels.csv").write_text("\n".join(["path,label", *rows]))
    monkeypatch.chdir(data)
    words = ("finetune", ".", *SCRATCH, "--epochs", 1, "--workers", 0, "--out", tmp_path / "out")
    status, out, err = call(*words, "--labels", "../labels.csv")
    assert status == 0, err
    assert "1 of 7 rows of labels.csv name no image here, such as gone/1.jpg" in out
    assert "labels.csv labels 6 of 8 images; the other 2 have no label, such as 6.jpg" in out
    assert "4 to learn from, 2 to measure on" in out
    status, out, _ = call("scan", ".", "--labels", "../labels.csv", "--out", tmp_path / "s.html")
    assert "labels.csv labels 6 of 8 images; the other 2 have no label, such as 6.jpg" in out
