from dataclasses import replace
from pathlib import Path

import pytest

from simmim.cli.checks import check_encoder
from simmim.cli.flags import flags_of, metavar, show
from simmim.cli.pretrain import Resume, parse_pretrain
from simmim.config.decoder import LinearDecoder
from simmim.config.recipes import RECIPES
from simmim.config.run import PretrainConfig
from simmim.config.saved import dump
from simmim.errors import ConfigError

FLAGS = Path(__file__).with_name("pretrain_flags.txt")


def pretrain(*words: str) -> PretrainConfig:
    config = parse_pretrain(words)
    assert isinstance(config, PretrainConfig)
    return config


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_pretrain(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_flags_are_those_that_were_promised():
    """A changed default or name is a change for users: then change the file, and the changelog."""
    lines = [
        f"{flag.shown} {metavar(flag)} {show(flag.default)}" for flag in flags_of(PretrainConfig())
    ]
    assert lines == FLAGS.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_the_default(recipe: str):
    assert pretrain("photos", "--recipe", recipe) == replace(RECIPES[recipe](), data=("photos",))
    assert pretrain(f"method={recipe}") == RECIPES[recipe]()


def test_flags_change_a_recipe_wherever_they_stand():
    config = pretrain("--mask.ratio", "0.5", "photos", "--recipe", "mae")
    assert config.mask == replace(RECIPES["mae"]().mask, ratio=0.5)
    assert config.target.norm_pix


def test_a_part_can_be_swapped():
    config = pretrain("--recipe", "mae", "--decoder", "linear", "--mask", "random")
    assert config == replace(RECIPES["mae"](), decoder=LinearDecoder())
    assert pretrain("recipe=mae", "decoder.kind=linear") == config


def test_a_flag_of_a_part_that_was_not_chosen_names_the_one_that_was():
    message = refusal("--recipe", "simmim-paper", "--decoder.depth", "4")
    assert "--decoder.depth is a flag of the transformer decoder" in message
    assert "(simmim-paper) has the linear decoder, which has no flags" in message
    assert "Choose another: --decoder transformer." in message
    chosen = pretrain("--recipe=simmim-paper", "--decoder.depth=4", "--decoder=transformer")
    assert chosen.decoder.depth == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "mea"], "there is no such recipe. Did you mean mae?"),
        (["--decoder", "transfomer"], "Did you mean transformer?"),
        (["--mask", "lines"], "there is no such mask. Known: random, block."),
        (["--epochs", "3", "--budget", "2h"], "both set the length"),
        (["--budget", "2 weeks"], "is not a time"),
        (["--config", "none.yaml"], "cannot read none.yaml"),
    ],
)
def test_an_unknown_choice_is_answered_with_the_nearest(words: list[str], message: str):
    assert message in refusal(*words)


def test_a_file_gives_the_defaults_and_flags_change_them(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    saved = replace(RECIPES["mae"](), data=("photos",), out=Path("runs/1"), epochs=3.0)
    file.write_text(dump(saved))
    assert pretrain("--config", str(file), "--seed", "7") == replace(saved, out=None, seed=7)


def test_a_file_may_hold_a_few_settings(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("mask: {ratio: 0.3}\n")
    config = pretrain("--config", str(file), "--recipe", "mae")
    assert config == replace(RECIPES["mae"](), mask=replace(RECIPES["mae"]().mask, ratio=0.3))


def test_a_resume_takes_the_length_and_what_does_not_affect_the_result():
    assert parse_pretrain(["--resume", "runs/1"]) == Resume(Path("runs/1"), {})
    given = ["--epochs", "20", "--num-workers", "2", "--no-tensorboard", "save_minutes=1"]
    assert parse_pretrain(["--resume", "runs/1", *given]) == Resume(
        Path("runs/1"),
        {"epochs": 20.0, "workers": 2, "tensorboard": False, "save_minutes": 1.0},
    )
    assert parse_pretrain(["resume=runs/1", "budget=2h"]) == Resume(
        Path("runs/1"), {"budget": "2h"}
    )
    for written in (["--optim.lr", "1e-4"], ["--lr=1e-4"], ["optim.lr=1e-4"]):
        assert parse_pretrain(["--resume", "r", *written]) == Resume(Path("r"), {"lr": 1e-4})


def test_a_folder_whose_name_looks_like_a_flag_is_printed_so_that_it_can_be_pasted():
    here = Path.cwd() / "-a run"
    assert parse_pretrain(["--resume", "./-a run"]) == Resume(here, {})
    assert parse_pretrain(["photos", "--out", "./-a run"]) == replace(
        PretrainConfig(), data=("photos",), out=here
    )


@pytest.mark.parametrize(
    "word", ["mask.ratio=0.5", "seed=1", "recipe=mae", "photos", "out=x", "batch_size=32"]
)
def test_a_resume_refuses_all_else(word: str):
    message = refusal("--resume", "runs/1", word)
    assert f"{word.partition('=')[0].replace('_', '-')} cannot be given with --resume" in message
    assert "--optim.lr, --epochs, --budget, --max-bad, --workers" in message


def test_a_resume_takes_one_length():
    assert "both set the length" in refusal("--resume", "x", "--epochs", "2", "--budget", "1h")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_fits_its_own_model(recipe: str):
    check_encoder(RECIPES[recipe]())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "vit_smal_patch16_224"], "Did you mean vit_small_patch16_224"),
        (["--image-size", "100"], "not a multiple of the patch size 16; the nearest that is: 96"),
        (["--image-size", "96", "--patch-size", "7"], "not a multiple of the patch size 7"),
        (["--image-size", "96", "--mask.unit", "24"], "mask unit 24 is not a multiple"),
        (["--image-size", "16"], "has one patch"),
        (["--model", "swin_base_patch4_window7_224"], "Use --recipe simmim-paper-swin"),
        (["--recipe", "simmim-paper-swin", "--image-size", "200"], "is not a multiple of"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_heavy_is_loaded(words: list[str], message: str):
    config = pretrain(*words)
    with pytest.raises(ConfigError) as caught:
        check_encoder(config)
    assert message in str(caught.value)


def test_the_weights_tag_of_a_model_name_is_no_mistake():
    check_encoder(pretrain("--model", "vit_small_patch16_224.augreg_in21k"))
