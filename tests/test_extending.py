"""The guide to new parts is enough: what it says is put into a copy of simmim and trained with."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
STEP = re.compile(
    r"^`(simmim/[\w/]+\.py)`|^(## )|^```(python|diff)\n(.*?)^```", re.MULTILINE | re.DOTALL
)
RUN = [
    *("--recipe", "colour", "--mask", "hard", "--extra", "caption", "--caption.words", "50"),
    *("--model", "vit_tiny_patch16_224", "--arguments", "embed_dim=48,depth=2,num_heads=3"),
    *("--image-size", "32", "--patch-size", "8", "--decoder.depth", "1", "--decoder.width", "32"),
    *("--batch-size", "8", "--threads", "1", "--workers", "1", "--optim.lr", "3e-3"),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a simmim lies in which the guide was followed."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "simmim", root / "simmim", ignore=shutil.ignore_patterns("__pycache__"))
    file, told = None, []
    for name, heading, kind, text in STEP.findall((ROOT / "docs" / "extending.md").read_text()):
        if name:
            file = root / name
            told.append(name)
        elif heading or file is None:
            file = None
        elif kind == "python":
            assert not file.exists()
            file.write_text(text)
        else:
            change(file, text.splitlines(keepends=True))
    assert len(told) == len(set(told)) == 3 * 3 + 1  # config, class, match of each, and a recipe
    return root


def change(file: Path, lines: list[str]) -> None:
    """Follow a block of lines that stay, come (+) and go (-)."""
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] for line in lines if line[0] != "-")
    assert file.read_text().count(before) == 1, f"{file}: {before}"
    file.write_text(file.read_text().replace(before, after))


@pytest.fixture(scope="module")
def captions(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("captions") / "captions.jsonl"
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.jpg"))]
    rows = ({"path": name, "text": f"A {Path(name).parent} of {name[-5]}"} for name in names)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def simmim(copy: Path, *words: object) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "simmim", *map(str, words)]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, env=environment, cwd=copy, **both)


def call(copy: Path, *words: object) -> tuple[int, str]:
    process = simmim(copy, *words)
    text, _ = process.communicate(timeout=300)
    return process.returncode, text


def test_new_parts_have_their_flags_and_checks(copy: Path, tmp_path: Path):
    _, text = call(
        copy, "pretrain", "--recipe", "colour", "--mask", "hard", "--extra", "caption", "--help"
    )
    for flag in ("--mask.pull", "--mask.ratio", "--target.deviation", "--caption.file"):
        assert flag in text
    assert "JSONL with a" in text
    assert "--caption.weight X" in text
    assert "--extra" in text
    assert "--target.norm-pix" not in text
    code, text = call(copy, "pretrain", tmp_path, "--caption.weight", "2")
    assert code == 2
    assert "flag of the caption extra" in text
    assert "--extra caption" in text
    code, text = call(copy, "pretrain", tmp_path, "--extra", "captoin")
    assert code == 2
    assert "Did you mean caption?" in text
    file = tmp_path / "wrong.yaml"
    file.write_text("extras: [{kind: caption, wieght: 2}]")
    code, text = call(copy, "pretrain", tmp_path, "--config", file)
    assert code == 2
    assert "unknown key extras.0.wieght. Did you mean weight?" in text


def test_new_parts_train_and_are_saved(copy: Path, photos: Path, captions: Path, tmp_path: Path):
    words = [photos, *RUN, "--caption.file", captions, "--epochs", "0.1", "--picture-every", "0"]
    words += ["--target", "pixels,colour", "--target.colour.deviation", "false"]
    code, text = call(
        copy, "pretrain", *words, "--caption.weight", "0.5", "--out", tmp_path / "run"
    )
    assert code == 0, text
    weights = load_file(tmp_path / "run" / "checkpoints" / "step-00000002" / "model.safetensors")
    assert weights["sampler.progress"] == 1
    assert "extras.caption.head.weight" in weights
    assert "extras.caption.words" not in weights
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["caption_loss"] > 0.5
    assert row["colour_loss"] + row["pixels_loss"] + 0.5 * row["caption_loss"] == pytest.approx(
        row["loss"]
    )
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["mask"]["kind"] == "hard"
    assert saved["target"]["parts"][1] == {"kind": "colour", "deviation": False}
    extra = {"kind": "caption", "weight": 0.5, "file": str(captions), "words": 50}
    assert saved["extras"] == [extra]


@pytest.mark.slow
def test_a_run_with_new_parts_that_is_killed_ends_as_if_it_had_not_been(
    copy: Path, photos: Path, captions: Path, tmp_path: Path
):
    words = [photos, *RUN, "--caption.file", captions, "--epochs", "6"]
    code, text = call(copy, "pretrain", *words, "--out", tmp_path / "whole")
    assert code == 0, text
    process = simmim(copy, "pretrain", *words, "--out", tmp_path / "killed")
    while not any((tmp_path / "killed" / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, text = call(copy, "pretrain", "--resume", tmp_path / "killed")
    assert code == 0, text
    assert "going on from step 8 of 75" in text
    folders = [max((tmp_path / run / "checkpoints").glob("step-*")) for run in ("whole", "killed")]
    for name in ("model.safetensors", "optimizer.safetensors"):
        whole, killed = (load_file(folder / name) for folder in folders)
        assert whole.keys() == killed.keys()
        assert all(whole[key].equal(killed[key]) for key in whole)
    rows = [json.loads(row) for row in (tmp_path / "killed" / "metrics.jsonl").open()]
    assert rows[-1]["caption_loss"] < 0.7 * rows[0]["caption_loss"]
    captions.unlink()  # of no use to anything but training
    code, text = call(copy, "embed", tmp_path / "whole", photos, "--out", tmp_path / "e.npz")
    assert code == 0, text
    code, text = call(copy, "reconstruct", tmp_path / "whole", photos)
    assert "predicts no pixels" in text
