import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simmim.config.decoder import LinearDecoder, TransformerDecoder
from simmim.config.encoder import EncoderConfig
from simmim.config.mask import RandomMask
from simmim.config.optim import OptimConfig
from simmim.config.recipes import RECIPES
from simmim.config.resolved import PixelFormat, Resolved
from simmim.config.run import PretrainConfig
from simmim.config.saved import dump, load, overlay
from simmim.errors import ConfigError

RESOLVED = Resolved(
    images=10_000,
    holdout=64,
    image_size=(96, 128),
    patch_size=8,
    pixels=PixelFormat(
        channels=1, low=(0.0,), high=(4095.0,), mean=(0.41,), std=(1e-3,), depth="12-bit in 16"
    ),
    batch_size=512,
    micro_batch=64,
    steps=1000,
    precision="bf16",
    threads=2,
    device="cpu",
    why={"batch_size": "the largest power of two: up to images / 16"},
)


def save(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("resolved", [None, RESOLVED])
def test_a_recipe_comes_back_as_it_was_saved(recipe: str, resolved: Resolved, tmp_path: Path):
    config = RECIPES[recipe]()
    assert load(save(tmp_path, dump(config, resolved))) == (config, resolved)


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1) | (
    st.sampled_from(["1e-3", "2026-01-02", "yes", "null", "~", "1_0", "0x1", "a: b", " - ", "#"])
)
numbers = st.floats(1e-12, 1e6)
configs = st.builds(
    PretrainConfig,
    data=st.lists(texts).map(tuple),
    init_from=st.none() | texts,
    encoder=st.builds(
        EncoderConfig,
        model=texts,
        image_size=st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
        arguments=st.dictionaries(texts, st.integers() | numbers | st.booleans() | texts),
    ),
    mask=st.builds(RandomMask, ratio=st.floats(0.01, 0.99), unit=st.none() | st.integers(1, 64)),
    decoder=st.builds(TransformerDecoder, depth=st.integers(1, 9)) | st.just(LinearDecoder()),
    optim=st.builds(OptimConfig, lr=numbers, eps=numbers, clip=st.none() | numbers),
    epochs=st.none() | numbers,
    seed=st.integers(0, 2**63),
)


@settings(max_examples=40, deadline=None)
@given(config=configs)
def test_any_config_comes_back_as_it_was_saved(config: PretrainConfig, tmp_path_factory):
    file = save(tmp_path_factory.getbasetemp(), dump(config))
    assert load(file) == (config, None)


def test_the_file_begins_with_its_format_and_keeps_the_order_of_the_fields():
    lines = dump(RECIPES["mae"]()).splitlines()
    keys = [line.partition(":")[0] for line in lines if not line.startswith(" ")]
    assert keys == ["format", *(field.name for field in dataclasses.fields(PretrainConfig))]
    assert "  betas: [0.9, 0.95]" in lines


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.e-3", ".1e-2", "0.001", "+1e-3"])
def test_numbers_are_read_however_they_are_written(number: str, tmp_path: Path):
    config, _ = load(save(tmp_path, f"format: 1\noptim: {{lr: {number}}}"))
    assert config.optim.lr == 1e-3


def test_a_kind_of_part_brings_its_own_class(tmp_path: Path):
    config, _ = load(save(tmp_path, "format: 1\ndecoder: {kind: linear}"))
    assert config.decoder == LinearDecoder()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: 2", "format 2; this version of simmim reads format 1"),
        ("seed: 1", "has no line `format: 1`"),
        ("format: 1\na: [", "is not YAML"),
        ("format: 1\na: &a [*a]", "is not YAML"),
        ("- 1", "holds no `key: value` lines"),
        ("", "holds no `key: value` lines"),
        ("format: 1\nepoch: 3", "unknown key epoch. Did you mean epochs?"),
        ("format: 1\noptim: {lrr: 1}", "unknown key optim.lrr. Did you mean lr?"),
        ("format: 1\ndecoder: {dept: 1}", "unknown key decoder.dept. Did you mean depth?"),
        ("format: 1\ndecoder: {kind: linear, depth: 1}", "unknown key decoder.depth."),
        ("format: 1\ndecoder: {kind: liner}", "Did you mean linear?"),
        ("format: 1\ndecoder: {kind: [1]}", "decoder.kind is [1]"),
        ("format: 1\ndecoder: 3", "decoder: expected key: value pairs, got 3"),
        ("format: 1\nsystem: 3", "system: expected key: value pairs, got 3"),
        ("format: 1\noptim: {lr: fast}", "optim.lr: expected a number, got 'fast'"),
        ("format: 1\noptim: {lr: .nan}", "optim.lr: expected a number"),
        ("format: 1\noptim: {betas: [0.9]}", "optim.betas.1 is missing"),
        ("format: 1\nseed: 1.5", "seed: expected a whole number, got 1.5"),
        ("format: 1\nseed: true", "seed: expected a whole number, got True"),
        ("format: 1\nprecision: fp8", "precision: expected 'auto', 'fp32', 'bf16' or 'fp16'"),
        ("format: 1\nmask: {ratio: 60}", "mask ratio is the share of the patches"),
        ("format: 1\nresolved: {images: 3}", "resolved.holdout is missing"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(text: str, message: str, tmp_path: Path):
    file = save(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not text"):
        load(tmp_path / "config.yaml")


def test_a_part_of_a_file_changes_only_what_it_names(tmp_path: Path):
    base = RECIPES["mae"]()
    config = overlay(save(tmp_path, "mask: {ratio: 0.5}\nepochs: 3"), base)
    assert config == dataclasses.replace(
        base, mask=dataclasses.replace(base.mask, ratio=0.5), epochs=3.0
    )


def test_a_file_may_name_another_kind_of_part(tmp_path: Path):
    config = overlay(save(tmp_path, "decoder: {kind: linear}"), RECIPES["mae"]())
    assert config.decoder == LinearDecoder()


def test_the_arguments_of_one_model_are_not_mixed_with_those_of_another(tmp_path: Path):
    file = save(tmp_path, "encoder: {model: vit_tiny_patch16_224, arguments: {depth: 3}}")
    config = overlay(file, RECIPES["simmim-paper-swin"]())
    assert config.encoder.arguments == {"depth": 3}


def test_the_folder_of_a_saved_run_is_not_taken_over(tmp_path: Path):
    saved = dataclasses.replace(RECIPES["mae"](), data=("photos",), out=Path("runs/1"))
    config = overlay(save(tmp_path, dump(saved, RESOLVED)), RECIPES["simmim"]())
    assert config == dataclasses.replace(saved, out=None)


def test_a_path_that_no_file_could_keep_is_refused():
    for name in ({"data": ("x\udce9",)}, {"out": Path("x\udce9")}, {"labels": Path("x\udce9")}):
        with pytest.raises(ConfigError, match="bytes that are no UTF-8"):
            PretrainConfig(**name)
