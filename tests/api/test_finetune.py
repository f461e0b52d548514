"""A fine-tuning is a run: killed, resumed, shared by processes, reported, loaded with its head."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import call, kill_at, pair
from safetensors.torch import load_file

import simmim
from simmim.cli.main import main
from simmim.config.finetune import FinetuneConfig
from simmim.config.run import PretrainConfig
from simmim.errors import CheckpointError
from simmim.runs.folder import read_config
from simmim.runs.metrics import NAMES

SMALL = [
    *("--from", "none", "--model", "vit_tiny_patch16_224", "--image-size", "32"),
    *("--patch-size", "8", "--arguments", "depth=2,embed_dim=48,num_heads=3"),
    *("--epochs", "4", "--batch-size", "8", "--threads", "1", "--workers", "0"),
    *("--precision", "fp32", "--tensorboard", "false"),
]
CLOCK = ("time", "images_per_s", "data_wait")
"""Columns that differ between two runs of the same bits."""


def finetuned(photos: Path, out: Path, *flags: str) -> Path:
    assert main(["finetune", str(photos), *SMALL, *flags, "--out", str(out)]) == 0
    return out


def rows_of(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {name for row in rows for name in row} <= set(NAMES)
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finetuned") / "whole"
    return finetuned(photos, out, "--drop-path", "0.3", "--keep", "2")


def test_killed_five_times_it_ends_with_the_same_bits(whole: Path, photos: Path, tmp_path: Path):
    run = tmp_path / "killed"
    first = ["finetune", photos, *SMALL, "--drop-path", "0.3", "--keep", "2", "--out", run]
    again = ["finetune", "--resume", run]
    # Before the first checkpoint, then after some, the last of them near the end.
    for step in (2, 9, 17, 25, 38):
        kill_at(step, run, *first)
        first = again
    done = call(*again)
    assert done.returncode == 0, done.stderr
    assert "going on from step " in done.stdout
    assert rows_of(run) == rows_of(whole)
    assert [row["step"] for row in rows_of(run)] == list(range(1, 41))
    for name in ("classifier.safetensors", "checkpoints/step-00000040/optimizer.safetensors"):
        mine, theirs = load_file(run / name), load_file(whole / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    for name in ("predictions.csv", "classes.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_two_processes_give_what_one_gives(photos: Path, tmp_path: Path):
    flags = (
        *("--drop-path", "0", "--epochs", "2", "--ema", "0.9", "--augment.rand-augment", "9"),
        *("--augment.mixup", "0.8", "--augment.cutmix", "1", "--augment.erasing", "0.5"),
    )
    one = finetuned(photos, tmp_path / "one", *flags)
    two = tmp_path / "two"
    words = ["finetune", photos, *SMALL, *flags, "--out", two]
    # gloo's processes may die at exit under load: what they wrote counts.
    with pair(partial(main, [str(word) for word in words])) as both:
        said = [process.communicate() for process in both]
    assert (two / "report.html").exists(), said
    a, b = (load_file(run / "classifier.safetensors") for run in (one, two))
    x, y = (torch.cat([state[name].flatten() for name in sorted(state)]) for state in (a, b))
    assert float((x - y).norm() / x.norm()) < 1e-5
    assert [row["step"] for row in rows_of(two)] == list(range(1, 21))
    for mine, theirs in zip(rows_of(one), rows_of(two), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_the_run_folder_holds_what_it_promises(whole: Path):
    names = {path.name for path in whole.iterdir()}
    assert names >= {
        *("config.yaml", "environment.json", "data.json", "images.json", "metrics.jsonl"),
        *("report.html", "log.txt", "predictions.csv", "classifier.safetensors", "classes.json"),
        *("encoder.safetensors", "encoder.json"),
    }
    assert len(list((whole / "checkpoints").iterdir())) == 2
    looked = [row for row in rows_of(whole) if "accuracy" in row]
    assert len(looked) == 10
    card = json.loads((whole / "encoder.json").read_text())
    assert card["lineage"] == {
        "fine_tuned_from": "none", "step": 40, "steps": 40, "images": 80
    }  # fmt: skip
    page = (whole / "report.html").read_text()
    for text in (
        *("was fine-tuned from random weights on 80 images", "Which class is taken for which"),
        *("Surest and least sure", "Settings", "What to do next", "optim.layer_decay"),
    ):
        assert text in page
    assert page.count("data:image/jpeg") >= 16
    assert "No single images are shown" not in page
    config, resolved = read_config(whole, FinetuneConfig)
    assert resolved is not None
    assert (resolved.steps, resolved.holdout, config.encoder.drop_path) == (40, 20, 0.3)


def test_a_run_is_gone_on_with_by_its_own_command(
    whole: Path, photos: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["pretrain", "--resume", str(whole)]) == 2
    assert "is a run of `simmim finetune`, and not of `simmim pretrain`" in capsys.readouterr().err
    assert main(["finetune", str(photos), *SMALL, "--out", str(whole)]) == 2
    assert f"Go on with it by `simmim finetune --resume {whole}`" in capsys.readouterr().err
    assert main(["finetune", "--resume", str(whole), "--smoothing", "0.2"]) == 2
    assert "--task.smoothing" in capsys.readouterr().err
    with pytest.raises(CheckpointError):
        read_config(whole, PretrainConfig)


def test_in_python_it_returns_its_run_and_the_head_predicts(photos: Path, tmp_path: Path):
    encoder = {"arguments": {"depth": 1, "embed_dim": 48, "num_heads": 3}, "patch_size": 8}
    run = simmim.finetune(
        *(photos,), from_="none", model="vit_tiny_patch16_224", image_size=32, epochs=1,
        batch_size=16, threads=1, workers=0, optim={"lr": 2e-3}, out=tmp_path / "run", **encoder,
    )  # fmt: skip
    assert run == tmp_path / "run"
    said = simmim.load(run, head=True).predict(photos)  # type: ignore[operator, union-attr]
    assert len(said.paths) == 100
    assert set(said.names) <= {"dress", "shoes"}
    classifier = simmim.load(run, head=True)
    image = classifier.transform(photos / said.paths[0])  # type: ignore[operator, union-attr]
    with torch.no_grad():
        logits = classifier(image[None])  # type: ignore[operator]
    expected = torch.from_numpy(said.probabilities[:1])
    torch.testing.assert_close(logits.softmax(1), expected, atol=1e-5, rtol=0)
    assert simmim.resume(run, epochs=2) == run
    assert len(rows_of(run)) == 10
    # Its encoder starts others, and so does the one in a checkpoint.
    newest = max((run / "checkpoints").iterdir())
    tokens = [simmim.load(source).tokens(image[None]) for source in (run, newest)]  # type: ignore
    torch.testing.assert_close(tokens[0], tokens[1])


def test_where_it_fails_decides_the_exit_status(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    val = tmp_path / "val"
    for number, name in enumerate(["dress", "shoes"] * 3):
        (val / name).mkdir(parents=True, exist_ok=True)
        picture = sorted((photos / name).iterdir())[number].read_bytes()
        (val / name / f"{number}.jpg").write_bytes(picture)
    words = ["finetune", str(photos), *SMALL, "--epochs", "1", "--val", str(val)]
    broken = val / "dress" / "0.jpg"
    picture = broken.read_bytes()
    broken.write_bytes(picture[:100])
    assert main([*words, "--out", str(tmp_path / "before")]) == 2
    assert "1 of 6 images tried could not be read" in capsys.readouterr().err
    assert not (tmp_path / "before" / "metrics.jsonl").exists()
    broken.write_bytes(picture)

    from simmim.runs.metrics import Metrics

    update = Metrics.update

    def spoil(metrics: Metrics, row: dict[str, float]) -> None:
        update(metrics, row)
        for file in val.rglob("*.jpg"):
            file.write_bytes(b"")

    monkeypatch.setattr(Metrics, "update", spoil)
    assert main([*words, "--picture-every", "0", "--out", str(tmp_path / "after")]) == 1
    assert "none of the 6 images" in capsys.readouterr().err
    assert (tmp_path / "after" / "classifier.safetensors").exists()
