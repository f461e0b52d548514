"""Short runs of a small model on real photos, for the tests of training."""

from dataclasses import dataclass

import torch

from simmim.config.augment import AugmentConfig
from simmim.config.run import PretrainConfig
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream
from simmim.models.mim import build_model
from simmim.tasks.pretrain import PretrainTask
from simmim.training.loop import train
from simmim.training.plan import Plan
from simmim.training.world import World

WORLD = World(0, 1, torch.device("cpu"))


class Rows(list):
    def update(self, row: dict) -> None:
        self.append(row)

    def note(self, text: str) -> None:
        self.append({"note": text})


@dataclass
class Setting:
    config: PretrainConfig
    images: ImageSet
    batch_size: int = 12

    def task(self) -> PretrainTask:
        torch.manual_seed(self.config.seed)
        model = build_model(self.config, self.images.pixels, (32, 32))
        return PretrainTask(model)

    def run(self, task: PretrainTask, steps: int, *, micro: int = 12, plan=None, **kwargs) -> Rows:
        rows = Rows()
        stream = TrainStream(
            self.images,
            augment=AugmentConfig(),
            size=(32, 32),
            seed=self.config.seed,
            batch_size=self.batch_size,
            micro_batch=micro,
            workers=0,
        )
        plan = plan or Plan(
            steps=steps,
            batch_size=self.batch_size,
            epoch=len(self.images.paths) / self.batch_size,
            optim=self.config.optim,
            precision="fp32",
            seed=self.config.seed,
        )
        watchers = [rows, *kwargs.pop("watchers", ())]
        train(task, plan, stream, WORLD, watchers=watchers, **kwargs)
        return rows
