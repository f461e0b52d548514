"""What is saved while a training goes wrong, when it ends, and that ordinary ones do not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from setting import WORLD, Setting
from torch import Tensor, nn

from simmim.config.optim import OptimConfig, Role
from simmim.config.resolved import Earlier
from simmim.config.target import PixelTarget
from simmim.runs.checkpoints import Checkpoints
from simmim.tensors.batch import Batch
from simmim.training.health import PATIENCE, DivergedError, Health
from simmim.training.plan import Plan
from simmim.training.task import Task
from simmim.training.world import World


def plan_of(setting: Setting, steps: int, lr: float | None = None, **changes) -> Plan:
    optim = setting.config.optim
    values = {
        **{"steps": steps, "batch_size": setting.batch_size, "seed": 0, "precision": "fp32"},
        **{"epoch": len(setting.images) / setting.batch_size, "look_every": 0},
        "optim": optim if lr is None else replace(optim, lr=lr),
    }
    return Plan(**(values | changes))


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


@pytest.mark.parametrize("lr", [1e3, 1e6, 1e30])
def test_weights_that_the_first_step_ruins_are_never_saved(setting: Setting, tmp_path: Path, lr):
    plan = plan_of(setting, 200, lr, save_minutes=0)  # a checkpoint is due after every step
    with pytest.raises(DivergedError) as caught:
        setting.run(setting.task(), 200, plan=plan, checkpoints=Checkpoints(tmp_path, keep=3))
    assert steps_in(tmp_path) == []
    assert caught.value.cause == "rate"
    assert f"steps 2 to {PATIENCE + 1} were skipped or far off their course" in str(caught.value)
    assert "No checkpoint was saved before: it starts again from step 0." in str(caught.value)


def test_good_checkpoints_stay_when_a_training_goes_astray(setting: Setting, tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    setting.run(
        setting.task(), 6, plan=plan_of(setting, 6, save_minutes=0), checkpoints=checkpoints
    )
    assert steps_in(tmp_path) == [4, 5, 6]
    optim = setting.config.optim
    earlier = (Earlier(until=6, steps=100, lr=optim.lr or 0.0, why="a test"),)
    plan = plan_of(setting, 100, 1e6, earlier=earlier, save_minutes=0)
    with pytest.raises(DivergedError, match=r"good checkpoint is that of step 6, .*step-00000006"):
        setting.run(
            setting.task(),
            100,
            plan=plan,
            checkpoints=checkpoints,
            resume=checkpoints.newest(print),
        )
    assert steps_in(tmp_path) == [4, 5, 6]


def test_a_checkpoint_that_was_due_in_a_skipped_step_comes_with_the_next(
    setting: Setting, tmp_path: Path
):
    task = setting.task()
    honest = task.loss

    def poisoned(batch: Batch) -> dict[str, Tensor]:
        losses = honest(batch)
        if int(batch.t[0]) == 12 * 2 and torch.is_grad_enabled():  # the third step
            losses["loss"] = losses["loss"] * float("nan")
        return losses

    task.loss = poisoned  # type: ignore[method-assign]
    saved: list[int] = []
    rows = setting.run(
        task,
        30,
        plan=plan_of(setting, 30),
        checkpoints=Checkpoints(tmp_path, keep=3),
        on_save=saved.append,
    )
    assert saved == [4, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    notes = [row["note"] for row in rows if "note" in row]
    assert len(notes) == 1
    assert "no checkpoint of step 3: training is off its course" in notes[0]


@pytest.mark.parametrize("steps", [8, 200])
def test_a_run_whose_steps_were_all_skipped_fails_and_names_the_images(
    setting: Setting, tmp_path: Path, steps: int
):
    absurd = replace(setting.images.pixels, std=(1e-35,) * 3)  # as if values were 1e35
    setting.images = replace(setting.images, pixels=absurd)
    plan = plan_of(setting, steps, save_minutes=0)
    with pytest.raises(DivergedError) as caught:
        setting.run(setting.task(), steps, plan=plan, checkpoints=Checkpoints(tmp_path, keep=3))
    assert f"all {min(steps, PATIENCE)} steps were skipped" in str(caught.value)
    assert "Values of the images lie" in str(caught.value)
    assert caught.value.cause == "images"
    assert steps_in(tmp_path) == []


def test_a_last_step_that_is_skipped_does_not_fail_the_run(setting: Setting, tmp_path: Path):
    task = setting.task()
    honest = task.loss

    def poisoned(batch: Batch) -> dict[str, Tensor]:
        losses = honest(batch)
        if int(batch.t[0]) >= 12 * 8 and torch.is_grad_enabled():
            losses["loss"] = losses["loss"] * float("inf")
        return losses

    task.loss = poisoned  # type: ignore[method-assign]
    plan = plan_of(setting, 10)
    setting.run(task, 10, plan=plan, checkpoints=Checkpoints(tmp_path, keep=3))
    assert steps_in(tmp_path)[-1] == 10


ORDINARY = {
    "l2": {},
    "l1": {"target": PixelTarget(loss="l1")},
    "norm_pix": {"target": PixelTarget(norm_pix=True)},
    "no warm-up": {"optim": OptimConfig(lr=3e-3, warmup_share=0.0)},
    "high rate": {"optim": OptimConfig(lr=5e-2, warmup_share=0.0)},
    "one image a step": {"batch_size": 1, "optim": OptimConfig(lr=3e-2)},
    "two images a step": {"batch_size": 2},
}


RARE = ("l1", "no warm-up", "one image a step")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind in RARE else ()) for kind in ORDINARY],
)
def test_ordinary_trainings_are_on_their_course(setting: Setting, tmp_path: Path, kind: str):
    changes = dict(ORDINARY[kind])
    setting.batch_size = int(changes.pop("batch_size", 12))  # type: ignore[call-overload]
    setting.config = replace(setting.config, **changes)  # type: ignore[arg-type]
    saved: list[int] = []
    plan = plan_of(setting, 120, save_minutes=0)
    rows = setting.run(
        setting.task(),
        120,
        plan=plan,
        checkpoints=Checkpoints(tmp_path, keep=1),
        on_save=saved.append,
    )
    assert saved == list(range(1, 121))
    assert not [row for row in rows if "note" in row]


class Level(nn.Module):
    """Has whatever loss it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(1.0))


class LevelTask(Task):
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.module.level * 1.0}

    def inputs(self, batch: Batch) -> Tensor:
        return batch.images

    def roles(self) -> dict[str, tuple[Role, int]]:
        return {"level": ("vector", 0)}


def test_off_its_course_is_ten_times_the_lowest_loss_and_above_the_first():
    task = LevelTask(Level())
    health = Health(task, "fp32", World(0, 1, torch.device("cpu")), first=None)
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.arange(4))

    def good_at(level: float) -> bool:
        task.module.level.data.fill_(level)
        return health.good()

    task.module.level.data.fill_(1.3)
    health.before_step(batch)
    assert good_at(12.9)
    assert not good_at(13.1)
    assert good_at(0.2)
    assert good_at(1.9)
    assert not good_at(2.1)
    # Images that are learned by heart: however far below the first loss, nothing is a failure.
    assert good_at(1e-6)
    assert good_at(1.2)
    assert not good_at(1.4)
    for nothing in (float("nan"), float("inf")):
        assert not good_at(nothing)


def test_batches_that_differ_do_not_count_as_off_their_course(setting: Setting):
    task = setting.task()
    health = Health(task, "fp32", WORLD, first=None)
    blank = Batch(torch.full((4, 3, 32, 32), 124, dtype=torch.uint8), torch.arange(4))
    health.before_step(blank)
    for _ in range(PATIENCE + 1):
        assert health.after_step({"loss": 1e6, "skipped": 0.0})
    assert health.bad == 0


def test_the_state_goes_on_with_a_run(setting: Setting, tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    setting.run(setting.task(), 5, plan=plan_of(setting, 5), checkpoints=checkpoints)
    newest = checkpoints.newest(print)
    assert newest is not None
    first = newest.state["first_loss"]
    assert 0.5 < first < 5
    again = plan_of(setting, 10)
    setting.run(setting.task(), 10, plan=again, checkpoints=checkpoints, resume=newest)
    later = checkpoints.newest(print)
    assert later is not None
    assert later.step == 10
    assert later.state["first_loss"] == first
