"""What a step returns is read later: the same rows, and no wait for a device inside a step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from setting import WORLD, Setting
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from simmim.config.recipes import RECIPES
from simmim.models.mim import build_model
from simmim.runs.checkpoints import Checkpoints, read_checkpoint
from simmim.tasks.pretrain import PretrainTask
from simmim.tensors.batch import Batch
from simmim.training.optim import build_optimizer
from simmim.training.plan import Plan
from simmim.training.step import Stepper


class Told:
    """How many steps had begun after the one of each row, when it was told."""

    def __init__(self, model: nn.Module) -> None:
        self.begun = 0
        self.later: list[int] = []
        model.register_forward_hook(self._count)

    def _count(self, *_args: object) -> None:
        self.begun += torch.is_grad_enabled()

    def update(self, row: dict) -> None:
        self.later.append(self.begun - row["step"])

    def note(self, text: str) -> None:
        raise AssertionError(text)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_values_that_are_read_later_are_the_same(setting: Setting, tmp_path: Path, kind: str):
    optim = replace(setting.config.optim, kind=kind)
    plan = Plan(
        steps=20, batch_size=12, epoch=8, optim=optim, precision="fp32", seed=0, look_every=0.25
    )
    rows, told, weights = {}, {}, {}
    for ahead in (0, 1, 3):
        task = setting.task()
        told[ahead] = Told(task.model)
        rows[ahead] = setting.run(
            task,
            20,
            plan=plan,
            ahead=ahead,
            looks=[lambda step: {"explained": float(step)}],
            watchers=[told[ahead]],
            checkpoints=Checkpoints(tmp_path / str(ahead), keep=1),
        )
        weights[ahead] = read_checkpoint(tmp_path / str(ahead) / "step-00000020").model()
    for ahead in (1, 3):
        for mine, plain in zip(rows[ahead], rows[0], strict=True):
            for name in plain.keys() - {"time", "images_per_s", "data_wait"}:
                assert mine[name] == plain[name], (name, plain["step"])
        assert all(torch.equal(weights[ahead][n], value) for n, value in weights[0].items())
    assert [row["step"] for row in rows[3] if "explained" in row] == [5, 10, 15, 20]
    assert told[0].later == [0] * 20
    # Every second step is saved and every fifth looked at, for which all are read.
    assert told[3].later == [int(step % 2 and step % 5 > 0) for step in range(1, 21)]


def test_a_row_waits_for_the_steps_that_are_ahead(setting: Setting):
    optim = setting.config.optim
    plan = Plan(
        steps=40, batch_size=12, epoch=8, optim=optim, precision="fp32", seed=0, look_every=0
    )
    task = setting.task()
    told = Told(task.model)
    rows = setting.run(task, 40, plan=plan, ahead=2, watchers=[told])
    assert [row["step"] for row in rows] == list(range(1, 41))
    # Every fourth step is saved, for which all before are read.
    assert told.later == [2, 2, 1, 0] * 10


class Reads(TorchDispatchMode):
    """Keeps what asks for values, for which a GPU would have to be waited."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        places = args[1] if name in ("index", "index_put", "index_put_") else ()
        chosen = any(isinstance(p, Tensor) and p.dtype == torch.bool for p in places)
        if name in self.NAMES or chosen:
            self.seen.append((name, args[0].dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_step_waits_for_no_value(setting: Setting, recipe: str, precision):
    config = RECIPES[recipe]()
    small = {"depths": (1, 1, 1, 1)} if "swin" in recipe else {"depth": 2}
    encoder = replace(config.encoder, arguments={**config.encoder.arguments, **small})
    size = encoder.image_size or (64, 64)
    config = replace(config, encoder=replace(encoder, image_size=size))
    task = PretrainTask(build_model(config, setting.images.pixels, size))
    stepper = Stepper(
        task,
        build_optimizer(task.module, task.roles(), config.optim, WORLD),
        batch_size=2,
        precision=precision,
        clip=1.0,
        seed=0,
        world=WORLD,
    )
    batch = Batch(torch.zeros(2, 3, *size, dtype=torch.uint8), torch.arange(2))
    stepper.step(iter([batch]), 1e-3)
    with Reads() as reads:
        values = stepper.begin(iter([batch]), 1e-3)
    # The place of the batch in the run, which seeds drop path, lies on the CPU.
    assert reads.seen == [("_local_scalar_dense", torch.int64)]
    assert values.read()["loss"] > 0
