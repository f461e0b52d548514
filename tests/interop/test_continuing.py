"""Pretraining that goes on from others' weights, from the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import simmim
from simmim.cli.main import main
from simmim.interop.open import open_source

REFERENCE = Path(__file__).parent / "reference"
MAE = REFERENCE / "mae.pth"
SHORT = (
    "--epochs",
    "2",
    "--batch-size",
    "20",
    "--threads",
    "1",
    "--workers",
    "0",
    "--seed",
    "4",
    "--picture-every",
    "0",
)
SAME = ("--decoder.depth", "2", "--decoder.width", "32", "--decoder.heads", "2")
STILL = ("--optim.lr", "1e-12")
"""A rate at which nothing moves: what is saved at the end is what the run began with."""


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command in this process."""

    def run(*words: object) -> Done:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return Done(status, *capsys.readouterr())

    return run


def said(done: Done) -> str:
    assert done.status == 0, done.err
    return " ".join(done.out.split())


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(max((run / "checkpoints").glob("step-*")) / "model.safetensors")


def test_a_whole_checkpoint_is_trained_further(
    call: Callable[..., Done], photos: Path, tmp_path: Path
):
    out = tmp_path / "run"
    text = said(
        call(
            "pretrain",
            photos,
            "--recipe",
            "mae",
            "--from",
            MAE,
            *SAME,
            *SHORT,
            *STILL,
            "--out",
            out,
        )
    )
    assert "MAE's original code, pretraining" in text
    assert "CC-BY-NC" in text
    assert "goes on with the checkpoint's" in text
    ours, theirs = simmim.load(out, whole=True), simmim.load(MAE, whole=True)
    state = ours.state_dict()
    for name, value in theirs.state_dict().items():
        assert (state[name] - value).abs().max() < 1e-6, name
    assert "CC-BY-NC" in json.loads((out / "encoder.json").read_text())["licence"]
    assert json.loads((out / "encoder.json").read_text())["lineage"]["started_from"] == str(MAE)


def test_where_something_else_is_predicted_the_head_alone_is_new(
    call: Callable[..., Done], photos: Path, tmp_path: Path
):
    out = tmp_path / "run"
    # 2·2·64·3 numbers are as many as the 16·16·3 of the checkpoint's head.
    words = ("--target", "hog", "--target.bins", "64", "--from", MAE, "--out", out)
    words += ("--extra", "layout")
    text = said(call("pretrain", photos, "--recipe", "mae", *SAME, *SHORT, *STILL, *words))
    assert "its head is new, as the checkpoint's predicts pixels" in text
    assert "layout new" in " ".join(text.split())
    assert "simmim reconstruct" not in text
    state = simmim.load(out, whole=True).state_dict()
    theirs = simmim.load(MAE, whole=True).state_dict()
    for name in state.keys() & theirs.keys():
        same = bool((state[name] - theirs[name]).abs().max() < 1e-6)
        assert same != name.startswith("decoder.head."), name


def test_an_encoder_is_fitted_to_other_images_and_each_change_is_told(
    call: Callable[..., Done], tmp_path: Path
):
    folder = tmp_path / "grey"
    folder.mkdir()
    for n in range(40):
        Image.effect_noise((50, 60), 40 + n).save(folder / f"{n}.png")
    out = tmp_path / "run"
    words = ("--from", MAE, "--image-size", "48", "--patch-size", "8", *SHORT, *STILL, "--out", out)
    text = said(call("pretrain", folder, *words))
    assert "channels 3 → 1: the patch projection summed" in text
    assert "patch 16 → 8: the patch projection resampled" in text
    assert "positions 4×4 → 6×6 patches, bicubic" in text
    assert "decoder new" in text
    found, began = open_source(out), open_source(MAE)
    assert found.image_size == (48, 48)
    assert found.pixels.channels == 1
    name = "blocks.2.mlp.fc1.weight"
    assert (found.encoder[name] - began.encoder[name]).abs().max() < 1e-6


def test_the_rate_is_lower_than_for_random_weights_and_its_reason_is_told(
    call: Callable[..., Done], photos: Path, tmp_path: Path
):
    text = said(call("pretrain", photos, "--from", MAE, *SHORT, "--out", tmp_path / "run"))
    assert "0.5 of that for random weights" in text
    rates = [json.loads(row)["lr"] for row in (tmp_path / "run" / "metrics.jsonl").open()]
    assert max(rates) <= 0.5 * 1.5e-4 * 12**2 * (20 / 256) ** 0.5


def test_a_run_stopped_before_its_first_checkpoint_begins_again_from_the_same_weights(
    call: Callable[..., Done], photos: Path, tmp_path: Path
):
    whole = tmp_path / "whole"
    words = ("--recipe", "simmim-paper", "--from", REFERENCE / "simmim_vit.pth", *SHORT)
    text = said(call("pretrain", photos, *words, "--out", whole))
    assert "goes on with the checkpoint's" in text
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints")
    for name in ("encoder.json", "encoder.safetensors", "metrics.jsonl", "report.html"):
        (cut / name).unlink()
    said(call("pretrain", "--resume", cut))
    ours, theirs = weights_of(cut), weights_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "MIT" in json.loads((cut / "encoder.json").read_text())["licence"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--from", MAE, "--model", "vit_tiny_patch16_224"), "contradicts --from"),
        (("--from", MAE, "--image-size", "50"), "is not a multiple of the patch size 16"),
        (("--from", REFERENCE / "simmim_swin.pth"), "--recipe simmim-paper-swin"),
        (("--from", REFERENCE / "index.json"), "is a text file"),
        (("--from", "timm:vit_tiny_patch16_22"), "Did you mean"),
        (("--from", "nowhere"), "there is no such run or file"),
    ],
)
def test_mistakes_leave_nothing_behind(
    call: Callable[..., Done], words: tuple, message: str, photos: Path, tmp_path: Path
):
    done = call("pretrain", photos, *words, *SHORT, "--out", tmp_path / "run")
    assert done.status == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_foreign_checkpoint_reconstructs_embeds_and_is_probed(
    call: Callable[..., Done], photos: Path, tmp_path: Path
):
    grid = tmp_path / "grid.png"
    text = said(call("reconstruct", MAE, photos, "--out", grid))
    assert "12 of 16 patches masked" in text
    with Image.open(grid) as picture:
        assert picture.width > 200
    done = call("reconstruct", tmp_path, photos, "--out", tmp_path / "x.png")
    assert "is no run folder" in done.err
    text = said(call("embed", REFERENCE / "simmim_swin.pth", photos, "--out", tmp_path / "x.npz"))
    assert "100 embeddings of 128 numbers" in text
    text = said(call("probe", REFERENCE / "simmim_vit.pth", photos))
    assert "accuracy" in text
    words = ("--from", MAE, "--image-size", "48", "--epochs", "1", "--workers", "0")
    text = said(call("finetune", photos, *words, "--out", tmp_path / "fine"))
    assert "positions 4×4 → 3×3 patches" in text
    assert "CC-BY-NC" in json.loads((tmp_path / "fine" / "encoder.json").read_text())["licence"]
