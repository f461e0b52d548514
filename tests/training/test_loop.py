"""The loop on real photos: splits, resumes, bad gradients, parts with weights."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from setting import Setting
from torch import Tensor, nn

from simmim.config.optim import OptimConfig
from simmim.config.recipes import RECIPES
from simmim.config.resolved import PixelFormat
from simmim.config.target import PixelTarget
from simmim.models.decoders import build_decoder
from simmim.models.encoder import Encoder
from simmim.models.mim import MaskedImageModel, build_model, parts_for
from simmim.runs.checkpoints import Checkpoints, read_checkpoint
from simmim.targets.pixels import Pixels
from simmim.tasks.pretrain import PretrainTask
from simmim.tensors.batch import Batch
from simmim.tensors.mask import Mask, pick
from simmim.training.loop import Plan
from simmim.training.optim import parameter_groups
from simmim.training.resolve import activation_bytes, module_bytes
from simmim.training.schedule import Schedule


def distance(a: nn.Module, b: nn.Module) -> float:
    x, y = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (a, b))
    return float((x - y).norm() / x.norm())


def test_the_result_does_not_depend_on_how_the_batch_is_cut(setting: Setting):
    tasks, calls = {}, {}
    for micro in (12, 5, 1):
        task = tasks[micro] = setting.task()
        calls[micro] = 0

        def count(*_args, micro=micro) -> None:
            calls[micro] += torch.is_grad_enabled()  # looks at a model are none of its steps

        task.model.register_forward_hook(count)
        setting.run(task, 10, micro=micro)
    assert calls == {12: 10, 5: 30, 1: 120}
    assert distance(tasks[12].model, setting.task().model) > 1e-2  # it moved
    assert distance(tasks[12].model, tasks[5].model) < 1e-5
    assert distance(tasks[12].model, tasks[1].model) < 1e-5


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "adamw"), ("bf16", "muon")])
def test_a_resumed_run_ends_with_the_same_bits(setting: Setting, tmp_path: Path, precision, kind):
    encoder = replace(setting.config.encoder, drop_path=0.3)
    setting.config = replace(setting.config, encoder=encoder)
    plan = Plan(
        steps=20,
        batch_size=12,
        epoch=100 / 12,
        optim=replace(setting.config.optim, kind=kind),
        precision=precision,
        seed=0,
        look_every=0,
    )
    whole = setting.task()
    rows = setting.run(whole, 20, plan=plan)

    class KilledError(Exception):
        pass

    # Cut in mid-epoch, at an epoch's last batch (step 9 starts the second), and near the end.
    for cut in (3, 8, 9, 19):
        checkpoints = Checkpoints(tmp_path / str(cut), keep=2)

        def stop(step: int, cut=cut) -> None:
            if step >= cut:
                raise KilledError

        with pytest.raises(KilledError):
            setting.run(
                setting.task(),
                20,
                plan=replace(plan, save_minutes=0),
                checkpoints=checkpoints,
                on_save=stop,
            )
        newest = checkpoints.newest(print)
        assert newest is not None
        assert newest.step == cut
        resumed = setting.task()
        tail = setting.run(resumed, 20, plan=plan, resume=newest)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name]), (cut, name)
        assert [r["loss"] for r in tail] == [r["loss"] for r in rows[cut:]]


class TaughtPixels(Pixels):
    """Pixels and, of a teacher that follows the encoder, features; and a weight of no use."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(PixelTarget(), 8, 3)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.of_no_use = nn.Parameter(torch.zeros(3))
        self.register_buffer("momentum", torch.zeros(()))
        self.outputs += encoder.width

    def values(self, batch: Batch, images: Tensor, mask: Mask) -> Tensor:
        assert len(set(batch.t.tolist())) == len(images)  # reads values, as a look-up would
        features = pick(self.teacher.features(images).patches, mask.masked_index)
        return torch.cat([super().values(batch, images, mask), features], -1)

    def after_step(self, step: int, steps: int, model) -> None:
        self.momentum.fill_(1 - 0.5 * step / steps)
        pairs = zip(self.teacher.parameters(), model.encoder.parameters(), strict=True)
        for mine, theirs in pairs:
            mine.lerp_(theirs, 1 - float(self.momentum))


def test_a_part_with_weights_is_counted_saved_and_goes_on(setting: Setting, tmp_path: Path):
    def taught() -> PretrainTask:
        model = setting.task().model
        target = TaughtPixels(model.encoder)
        parts = parts_for(model.encoder, model.pixels)
        decoder = build_decoder(setting.config.decoder, parts, target.outputs)
        return PretrainTask(
            MaskedImageModel(
                model.encoder, decoder, target, model.sampler, model.pixels, reads="visible"
            )
        )

    before, whole = taught().model, taught()
    saved, trained = module_bytes(before)
    teacher = sum(p.nbytes for p in before.encoder.parameters())
    assert saved == trained + teacher + before.target.momentum.nbytes
    batch = Batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.arange(2))
    assert activation_bytes(taught(), batch, torch.device("cpu"), "fp32") > 100_000
    checkpoints = Checkpoints(tmp_path, keep=2)
    plan = Plan(
        steps=6, batch_size=12, epoch=8, optim=setting.config.optim, precision="fp32", seed=0
    )
    setting.run(whole, 6, plan=replace(plan, save_minutes=0), checkpoints=checkpoints)
    resumed = taught()
    setting.run(resumed, 6, plan=plan, resume=read_checkpoint(tmp_path / "step-00000005"))
    state = resumed.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert state["target.momentum"] == 0.5
    assert distance(whole.model.target.teacher, before.target.teacher) > 1e-3


def test_looking_changes_nothing(setting: Setting):
    plain, watched = setting.task(), setting.task()

    def look(step: int) -> dict[str, float]:
        assert not torch.is_grad_enabled()
        assert not watched.model.training
        torch.rand(step)
        return {"seen": float(step)}

    setting.run(plain, 10)
    rows = setting.run(watched, 10, looks=[look])
    assert [row["seen"] for row in rows] == list(range(1, 11))
    assert distance(plain.model, watched.model) == 0


def test_a_picture_that_cannot_be_written_stops_nothing(setting: Setting):
    def look(step: int) -> dict[str, float]:
        raise OSError(28, "No space left on device", f"step-{step}.png")

    rows = setting.run(setting.task(), 4, looks=[look])
    assert [row["step"] for row in rows if "step" in row] == [1, 2, 3, 4]
    last = [row["note"] for row in rows if "note" in row][-1]
    assert str(last).endswith("No space left on device: 'step-4.png'. Training goes on.")


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped(setting: Setting):
    task = setting.task()
    honest = task.loss

    def poisoned(batch: Batch) -> dict[str, Tensor]:
        losses = honest(batch)
        if int(batch.t[0]) == 24:  # the third step
            losses["loss"] = losses["loss"] * float("nan")
        return losses

    task.loss = poisoned  # type: ignore[method-assign]
    rows = setting.run(task, 6)
    assert [row["skipped"] for row in rows] == [0, 0, 1, 0, 0, 0]
    assert all(p.isfinite().all() for p in task.model.parameters())


def test_explained_by_training_on_real_photos_rises(setting: Setting):
    rows = setting.run(setting.task(), 60)
    first, last = (sum(r["loss"] for r in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last < 0.8 * first


@pytest.mark.parametrize("recipe", ["simmim", "mae", "simmim-paper", "simmim-paper-swin"])
def test_roles_decay_what_each_recipe_decays(recipe: str, pixels: PixelFormat):
    config = RECIPES[recipe]()
    small = {"depths": (1, 1, 1, 1)} if "swin" in recipe else {"depth": 1}
    arguments = {**config.encoder.arguments, **small}
    config = replace(config, encoder=replace(config.encoder, arguments=arguments))
    model = build_model(config, pixels, config.encoder.image_size or (224, 224))
    groups = parameter_groups(model, model.roles(), config.optim)
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    free = {name for group in groups if not group["weight_decay"] for name in group["names"]}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert decayed | free == trained
    shapes = {name: p.ndim for name, p in model.named_parameters()}
    assert not any(shapes[name] == 1 for name in decayed)
    special = {n for n in trained if shapes[n] > 1 and not n.endswith("weight")}
    expected = {
        # FACTS of the papers' code: which of the tokens and tables decay.
        "simmim": set(),
        "mae": {n for n in special if "token" in n},
        "simmim-paper": {n for n in special if "mask_token" in n or "tables" in n},
        "simmim-paper-swin": set(),
    }[recipe]
    assert special & decayed == expected
    assert special


def test_the_rate_is_the_published_schedule():
    config = OptimConfig(lr=1.5e-4, warmup_epochs=40)
    schedule = Schedule.plan(config, 4096, steps=800 * 100, epoch=100)
    assert schedule.peak == pytest.approx(2.4e-3)
    assert schedule.warmup == 4000
    assert schedule.rate(3999) == pytest.approx(2.4e-3)
    assert schedule.rate(42_000) == pytest.approx(1.2e-3)
    assert schedule.rate(79_999) < 1e-8
    assert OptimConfig(lr=1e-3).peak(64) == pytest.approx(5e-4)  # the root below 256
    paper = RECIPES["simmim-paper"]().optim
    schedule = Schedule.plan(paper, 2048, steps=800 * 625, epoch=625)
    assert schedule.peak == pytest.approx(4e-4)
    assert schedule.rate(0) == pytest.approx(4e-4 * 5e-3, rel=0.05)
    assert schedule.rate(699 * 625) == pytest.approx(4e-4)
    assert schedule.rate(701 * 625) == pytest.approx(4e-5)
