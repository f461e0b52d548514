"""The presets have the published numbers, and say so."""

import re
import shlex
from pathlib import Path

import pytest

import simmim
from simmim.cli.finetune import parse_finetune
from simmim.cli.main import main
from simmim.config.finetune import ClassifyConfig, DetectConfig, SegmentConfig
from simmim.config.object_presets import OBJECT_PRESETS
from simmim.config.presets import PRESETS
from simmim.config.scene_presets import SCENE_PRESETS
from simmim.errors import ConfigError
from simmim.training.schedule import Schedule

IMAGES = 1_281_167
PUBLISHED = {
    # epochs, warm-up, rate, per so many images, batch, layer decay, drop path, top-1
    "simmim-vit-b": (100, 20, 1.25e-3, 512, 2048, 0.65, 0.1, "83.8"),
    "simmim-swin-b": (100, 20, 1.25e-3, 512, 2048, 0.8, 0.1, "84"),
    "simmim-swin-l": (100, 20, 1.25e-3, 512, 2048, 0.7, 0.2, "85.4"),
    "mae-vit-b": (100, 5, 5e-4, 256, 1024, 0.65, 0.1, "83.66"),
    "mae-vit-l": (50, 5, 1e-3, 256, 1024, 0.75, 0.2, "85.95"),
    "mae-vit-h": (50, 5, 1e-3, 256, 1024, 0.75, 0.3, "86.93"),
    "beit-b": (100, 20, 4e-3, 1024, 1024, 0.65, 0.1, "83.7"),
    "beit-l": (50, 5, 1e-3, 1024, 1024, 0.75, 0.2, "86"),
}
DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"
PAGE = DOCS.with_name("segment.md")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_trains_as_was_published(name: str, capsys: pytest.CaptureFixture[str]):
    epochs, warmup, rate, per, batch, layer_decay, drop_path, accuracy = PUBLISHED[name]
    words = shlex.split(PRESETS[name].command(name))
    assert words[:2] == ["simmim", "finetune"]
    config = parse_finetune(words[2:])
    assert isinstance(config, ClassifyConfig)
    config = config.fitted(IMAGES, plain=True)
    augment = config.augment
    assert (augment.rand_augment, augment.erasing, augment.mixup, augment.cutmix) == (
        9,
        0.25,
        0.8,
        1,
    )
    assert (config.batch_size, config.epochs) == (batch, epochs)
    assert (config.optim.layer_decay, config.encoder.drop_path) == (layer_decay, drop_path)
    assert (config.optim.betas, config.optim.weight_decay) == ((0.9, 0.999), 0.05)
    assert config.task.smoothing == 0.1
    steps = epochs * IMAGES // batch
    plan = Schedule.plan(config.optim, batch, steps, IMAGES / batch)
    assert plan.peak == pytest.approx(rate * batch / per)
    assert plan.warmup == pytest.approx(warmup * IMAGES / batch, abs=1)
    last = {"simmim": 2.5e-7 * batch / 512, "beit": 1e-6, "mae": 0.0}[name.partition("-")[0]]
    assert plan.rate(steps) == pytest.approx(last, abs=1e-12)

    (row,) = re.findall(rf"^\| `{name}` \|(.+)\|$", DOCS.read_text(), re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[:5] == [
        *(f"{epochs}, {warmup}", f"{plan.peak:g} ({batch})", f"{layer_decay:g}", f"{drop_path:g}"),
        "none" if config.optim.clip is None else f"{config.optim.clip:g}",
    ]
    assert cells[5:7] == [f"{last:g}", f"{accuracy} %"]
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    assert f"{accuracy} %, arXiv:" in said
    assert PRESETS[name].command(name) in said


SCENES = {
    # rate, layer decay, drop path, weight decay, side, channels, mean IoU
    "mae-vit-b": (1e-4, 0.65, 0.1, 0.05, 512, 768, "48.1"),
    "mae-vit-l": (1e-4, 0.75, 0.2, 0.05, 512, 1024, "53.6"),
    "beit-b": (3e-5, 0.9, 0.1, 0.05, 640, 768, "53.6"),
    "beit-l": (2e-5, 0.95, 0.2, 0.05, 640, 1024, "56.7"),
    "simmim-swin-b": (6e-5, 1.0, 0.3, 0.01, 512, 512, "48.1"),
}


def test_a_preset_of_scenes_trains_as_was_published(capsys: pytest.CaptureFixture[str]):
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    assert list(SCENES) == list(SCENE_PRESETS)
    for name, (rate, decay, drop_path, weight_decay, side, width, miou) in SCENES.items():
        preset = SCENE_PRESETS[name]
        config = parse_finetune(shlex.split(preset.command(name))[2:])
        assert isinstance(config, SegmentConfig)
        steps = round((config.epochs or 0) * 20_210 / 16)
        assert (steps, config.batch_size) == (160_000, 16)
        plan = Schedule.plan(config.optim, 16, steps, 20_210 / 16)
        assert plan.warmup == 1_500
        assert plan.peak == pytest.approx(rate)
        middle = 1_500 + (160_000 - 1_500) // 2
        assert plan.rate(middle) == pytest.approx(rate / 2, rel=1e-4)
        assert (config.optim.layer_decay, config.encoder.drop_path) == (decay, drop_path)
        assert (config.optim.weight_decay, config.optim.clip) == (weight_decay, None)
        assert config.encoder.image_size == (side, side)
        assert (config.task.head, config.task.width) == ("upernet", width)
        assert (config.task.ignore, config.task.dice) == (0, 0)
        (row,) = re.findall(rf"^\| `{name}` \|(.+)\|$", PAGE.read_text(), re.MULTILINE)
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[:6] == [
            *(f"{rate:g}", f"{decay:g}", f"{drop_path:g}", f"{weight_decay:g}", str(side)),
            f"{miou} %",
        ]
        assert f"mean IoU {miou} %" in said
        assert preset.command(name) in said
    assert main(["recipes", "show", "beit-l", "--task", "segment"]) == 0
    assert "layer_decay: 0.95" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "layer_decay", "drop_path", "box", "mask"),
    [
        ("vitdet-mae-vit-b", 0.7, 0.1, "51.6", "45.9"),
        ("vitdet-mae-vit-l", 0.8, 0.4, "55.5", "49.2"),
    ],
)
def test_a_preset_of_coco_trains_as_was_published(
    name: str,
    layer_decay: float,
    drop_path: float,
    box: str,
    mask: str,
    capsys: pytest.CaptureFixture[str],
):
    config = parse_finetune(shlex.split(OBJECT_PRESETS[name].command(name))[2:])
    assert isinstance(config, DetectConfig)
    assert (config.task.detector, config.task.window) == ("mask-rcnn", 14)
    assert (config.encoder.image_size, config.encoder.drop_path) == ((1024, 1024), drop_path)
    assert config.augment.zoom == (0.1, 2)
    assert (config.optim.betas, config.optim.weight_decay) == ((0.9, 0.999), 0.1)
    assert "relative" not in config.optim.no_decay
    assert (config.optim.layer_decay, config.optim.clip) == (layer_decay, None)
    assert (config.epochs, config.batch_size) == (100, 64)
    steps = 184_375
    plan = Schedule.plan(config.optim, 64, steps, steps / 100)
    assert plan.peak == pytest.approx(1e-4)
    assert plan.warmup == 250
    assert plan.rate(160_000) == plan.peak
    assert plan.rate(steps - 1) == pytest.approx(1e-5)
    (row,) = re.findall(rf"^\| `{name}` \|(.+)\|$", DOCS.read_text(), re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[:4] == [f"{layer_decay:g}", f"{drop_path:g}", f"{box} %", f"{mask} %"]
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    assert f"{box} % AP of boxes, {mask} % of masks, arXiv:" in said
    assert OBJECT_PRESETS[name].command(name) in said
    assert main(["recipes", "show", name, "--batch-size", "8"]) == 0
    shown = capsys.readouterr().out
    assert "window: 14" in shown
    assert "batch_size: 8" in shown


def test_flags_change_a_preset_and_what_is_missing_is_told(capsys: pytest.CaptureFixture[str]):
    words = ["photos", "--preset", "mae-vit-l", "--from", "w.pth"]
    changed = parse_finetune([*words, "--epochs", "3", "--augment.mixup", "0", "--shots", "2"])
    assert isinstance(changed, ClassifyConfig)
    assert (changed.epochs, changed.augment.mixup, changed.augment.cutmix) == (3, 0, 1)
    assert (changed.shots, changed.data, changed.init_from) == (2, ("photos",), "w.pth")
    assert changed.optim.layer_decay == 0.75
    for more, message in (
        (["photos", "--preset", "mae-vit-l"], "--from is missing"),
        (["photos", "--preset", "mae-vit-x", "--from", "w"], "Did you mean mae-vit-"),
        ([*words, "--task", "detect"], "is of --task classify or --task segment, not of detect"),
        (["a", "--preset", "mae-vit-h", "--task", "segment"], "Of segment there are mae-vit-b"),
        (["a.json", "--preset", "vitdet-mae-vit-b", "--from", "w"], "is of --task detect, not of"),
        ([*words, "--task.detector", "fcos"], r"this run \(--preset mae-vit-l\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_finetune(more)
    with pytest.raises(ConfigError, match="not of regress"):
        simmim.finetune("photos", from_="none", task="regress", preset="beit-b")
    assert main(["recipes", "show", "mae-vit-h", "--epochs", "7"]) == 0
    shown = capsys.readouterr().out
    assert "drop_path: 0.3" in shown
    assert "epochs: 7.0" in shown
