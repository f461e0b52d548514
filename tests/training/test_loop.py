"""The loop on real photos: splits, resumes, bad gradients, and the room that the design leaves."""

import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from setting import WORLD, Setting
from torch import Tensor, nn

from simmim.config.augment import AugmentConfig
from simmim.config.optim import OptimConfig
from simmim.config.recipes import RECIPES
from simmim.config.resolved import PixelFormat
from simmim.data.loading.loader import TrainStream
from simmim.models.mim import build_model
from simmim.runs.checkpoints import Checkpoints
from simmim.targets.pixels import Target
from simmim.tasks.pretrain import PretrainTask
from simmim.tensors.batch import Batch
from simmim.tensors.mask import Mask, pick
from simmim.training.loop import Plan
from simmim.training.optim import parameter_groups
from simmim.training.schedule import Schedule
from simmim.training.step import Stepper


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


def test_two_processes_give_what_one_gives(setting: Setting, tmp_path: Path):
    one = tmp_path / "one.pt"
    two = tmp_path / "two.pt"
    script = Path(__file__).with_name("two_processes.py")
    for ranks, out in ((1, one), (2, two)):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={ranks}", str(script), setting.images.paths.where, str(out)]
        # gloo's processes may die at exit under load: what they wrote counts.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert out.exists(), done.stderr[-3000:]
    a, b = torch.load(one), torch.load(two)
    assert b["t"] == a["t"] == list(range(120))
    assert float((a["weights"] - b["weights"]).norm() / a["weights"].norm()) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_ends_with_the_same_bits(setting: Setting, tmp_path: Path, precision):
    encoder = replace(setting.config.encoder, drop_path=0.3)
    setting.config = replace(setting.config, encoder=encoder)
    plan = Plan(
        steps=20,
        batch_size=12,
        epoch=100 / 12,
        optim=setting.config.optim,
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


# Room for what is to come, with no file of simmim touched.


class Tokens(Target):
    """BEiT-style: which of 64 random codes is nearest to a patch."""

    def __init__(self, patch: int, channels: int) -> None:
        super().__init__()
        self.outputs = 64
        self.patch = patch
        generator = torch.Generator().manual_seed(0)
        codes = torch.randn(64, channels * patch**2, generator=generator)
        self.register_buffer("codes", codes)

    def values(self, images: Tensor, mask: Mask) -> Tensor:
        from simmim.tensors.patches import patchify

        patches = pick(patchify(images, self.patch), mask.masked_index)
        return torch.cdist(patches, self.codes[None]).argmin(-1)

    def loss(self, prediction: Tensor, values: Tensor) -> dict[str, Tensor]:
        loss = nn.functional.cross_entropy(prediction.flatten(0, 1), values.flatten())
        hits = (prediction.argmax(-1) == values).float().mean()
        return {"loss": loss, "hits": hits}


def test_room_for_a_token_target(setting: Setting):
    torch.manual_seed(0)
    model = build_model(setting.config, setting.images.pixels, (32, 32), target=Tokens(8, 3))
    rows = setting.run(PretrainTask(model, setting.config), 25)
    assert rows[0]["loss"] == pytest.approx(math.log(64), rel=0.35)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert "hits" in rows[-1]
    assert "target.codes" in model.state_dict()


class LossGuided:
    """Masks the patches that the model predicts worst under a first, random mask."""

    def __init__(self, count: int) -> None:
        self.model: nn.Module | None = None
        self.count = count

    @torch.no_grad()
    def scores(self, noise: Tensor, batch: Batch) -> Tensor:
        from simmim.tensors.patches import normalise

        model = self.model
        assert model is not None
        mask = Mask.top(noise, self.count, model.grid)  # type: ignore[arg-type]
        images = normalise(batch.images, model.pixels)  # type: ignore[arg-type]
        error = model.predict(images, mask.masked) - model.target.values(images, mask)  # type: ignore
        return noise.scatter(1, mask.masked_index, 1 + error.square().mean(-1))


def test_room_for_a_sampler_guided_by_the_loss(setting: Setting):
    sampler = LossGuided(count=10)
    task = setting.task(sampler=sampler)
    sampler.model = task.model
    plain, guided = setting.task(), task
    batch = next(
        TrainStream(
            setting.images, augment=AugmentConfig(), size=(32, 32), seed=0,
            batch_size=12, micro_batch=12, workers=0,
        ).start(0)
    )  # fmt: skip
    masks = [t.masker.draw(batch) for t in (plain, guided)]
    assert masks[0].count == masks[1].count
    assert not torch.equal(masks[0].masked, masks[1].masked)
    assert setting.run(guided, 3)[-1]["skipped"] == 0


@dataclass
class Captioned(Batch):
    captions: Tensor | None = None

    def to(self, device) -> "Captioned":
        return self


class CaptionLoss(nn.Module):
    """Image and caption of the same row should agree (a contrastive extra)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(50, width)

    def forward(self, batch: Batch, mask: Mask, features) -> dict[str, Tensor]:
        assert isinstance(batch, Captioned)
        assert batch.captions is not None
        image = nn.functional.normalize(features.patches.mean(1), dim=-1)
        text = nn.functional.normalize(self.words(batch.captions), dim=-1)
        logits = image @ text.T / 0.1
        return {"loss": 0.5 * nn.functional.cross_entropy(logits, torch.arange(len(logits)))}


def test_room_for_an_extra_that_reads_captions(setting: Setting):
    torch.manual_seed(0)
    extras = {"caption": CaptionLoss(48)}
    model = build_model(setting.config, setting.images.pixels, (32, 32), extras=extras)
    task = PretrainTask(model, setting.config)
    from simmim.training.optim import build_optimizer

    optimizer = build_optimizer(model, task.roles(), setting.config.optim)
    stepper = Stepper(
        task, optimizer, batch_size=4, precision="fp32", clip=1.0, seed=0, world=WORLD
    )
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    batch = Captioned(images, torch.arange(4), captions=torch.randint(0, 50, (4, 6)))
    before = extras["caption"].words.weight.detach().clone()
    values = [stepper.step(iter([batch]), rate=1e-3) for _ in range(5)]
    assert values[-1]["caption_loss"] < values[0]["caption_loss"]
    assert not torch.equal(before, extras["caption"].words.weight)
