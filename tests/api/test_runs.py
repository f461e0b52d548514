"""Whole runs from the command line, as a user would start, stop and use them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from commands import call, start
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import simmim
from simmim.api.pretrain import closing_lines
from simmim.config.run import PretrainConfig
from simmim.config.saved import load as load_config
from simmim.runs.metrics import NAMES
from simmim.tensors.counter import uniform

SMALL = [
    *("--model", "vit_tiny_patch16_224", "--image-size", "32", "--patch-size", "8"),
    *("--arguments", "depth=2,embed_dim=48,num_heads=3"),
    *("--epochs", "8", "--batch-size", "10", "--seed", "3", "--threads", "1"),
    *("--decoder.depth", "1", "--decoder.width", "32", "--optim.lr", "3e-3"),
]


def steps_of(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("step-*"))
    return load_file(newest / "model.safetensors")


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    words = [sys.executable, "-m", "simmim", "pretrain", photos, *SMALL, "--out", out]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"preparing: the images of {photos} are listed and sampled, ")
    assert "simmim embed" in done.stdout  # what one would do next
    return out


def test_the_run_folder_holds_what_it_promises(finished: Path):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        *("config.yaml", "environment.json", "data.json", "metrics.jsonl", "report.html"),
        *("log.txt", "pictures", "checkpoints", "encoder.safetensors", "encoder.json"),
    }
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert steps_of(finished) == list(range(1, 81))
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {name for row in rows for name in row} <= set(NAMES)
    looked = [row for row in rows if "explained" in row]
    assert len(looked) == 10
    assert looked[-1]["explained"] > looked[0]["explained"]
    assert "knn" in looked[-1]  # two class folders
    assert len(list((finished / "checkpoints").iterdir())) == 3
    assert len(list((finished / "pictures").glob("step-*.png"))) == 10


def test_timm_gives_the_same_features(finished: Path, photos: Path):
    card = json.loads((finished / "encoder.json").read_text())
    theirs: nn.Module = timm.create_model(card["model"], **card["arguments"])
    theirs.load_state_dict(load_file(finished / "encoder.safetensors"), strict=True)
    theirs.eval()
    ours = simmim.load(finished)
    assert isinstance(ours, nn.Module)
    paths = sorted(photos.rglob("*.jpg"))[:6]
    images = torch.stack([ours.transform(path) for path in paths])  # type: ignore[operator]
    with torch.no_grad():
        tokens = theirs.forward_features(images)[:, 1:]  # type: ignore[operator]
        torch.testing.assert_close(ours.tokens(images), tokens, atol=1e-5, rtol=0)  # type: ignore
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)
    # The transform is the one that encoder.json tells of.
    image = Image.open(paths[0]).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize(
        (32, 32), Image.Resampling.BILINEAR
    )
    mean, std = np.array(card["mean"]), np.array(card["std"])
    expected = (np.asarray(square) / 255 - mean) / std
    found = images[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).mean() < 0.05


def test_the_whole_model_predicts_and_compares(finished: Path, photos: Path):
    model = simmim.load(finished, whole=True)
    encoder = simmim.load(finished)
    images = torch.stack([encoder.transform(p) for p in sorted(photos.rglob("*.jpg"))[:3]])  # type: ignore
    n = model.grid[0] * model.grid[1]  # type: ignore[operator]
    masked = uniform(0, 1, torch.arange(3), n).argsort(1) < 6  # type: ignore[arg-type]
    with torch.no_grad():
        prediction = model.predict(images, masked)  # type: ignore[operator]
        loss = model.loss(images, masked)  # type: ignore[operator]
    assert prediction.shape == (3, 6, 192)
    x, total, row = images.numpy(), 0.0, [0, 0, 0]
    for b, patch in masked.nonzero().tolist():
        top, left = patch // 4 * 8, patch % 4 * 8
        truth = x[b, :, top : top + 8, left : left + 8].transpose(1, 2, 0).ravel()
        total += ((prediction[b, row[b]].numpy() - truth) ** 2).sum()
        row[b] += 1
    assert loss.item() == pytest.approx(total / (3 * 6 * 192), rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_if_it_had_not_been(photos: Path, tmp_path: Path, precision: str):
    flags = [*SMALL, "--precision", precision, "--picture-every", "0.5", "--tensorboard", "false"]
    flags += ["--target", "pixels,hog", "--target.hog.cell", "4"]
    assert call("pretrain", photos, *flags, "--out", tmp_path / "whole").returncode == 0
    run = tmp_path / "killed"
    words: list[object] = ["pretrain", photos, *flags, "--out", run]
    for wanted in (20, 47):
        process = start(*words)
        deadline = time.monotonic() + 240
        while not (run / "metrics.jsonl").exists() or max(steps_of_torn(run), default=0) < wanted:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        words = ["pretrain", "--resume", run]
    done = call(*words)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stdout
    assert "from step 0 " not in done.stdout
    assert steps_of(run) == list(range(1, 81))
    whole, killed = weights_of(tmp_path / "whole"), weights_of(run)
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def steps_of_torn(run: Path) -> list[int]:
    lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
    return [json.loads(line)["step"] for line in lines]


def test_a_signal_saves_and_tells_how_to_go_on(photos: Path, tmp_path: Path):
    run = tmp_path / "run"
    process = start("pretrain", photos, *SMALL, "--epochs", "1000", "--out", run)
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert f"simmim pretrain --resume {run}" in out
    assert "SIGTERM" in err
    step = int(max((run / "checkpoints").iterdir()).name[5:])
    assert steps_of(run)[-1] == step
    # The rest can be planned anew.
    epochs = step // 10 + 1
    done = call("pretrain", "--resume", run, "--epochs", epochs)
    assert done.returncode == 0, done.stderr
    config, resolved = load_config(run / "config.yaml")
    assert config.epochs == epochs
    assert resolved is not None
    assert steps_of(run) == list(range(1, epochs * 10 + 1))


def test_a_damaged_checkpoint_is_passed_over(finished: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    newest, before, *_ = sorted((run / "checkpoints").iterdir(), reverse=True)
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    done = call("pretrain", "--resume", run)
    assert done.returncode == 0, done.stderr
    assert "passed over" in done.stdout
    assert f"going on from step {int(before.name[5:])} of 80" in done.stdout
    whole, again = weights_of(finished), weights_of(run)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_bad_images_are_skipped_counted_and_listed(photos: Path, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    victim = sorted((data / "dress").iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:200])
    flags = [*SMALL, "--epochs", "2", "--picture-every", "0"]
    done = call("pretrain", data, *flags, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == [f"dress/{victim.name}"]
    assert "1 bad image " in done.stdout
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["bad"] == 1
    # Too many: a run that had started failed.
    for path in sorted((data / "shoes").iterdir())[:30]:
        path.write_bytes(b"not an image")
    done = call("pretrain", data, *flags, "--out", tmp_path / "bad")
    assert done.returncode == 1
    assert "--max-bad" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "bad" / "quarantine.jsonl").exists()
    advice = re.search(r"(--resume \S+ --max-bad [\d.]+\d)", done.stderr)
    assert advice is not None, done.stderr
    assert call("pretrain", *advice[1].split()).returncode == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["/no/such/folder"], ["/no/such/folder"]),
        (["EMPTY"], ["EMPTY", "no image"]),
        (["DATA", "--image-size", "100"], ["100", "16", "96"]),
        (["DATA", "--recipe", "simmim-paper", "--image-size", "80"], ["80", "32"]),
        (["DATA", "--mask.ratio", "60"], ["mask ratio", "60"]),
        (["DATA", "--recipe", "simmin"], ["simmin", "simmim"]),
        (["DATA", "--model", "vit_tinny_patch16_224"], ["vit_tinny", "vit_tiny_patch16_224"]),
        (["DATA", "--model", "resnet50"], ["resnet50", "simmim models"]),
        (["DATA", "--model", "swin_base_patch4_window7_224"], ["swin", "simmim-paper"]),
        (["DATA", "--epoch", "3"], ["--epoch", "--epochs"]),
        (["DATA", "--recipe", "simmim-paper", "--decoder.depth", "2"], ["depth", "linear"]),
        (["DATA", "--out", "TAKEN"], ["TAKEN", "--resume"]),
        (["DATA", "--model", "vit_tiny_patch16_224", "--image-size", "8000"], ["memory"]),
        (["DATA", "--batch-size", "8", "--micro-batch", "9"], ["--micro-batch", "8"]),
    ],
)
def test_mistakes_get_one_clear_message_and_leave_nothing(
    photos: Path, finished: Path, tmp_path: Path, words: list[str], says: list[str]
):
    (tmp_path / "empty").mkdir()
    places = {"DATA": photos, "EMPTY": tmp_path / "empty", "TAKEN": finished}
    words = [str(places.get(word, word)) for word in words]
    if "--out" not in words:
        words += ["--out", str(tmp_path / "deep" / "run")]
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    kept = sorted((str(p), p.stat().st_mtime_ns) for p in finished.rglob("*"))
    done = call("pretrain", *words)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 12
    for text in says:
        assert str(places.get(text, text)) in done.stderr
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    assert sorted((str(p), p.stat().st_mtime_ns) for p in finished.rglob("*")) == kept


def test_a_finished_run_and_the_parts_of_a_split_are_answered_with_what_to_do(
    finished: Path, photos: Path, tmp_path: Path
):
    done = call("pretrain", "--resume", finished)
    assert done.returncode == 0, done.stderr
    assert "steps are done; --epochs or --budget trains longer" in done.stdout
    for part in ("train", "val"):
        shutil.copytree(photos, tmp_path / "split" / part)
    done = call("probe", finished, tmp_path / "split")
    assert done.returncode == 2
    assert f"name one of them as DATA, such as {tmp_path / 'split' / 'train'}" in done.stderr


def test_a_run_that_learned_nothing_says_so(tmp_path: Path):
    metrics = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "explained": 0.2}, {"step": 2, "explained": -0.1}, {"step": 3}]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = PretrainConfig(data=("photos",), tile=64)
    lines = closing_lines(tmp_path, config, tmp_path / "report.html")
    assert lines[0].startswith("under-trained: ")
    assert f"  simmim embed {tmp_path} {tmp_path}/images-0.arrow --out embeddings.parquet" in lines
    metrics.write_text(json.dumps({"step": 400, "explained": 0.2}) + "\n")
    config = PretrainConfig(data=("my photos",))
    lines = closing_lines(tmp_path, config, tmp_path / "report.html")
    assert lines[0].startswith("healthy: ")
    assert f"  simmim reconstruct {tmp_path} 'my photos' --out grid.png" in lines


def test_python_calls(photos: Path, tmp_path: Path):
    run = simmim.pretrain(
        photos,
        recipe="mae",
        model="vit_tiny_patch16_224",
        arguments={"depth": 1},
        image_size=32,
        patch_size=8,
        epochs=1,
        batch_size=10,
        threads=1,
        decoder={"depth": 1, "width": 32, "heads": 2},
        out=tmp_path / "run",
    )
    assert run == tmp_path / "run"
    encoder = simmim.load(run)
    image = np.zeros((40, 60, 3), np.uint8)
    assert encoder(encoder.transform(image)[None]).shape == (1, 192)  # type: ignore[operator]
    with pytest.raises(simmim.ConfigError, match="epochs"):
        simmim.pretrain(photos, epoch=3)
    assert os.environ.get("OMP_WAIT_POLICY") == "PASSIVE"
