"""What one process and two do the same; the first process saves what came out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from simmim.api.looks import FeatureLook, HoldoutLook, KnnLook, Views
from simmim.config.augment import AugmentConfig
from simmim.config.decoder import TransformerDecoder
from simmim.config.encoder import EncoderConfig
from simmim.config.optim import OptimConfig
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.config.target import CombinedTarget, HogTarget, PixelTarget
from simmim.data.labels import labels_of
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream
from simmim.data.loading.quarantine import Quarantine
from simmim.data.sources.find import find_images
from simmim.errors import ReportedError, TrainingError
from simmim.models.mim import build_model
from simmim.runs.checkpoints import Checkpoints
from simmim.targets.pixels import Pixels
from simmim.tasks.classifier import Classifier
from simmim.tasks.pretrain import PretrainTask
from simmim.tensors.batch import Batch
from simmim.training.loop import Look, Plan, train
from simmim.training.optim import build_optimizer
from simmim.training.parallel import part, whole
from simmim.training.world import World, join

RGB = PixelFormat(channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3)
CONFIG = PretrainConfig(
    encoder=EncoderConfig(
        model="vit_tiny_patch16_224",
        patch_size=8,
        arguments={"embed_dim": 48, "depth": 2, "num_heads": 3},
    ),
    decoder=TransformerDecoder(depth=2, width=32),
    target=CombinedTarget(parts=(PixelTarget(), HogTarget())),
    optim=OptimConfig(lr=3e-3),
)


class Rows(list):
    def update(self, row: dict) -> None:
        self.append(row)

    def note(self, text: str) -> None:
        raise AssertionError(text)


class Stream(TrainStream):
    """Photos, of which there are no more from some place in the run on."""

    until = 1_000

    def start(self, step: int) -> Iterator[Batch]:
        for batch in super().start(step):
            if int(batch.t[0]) >= self.until:
                raise TrainingError("the images are gone.")
            yield batch


def new_task() -> PretrainTask:
    torch.manual_seed(0)
    return PretrainTask(build_model(CONFIG, RGB, (32, 32)))


def stream_of(root: Path, world: World) -> Stream:
    return Stream(
        ImageSet(find_images(str(root)), RGB),
        augment=AugmentConfig(),
        size=(32, 32),
        seed=0,
        batch_size=12,
        micro_batch=4,
        workers=0,
        rank=world.rank,
        ranks=world.ranks,
    )


def plan_of(steps: int) -> Plan:
    return Plan(
        steps=steps, batch_size=12, epoch=8, optim=CONFIG.optim, precision="fp32", seed=0,
        look_every=0.5,
    )  # fmt: skip


def looks_of(task: PretrainTask, few: Path, world: World, out: Path) -> list[Look]:
    """One image, five, and all with one that is unreadable, by name of what they measure."""
    images = find_images(str(few))
    quarantine = Quarantine(out / "quarantine.jsonl", 0.5, images)
    named: dict[str, Look] = {}
    pixels = task.model.target.within(Pixels)
    assert pixels is not None
    for count in (1, 5, len(images)):
        views = Views.held_out(task.model, ImageSet(images[:count], RGB), world, quarantine)
        folder = out / f"pictures-{count}"
        named[f"of {count}"] = HoldoutLook(task.model, pixels, views, "fp32", world, folder=folder)
        named[f"features of {count}"] = FeatureLook(task.model, views, "fp32", world)
    labels = labels_of(images)
    assert labels is not None
    chosen, classes = labels.sample(512)
    labelled = ImageSet(chosen, RGB, classes)
    named["of k-NN"] = KnnLook(task.model, labelled, 2, "fp32", world, quarantine=quarantine)

    def named_values(name: str, look: Look) -> Look:
        return lambda step: {f"{key} {name}": value for key, value in look(step).items()}

    return [named_values(*item) for item in named.items()]


def training(root: Path, few: Path, out: Path, world: World, *, sharded: bool) -> dict[str, Any]:
    """Ten steps with looks and saves."""
    task = new_task()
    if sharded:
        mesh = init_device_mesh("cpu", (world.ranks,))
        for layer in task.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(task.model, mesh=mesh)
    trained_on = torch.zeros(120, dtype=torch.int64)
    honest = task.loss

    def watched(batch: Batch) -> dict[str, torch.Tensor]:
        trained_on[batch.t] += torch.is_grad_enabled()
        return honest(batch)

    task.loss = watched  # type: ignore[method-assign]
    rows, encoders = Rows(), []

    def save_encoder(step: int) -> None:
        encoders.append((step, whole(task.model.encoder.timm_state(), world)))

    train(
        task,
        plan_of(10),
        stream_of(root, world),
        world,
        watchers=[rows] if world.leads else [],
        looks=looks_of(task, few, world, out),
        checkpoints=Checkpoints(out / "checkpoints", keep=2),
        on_save=save_encoder,
    )
    assert int(trained_on.sum()) == 120 // world.ranks
    assert (world.total(trained_on) == 1).all()
    step, encoder = encoders[-1]
    assert step == 10
    return {"rows": list(rows), "encoder": encoder, "t": trained_on.nonzero()[:, 0].tolist()}


def muon(world: World, *, sharded: bool) -> dict[str, torch.Tensor]:
    """Weights after three steps of Muon along known gradients."""
    task = new_task()
    named = dict(task.model.named_parameters())
    gradients = [{n: torch.randn_like(p) for n, p in named.items()} for _ in range(3)]
    if sharded:
        fully_shard(task.model, mesh=init_device_mesh("cpu", (world.ranks,)))
    config = OptimConfig(kind="muon", layer_decay=0.75)
    optimizer = build_optimizer(task.model, task.roles(), config, world)
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["scale"]
    for step in gradients:
        for name, parameter in task.model.named_parameters():
            parameter.grad = part(step[name], parameter, world)
        optimizer.step()
    return whole(dict(task.model.named_parameters()), world)


def ending(root: Path, folder: Path, until: int, world: World) -> list[str]:
    """How a training of four steps ends in each process, the last having images so far."""
    stream, how = stream_of(root, world), "well"
    if world.rank == world.ranks - 1:
        stream.until = until
    try:
        train(new_task(), plan_of(4), stream, world, checkpoints=Checkpoints(folder, keep=2))
    except (TrainingError, ReportedError) as error:
        how = f"{type(error).__name__}: {error}"
    return world.gather(how)


def main(root: Path, few: Path, out: Path) -> None:
    """Write ``results.pt``."""
    results: dict[str, Any] = {}
    with join() as world:
        for sharded in (False, True)[: world.ranks]:
            name = "sharded" if sharded else "whole"
            (out / name).mkdir(exist_ok=True)
            results[name] = training(root, few, out / name, world, sharded=sharded)
            results[name]["muon"] = muon(world, sharded=sharded)
        file = out / "no-folder"
        file.touch()
        results["no place"] = ending(root, file / "checkpoints", 1_000, world)
        results["no images"] = ending(root, out / "rescued", 24, world)
        torch.manual_seed(0)
        classifier = Classifier(new_task().model.encoder, RGB, ["a", "b"])
        torch.nn.init.normal_(classifier.head.weight)
        predictions = classifier.predict(ImageSet(find_images(str(few)), RGB), world=world)
        results["predictions"] = vars(predictions)
        if world.leads:
            torch.save(results, out / "results.tmp")
            (out / "results.tmp").replace(out / "results.pt")
