"""Few labels, unequal classes and frozen blocks, from the command line to the same bits again."""

import csv
from pathlib import Path

import pytest
import torch
from api.test_finetune import SMALL, finetuned, rows_of
from commands import went_on_from
from safetensors.torch import load_file

from simmim.cli.main import main
from simmim.runs.images import open_images
from simmim.tasks.classifier import load_classifier


def test_what_is_drawn_and_frozen_is_told_and_the_same_when_a_run_goes_on(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = (
        *("--shots", "12", "--freeze", "1", "--drop-path", "0.5", "--keep", "20"),
        *("--task.weights", "balanced", "--task.sampling", "balanced"),
    )
    run = finetuned(photos, tmp_path / "whole", *flags)
    said = " ".join(capsys.readouterr().out.split())
    assert "24 to learn from, 20 to measure on" in said
    assert "24 of 80 images are learned from: 12 of each class (--shots), by --seed 0" in said
    assert "all classes come as often (--task.sampling)" in said
    assert "of the encoder's" in said
    labels = [label for _, label in open_images(run).labelled]
    assert labels[:24] == [0] * 12 + [1] * 12
    again = went_on_from(5, run, tmp_path / "again")
    for name in ("classifier.safetensors", "checkpoints/step-00000012/optimizer.safetensors"):
        mine, theirs = load_file(run / name), load_file(again / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert not any("blocks.0." in key or "patch_embed" in key for key in mine)  # of the optimizer


def test_low_rank_updates_alone_learn_and_end_in_an_ordinary_encoder(photos: Path, tmp_path: Path):
    still = finetuned(photos, tmp_path / "still", "--freeze", "all")
    flags = ("--lora", "2", "--optim.lr", "0.1", "--keep", "20", "--shots", "12")
    run = finetuned(photos, tmp_path / "low", *flags)
    again = went_on_from(5, run, tmp_path / "again")
    before, after, resumed = (
        load_file(each / "encoder.safetensors") for each in (still, run, again)
    )
    assert before.keys() == after.keys()
    moved = [
        after[name] - before[name] for name in after if not torch.equal(after[name], before[name])
    ]
    assert len(moved) == 2 * 4  # of each block: to queries, keys and values, out, in, out
    assert all(torch.linalg.matrix_rank(each, rtol=1e-3) == 2 for each in moved)
    assert all(torch.equal(after[name], resumed[name]) for name in after)


def test_flags_that_mean_nothing_in_a_run_are_answered(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for flags, message in (
        (["--shots", "0"], "--shots must be above 0"),
        (["--label-fraction", "1.5"], "--label-fraction is a share of the labels"),
        (["--freeze", "3"], "the encoder has 2 blocks"),
        (["--freeze", "1", "--lora", "2"], "leave --freeze out"),
        (
            ["--task", "detect", "--shots", "3"],
            "--shots has no meaning in this run (--task detect)",
        ),
    ):
        words = ["finetune", str(photos), *SMALL, *flags, "--out", str(tmp_path / "none")]
        assert main(words) == 2
        assert message in capsys.readouterr().err


def test_all_that_is_done_to_images_and_weights_is_the_same_when_a_run_goes_on(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = (
        *("--ema", "0.9", "--augment.rand-augment", "9", "--augment.erasing", "0.5"),
        *("--augment.mixup", "0.8", "--augment.cutmix", "1", "--drop-path", "0.2", "--keep", "20"),
        *("--epochs", "2"),
    )
    run = finetuned(photos, tmp_path / "whole", *flags)
    said = " ".join(capsys.readouterr().out.split())
    for row in ("RandAugment 9", "erasing 0.5", "mixup, cutmix 0.8, 1", "average 0.9 --ema"):
        assert row in said
    again = went_on_from(10, run, tmp_path / "again")
    for name in ("classifier.safetensors", "checkpoints/step-00000020/model.safetensors"):
        mine, theirs = load_file(run / name), load_file(again / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    # The average is what is measured and kept, and not the weights that are trained.
    saved = mine
    kept = load_file(run / "classifier.safetensors")
    assert torch.equal(kept["head.weight"], saved["average.head.weight"])
    assert not torch.equal(kept["head.weight"], saved["trained.head.weight"])
    found = load_classifier(run).predict(photos)
    rows = list(csv.DictReader((run / "predictions.csv").open(newline="")))
    told = dict(zip(found.paths, found.names, strict=True))
    assert [told[row["path"]] for row in rows] == [row["prediction"] for row in rows]
    share = sum(row["label"] == row["prediction"] for row in rows) / len(rows)
    assert rows_of(run)[-1]["accuracy"] == pytest.approx(share)

    words = ["finetune", str(photos), *SMALL, "--augment.mixup", "1", "--batch-size", "7"]
    assert main([*words, "--out", str(tmp_path / "odd")]) == 2
    assert "must be even" in capsys.readouterr().err
