import re
from dataclasses import replace
from pathlib import Path

import pytest

from simmim.cli.arguments import Words, parse, split
from simmim.cli.flags import flags_of
from simmim.config.commands import ProbeConfig, ReconstructConfig
from simmim.config.data import ScanConfig
from simmim.config.finetune import ClassifyConfig
from simmim.config.recipes import RECIPES
from simmim.config.run import PretrainConfig
from simmim.errors import ConfigError


def pretrain(*words: str) -> PretrainConfig:
    config = RECIPES["simmim"]()
    return parse("pretrain", split("pretrain", words, flags_of(config)), config)


def command(name: str, config: type, *words: str):
    return parse(name, split(name, words, flags_of(config)), config)


def test_nothing_given_changes_nothing():
    assert pretrain() == RECIPES["simmim"]()


@pytest.mark.parametrize(
    "words",
    [
        ["photos", "--mask.ratio", "0.6", "--batch-size", "64", "--image-size", "96x128"],
        ["--mask.ratio=0.6", "--batch-size=64", "photos", "--image-size=96x128"],
        ["data=photos", "mask.ratio=0.6", "batch_size=64", "image_size=96x128"],
        ["--data", "photos", "--mask-ratio", "0.6", "--batch_size", "64", "--imgsz", "96,128"],
        ["data=photos", "mask_ratio=0.6", "batch-size=64", "encoder.image_size=96×128"],
        ["mask.ratio=0.9", "mask.ratio=0.6", "batch_size=64", "imgsz=96x128", "--", "photos"],
    ],
)
def test_all_dialects_mean_the_same(words: list[str]):
    config = pretrain(*words)
    assert config.data == ("photos",)
    assert config.mask.ratio == 0.6
    assert config.batch_size == 64
    assert config.encoder.image_size == (96, 128)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--target.norm-pix"], True),
        (["--norm_pix_loss"], True),
        (["target.norm_pix=true"], True),
        (["--target.norm-pix", "yes"], True),
        (["--target.no-norm-pix"], False),
        (["--target.norm-pix", "false"], False),
        (["--target.norm-pix=0"], False),
    ],
)
def test_a_switch_is_turned_on_and_off(words: list[str], value: bool):
    assert pretrain(*words).target.norm_pix is value


def test_a_switch_does_not_swallow_the_folder():
    config = pretrain("--no-tensorboard", "photos")
    assert (config.system.tensorboard, config.data) == (False, ("photos",))
    config = pretrain("--tensorboard", "photos")
    assert (config.system.tensorboard, config.data) == (True, ("photos",))


def test_values_of_every_type():
    config = pretrain(
        *["--image-size", "96", "--out", "runs/1", "--from", "timm:vit", "--lr", "1e-3"],
        *["--optim.betas", "0.8", "0.9", "augment.scale=0.3,1", "--optim.no-decay", "vector,mask"],
        *["--arguments", "depth=4,qkv_bias=false,init_values=1e-5", "--epochs", "2", "--workers=0"],
        *["--optim.clip", "none", "--position", "none", "--optim.schedule", "multistep"],
    )
    assert config.encoder.image_size == (96, 96)
    assert config.out == Path("runs/1")
    assert config.init_from == "timm:vit"
    assert config.optim.lr == 1e-3
    assert config.optim.betas == (0.8, 0.9)
    assert config.augment.scale == (0.3, 1.0)
    assert config.optim.no_decay == ("vector", "mask")
    assert config.encoder.arguments == {"depth": 4, "qkv_bias": False, "init_values": 1e-5}
    assert config.epochs == 2
    assert config.system.workers == 0
    assert config.optim.clip is None
    assert config.encoder.position == "none"
    assert config.optim.schedule == "multistep"


@pytest.mark.parametrize("flag", ["micro-batch", "workers", "epochs", "channels", "budget"])
def test_auto_leaves_the_choice_to_simmim(flag: str):
    assert pretrain(f"--{flag}", "auto") == RECIPES["simmim"]()


def test_auto_is_a_precision():
    assert pretrain("--precision", "auto").precision == "auto"


def test_a_folder_may_have_an_equals_sign_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "size=96").mkdir()
    monkeypatch.chdir(tmp_path)
    assert pretrain("size=96").data == ("size=96",)
    assert pretrain("./size=96/photos").data == ("./size=96/photos",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "many"], "--epochs expects a number, got 'many'"),
        (["--epochs"], "--epochs needs a value: a number"),
        (["--epochs", "--seed", "1"], "--epochs needs a value: a number"),
        (["--seed", "1.5"], "--seed expects a whole number, got '1.5'"),
        (["--optim.lr", "nan"], "--optim.lr expects a number, got 'nan'"),
        (["--optim.lr", "inf"], "--optim.lr expects a number, got 'inf'"),
        (["--precision", "fp8"], "--precision expects one of auto, fp32, bf16, fp16, got 'fp8'"),
        (["--tensorboard=maybe"], "--tensorboard expects true or false, got 'maybe'"),
        (["--image-size", "big"], "--image-size expects a side or HEIGHTxWIDTH in pixels"),
        (["--image-size", "1x2x3"], "--image-size expects a side or HEIGHTxWIDTH in pixels"),
        (["--optim.momentum", "1"], "optim.momentum must lie in [0, 1), got 1"),
        (["--optim.matrices", "mask"], "each one of block, weight, got 'mask'"),
        (["--optim.betas", "0.9"], "--optim.betas expects two numbers such as 0.2,1, got '0.9'"),
        (["--optim.no-decay", "all"], "each one of block, weight, vector, position"),
        (["--arguments", "depth"], "--arguments expects settings such as depth=4"),
        (["--out="], "--out expects a path, got ''"),
        (["--epoch", "3"], "has no flag --epoch. Did you mean --epochs?"),
        (["epoch=3"], "has no setting epoch. Did you mean epochs?"),
        (["--ratio", "3"], "Did you mean --mask.ratio or --augment.ratio?"),
        (["--output_folder", "x"], "has no flag --output_folder."),
        (["-e", "3"], "has no flag -e."),
        (["--no-seed"], "has no flag --no-seed."),
        (["a", "b", "--weights", "1,2,3"], "--weights gives 3 shares for 2 sources"),
        (["--mask.ratio", "60"], "mask ratio is the share of the patches to mask"),
        (["--augment.flip", "-0.1"], "augment.flip is a chance from 0 to 1, got -0.1"),
    ],
)
def test_a_mistake_is_named_with_what_was_expected(words: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        pretrain(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_places_and_names_of_values_can_be_mixed():
    expected = ProbeConfig(run="runs/1", data="photos", k=5)
    assert command("probe", ProbeConfig, "runs/1", "photos", "--k", "5") == expected
    assert command("probe", ProbeConfig, "data=photos", "k=5", "runs/1") == expected
    assert command("probe", ProbeConfig, "data=photos", "k=5", "run=runs/1") == expected


def test_several_images_may_be_given():
    config = command("reconstruct", ReconstructConfig, "runs/1", "a.jpg", "b.jpg", "--seed", "3")
    assert config == ReconstructConfig(run="runs/1", images=("a.jpg", "b.jpg"), seed=3)


def test_the_rate_of_fine_tuning_is_its_own():
    config = command("finetune", ClassifyConfig, "photos", "--from", "none", "--lr", "2e-3")
    usual = ClassifyConfig(data=("photos",), init_from="none")
    assert config == replace(usual, optim=replace(usual.optim, lr=2e-3))


@pytest.mark.parametrize(
    ("name", "config", "words", "message"),
    [
        ("probe", ProbeConfig, ["runs/1"], "DATA is missing"),
        ("finetune", ClassifyConfig, ["photos"], "Usage: simmim finetune DATA --from SOURCE"),
        ("reconstruct", ReconstructConfig, ["runs/1"], "IMAGES is missing"),
    ],
)
def test_what_must_be_given_is_asked_for(name: str, config: type, words: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        command(name, config, *words)
    assert message in str(caught.value)


def test_every_flag_has_a_help_text():
    configs = [RECIPES["simmim"](), ClassifyConfig, ProbeConfig, ReconstructConfig]
    for config in configs:
        assert [flag.name for flag in flags_of(config) if not flag.help] == []


@pytest.mark.parametrize("width", [80, 140])
def test_the_help_is_as_wide_as_the_terminal_and_ends_the_command(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as caught:
        parse("x", Words({}, []), ScanConfig, heading="Look [at]\nthem.\n  x y", ask_help=True)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "usage: simmim x DATA [--FLAG VALUE ...]\n\nLook [at] them.\n  x y\n\n  DATA   "
    )
    lines = printed.splitlines()
    assert 0.8 * width < max(map(len, lines)) <= width
    heads = [line for line in lines if re.match(r"\w+: ", line)]
    assert [head.partition(":")[0] for head in heads] == ["usage", "mask", "augment"]
    shown = {match[0] for line in lines if (match := re.search(r"(?<=^  )(--)?[\w.-]+", line))}
    assert shown == {"x", *(flag.shown for flag in flags_of(ScanConfig))}
    assert "  --patch-size N        Side in pixels" in printed
    assert re.search(r"  --mask.rounding half-up\|ceil\|keep-floor\n {24}How", printed)
    assert printed.count("(default: ") == printed.count("(default:")
