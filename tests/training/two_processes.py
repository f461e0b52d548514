"""Ten steps on the photos of a folder, for torchrun; the first process saves what came out."""

import sys
from pathlib import Path

import torch

from simmim.config.augment import AugmentConfig
from simmim.config.decoder import TransformerDecoder
from simmim.config.encoder import EncoderConfig
from simmim.config.optim import OptimConfig
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream
from simmim.data.sources.find import find_images
from simmim.models.mim import build_model
from simmim.tasks.pretrain import PretrainTask
from simmim.tensors.batch import Batch
from simmim.training.loop import Plan, train
from simmim.training.world import join


def main() -> None:
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    rgb = PixelFormat(
        channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    config = PretrainConfig(
        encoder=EncoderConfig(
            model="vit_tiny_patch16_224",
            patch_size=8,
            arguments={"embed_dim": 48, "depth": 2, "num_heads": 3},
        ),
        decoder=TransformerDecoder(depth=2, width=32),
        optim=OptimConfig(lr=3e-3),
    )
    with join() as world:
        torch.manual_seed(0)
        task = PretrainTask(build_model(config, rgb, (32, 32)))
        seen = torch.zeros(120, dtype=torch.int64)
        honest = task.loss

        def watched(batch: Batch) -> dict[str, torch.Tensor]:
            seen[batch.t] += torch.is_grad_enabled()
            return honest(batch)

        task.loss = watched  # type: ignore[method-assign]
        stream = TrainStream(
            ImageSet(find_images(root), rgb),
            augment=AugmentConfig(),
            size=(32, 32),
            seed=0,
            batch_size=12,
            micro_batch=4,
            workers=0,
            rank=world.rank,
            ranks=world.ranks,
        )
        plan = Plan(
            steps=10, batch_size=12, epoch=8, optim=config.optim, precision="fp32", seed=0,
            look_every=0,
        )  # fmt: skip
        train(task, plan, stream, world)
        mine = seen.clone()
        world.total(seen)
        if world.leads:
            assert int(mine.sum()) == 120 // world.ranks
            assert (seen == 1).all()
            weights = torch.cat([p.detach().flatten() for p in task.model.parameters()])
            temporary = out.with_suffix(".tmp")
            torch.save({"weights": weights, "t": seen.nonzero()[:, 0].tolist()}, temporary)
            temporary.replace(out)


if __name__ == "__main__":
    main()
