"""Targets side by side against each of them apart."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from simmim.cli.pretrain import parse_pretrain
from simmim.config.kinds import with_part
from simmim.config.recipes import RECIPES
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.config.saved import dump, load, overlay
from simmim.config.target import CombinedTarget, HogTarget, PixelTarget
from simmim.errors import ConfigError
from simmim.evaluate.detail import HoldoutSums
from simmim.models.mim import MaskedImageModel, build_model
from simmim.targets.pixels import Pixels
from simmim.tensors.batch import Batch
from simmim.tensors.mask import Mask

PIXELS, HOG = PixelTarget(norm_pix=True), HogTarget(cell=4)


@pytest.fixture
def model(tiny: PretrainConfig, pixels: PixelFormat) -> MaskedImageModel:
    torch.manual_seed(0)
    both = CombinedTarget(parts=(HOG, PIXELS), weights=(3.0, 0.5))
    return build_model(replace(tiny, target=both), pixels, (32, 48))


def alone(target: PixelTarget | HogTarget, tiny: PretrainConfig, pixels: PixelFormat):
    return build_model(replace(tiny, target=target), pixels, (32, 48)).target


def some(model: MaskedImageModel) -> tuple[Batch, torch.Tensor, Mask]:
    torch.manual_seed(1)
    images = torch.randn(3, 3, 32, 48)
    batch = Batch(images, torch.arange(3))
    return batch, images, model.draw(batch)


def test_loss_and_shares_are_those_of_the_parts(model, tiny, pixels):
    batch, images, mask = some(model)
    prediction = torch.randn(3, mask.count, 108 + 192, requires_grad=True)
    found = model.target.compare(prediction, batch, images, mask)
    (slope,) = torch.autograd.grad(found["loss"], prediction)
    hog, pixel = alone(HOG, tiny, pixels), alone(PIXELS, tiny, pixels)
    first, second = prediction.detach().split([108, 192], -1)
    first.requires_grad_()
    second.requires_grad_()
    a, b = (t.compare(p, batch, images, mask) for t, p in ((hog, first), (pixel, second)))
    assert found["loss"].item() == pytest.approx(3 * a["loss"].item() + 0.5 * b["loss"].item())
    assert found["hog_loss"] == a["loss"]
    assert {k: found[f"pixels_{k}"] for k in ("loss", "loss_sum")} == b
    slopes = [
        torch.autograd.grad(w * v["loss"], p)[0] for w, v, p in ((3, a, first), (0.5, b, second))
    ]
    torch.testing.assert_close(slope, torch.cat(slopes, -1))
    norms = torch.stack([each.flatten(1).norm(dim=1) for each in slopes])
    shares = (norms / norms.sum(0)).mean(1)
    assert found["hog_gradient"].item() == pytest.approx(shares[0].item(), rel=1e-5)
    assert found["pixels_gradient"].item() == pytest.approx(shares[1].item(), rel=1e-5)
    assert not any(value.requires_grad for name, value in found.items() if name != "loss")


def test_without_gradients_there_are_no_shares_of_them(model):
    batch, _, mask = some(model)
    with torch.no_grad():
        found = model(batch, mask)
    assert set(found) == {"loss", "hog_loss", "pixels_loss", "pixels_loss_sum"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shares_in_half_precision_and_however_the_batch_is_cut(model, dtype):
    batch, _, mask = some(model)
    rows = [
        (
            Batch(batch.images[i : i + 1], batch.t[i : i + 1]),
            Mask.given(mask.masked[i : i + 1], mask.grid),
        )
        for i in range(3)
    ]
    with torch.autocast("cpu", dtype):
        whole = model(batch, mask)["hog_gradient"].item()
        cut = [model(*row)["hog_gradient"].item() for row in rows]
    assert 0 < whole < 1
    assert sum(cut) / 3 == pytest.approx(whole, rel=1e-2)


def test_detail_is_that_of_the_pixels(model, tiny, pixels):
    batch, images, mask = some(model)
    other = build_model(replace(tiny, target=PIXELS), pixels, (32, 48))
    state = {k: v[108:] if "head" in k else v for k, v in model.state_dict().items()}
    other.load_state_dict(state)
    details = []
    for each in (model.eval(), other.eval()):
        found = each.target.within(Pixels)
        assert found is not None
        sums = HoldoutSums(each, *found)
        with torch.no_grad():
            sums.add(batch, images, mask)
            loss = each.loss(images, mask.masked).item()
        details.append(sums.detail())
        assert details[-1].loss == pytest.approx(loss)
    assert details[0].explained == pytest.approx(details[1].explained, rel=1e-5)
    assert details[0].explained_blur == pytest.approx(details[1].explained_blur, rel=1e-5)
    assert details[0].within_patch


def test_hog_alone_holds_no_pixels(tiny, pixels):
    assert alone(HOG, tiny, pixels).within(Pixels) is None


def target(*words: str) -> object:
    config = parse_pretrain(["photos", *words])
    assert isinstance(config, PretrainConfig)
    return config.target


def test_kinds_keep_what_the_recipe_says_of_them():
    assert target("--recipe", "mae", "--target", "pixels,hog") == CombinedTarget(
        parts=(PIXELS, HogTarget())
    )
    words = ["--target.hog.cell", "4", "--target.pixels.loss=l1", "target.weights=2,3"]
    assert target("--target=pixels,hog", *words) == CombinedTarget(
        parts=(PixelTarget(loss="l1"), HOG), weights=(2, 3)
    )
    both = with_part(RECIPES["mae"](), "target", "hog,pixels")
    assert with_part(both, "target", "pixels") == RECIPES["mae"]()
    assert with_part(both, "target", "hog,pixels") == both
    weighed = replace(both, target=replace(both.target, weights=(2, 3)))
    assert with_part(weighed, "target", "pixels, hog").target == CombinedTarget(
        parts=(PIXELS, HogTarget()), weights=(3, 2)
    )


def test_weights_are_those_usual_for_the_kinds():
    assert CombinedTarget(parts=(HOG, PIXELS)).weighed == {"hog": 10, "pixels": 1}


def test_a_combined_target_comes_back_as_it_was_saved(tmp_path: Path):
    file = tmp_path / "config.yaml"
    for weights in (None, (1.0, 2.5)):
        config = PretrainConfig(target=CombinedTarget(parts=(HOG, PIXELS), weights=weights))
        file.write_text(dump(config))
        assert load(file) == (config, None)
        assert overlay(file, RECIPES["mae"]()).target == config.target


def test_a_file_may_name_kinds_and_the_recipe_gives_their_values(tmp_path: Path):
    file = tmp_path / "part.yaml"
    file.write_text("target: {parts: [{kind: pixels}, {kind: hog, cell: 4}]}")
    both = overlay(file, RECIPES["mae"]())
    assert both.target == CombinedTarget(parts=(PIXELS, HOG))
    file.write_text("target: {weights: [1, 2]}")
    assert overlay(file, both).target == CombinedTarget(parts=(PIXELS, HOG), weights=(1, 2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--target pixels,hgo", "--target hgo: there is no such target. Did you mean hog?"),
        ("--target combined", "there is no such target. Known: pixels, hog."),
        ("--target pixels,pixels", "the target pixels is given 2 times"),
        ("--target pixels,hog --target.weights 1", "gives 1 weights for 2 targets (pixels, hog)"),
        ("--target pixels,hog --target.weights 1,-1", "target.weights must be above 0"),
        ("--target.weights 1,2", "is a flag of the pixels,hog target"),
        ("--target pixels,hog --target.norm-pix true", "has the pixels,hog target, which has"),
        ("--target hog --target.cell 0", "hog: cell must be above 0, got 0."),
    ],
)
def test_what_cannot_be_combined_is_refused(words: str, message: str):
    with pytest.raises(ConfigError) as caught:
        target(*words.split())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: hgo", "target.kind is 'hgo', known: pixels, hog, combined. Did you mean hog?"),
        ("kind: combined", "target.parts: expected a list, got None."),
        ("parts: [{kind: pixels}, {kind: hgo}]", "target.parts.1.kind is 'hgo'"),
        ("parts: [{kind: pixels}, {cell: 4}]", "target.parts.1.kind is missing"),
        ("parts: [{kind: pixels}, {kind: hog, cel: 4}]", "unknown key target.parts.1.cel. Did you"),
        ("parts: [{kind: pixels}, {kind: hog, cell: a}]", "target.parts.1.cell: expected a whole"),
        ("parts: [{kind: hog}, {kind: hog}]", "the target hog is given 2 times"),
        ("parts: [{kind: pixels}, {kind: hog}]\n  weights: [1]", "gives 1 weights for 2 targets"),
        ("weights: [1, 2]", "unknown key target.weights."),
    ],
)
def test_a_file_is_answered_by_what_is_wrong_in_it(text: str, message: str, tmp_path: Path):
    file = tmp_path / "part.yaml"
    file.write_text(f"target:\n  {text}\n")
    with pytest.raises(ConfigError) as caught:
        overlay(file, RECIPES["mae"]())
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(file))
