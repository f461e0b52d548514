"""Where gpu.py works, at what size, and what is kept of a step."""

import contextlib
import functools
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from speed import PIXELS

from simmim.config.decoder import TransformerDecoder
from simmim.config.recipes import RECIPES
from simmim.config.run import PretrainConfig
from simmim.data import demo
from simmim.models.mim import build_model
from simmim.tasks.pretrain import PretrainTask
from simmim.tensors.batch import Batch
from simmim.training.optim import build_optimizer
from simmim.training.step import Stepper
from simmim.training.world import World, pick_device

DETERMINISTIC = "deterministic kernels"
AS_IT_IS = "as it is"
MODES = (AS_IT_IS, DETERMINISTIC)

SMALL = {
    "simmim": {"model": "vit_tiny_patch16_224", "arguments": {"depth": 4}},
    "simmim-fast": {"model": "vit_tiny_patch16_224", "arguments": {"depth": 4}},
    "simmim-paper": {"arguments": {"embed_dim": 192, "num_heads": 3, "depth": 4}},
    "simmim-paper-swin": {
        "model": "swin_tiny_patch4_window7_224",
        "arguments": {"embed_dim": 48, "depths": [1, 1, 2, 1], "window_size": 6},
    },
    "mae": {"model": "vit_tiny_patch16_224", "arguments": {"depth": 4}},
}
"""Encoders that train in seconds; patches and, on a GPU, tokens as in the large ones."""
PLAIN = {
    "vit_base_patch16_224": {"width": 768, "depth": 12, "heads": 12},
    "vit_large_patch16_224": {"width": 1024, "depth": 24, "heads": 16},
    "vit_tiny_patch16_224": {"width": 192, "depth": 2, "heads": 3},
}
"""The same encoders in the plain loop."""


@dataclass(frozen=True)
class Sizes:
    """How much is done; the defaults are a GPU's.

    Attributes:
        small: Sides of the images of the small models, of Swin and of the others.
        window: Of Swin.
        runs: Recipe and precision of the runs that are killed.
        steps: Of each run.
        batch: Images per step of a run.
        repeated: Recipe and precision whose gradients are computed twice.
        full: Whether those are of the recipes' own models.
        memory: Recipe and encoder whose memory is measured.
        share: Images per step that are offered as a micro-batch.
        speed: Recipe, encoder and batch that are timed.
        rounds: Of timing.
        burst: Steps of one side in a round.
        matrix: Side of the matrices whose product is the peak.
        photos: For the loader.
        workers: Of the loader.
        seconds: That the loader is timed for.
        backend: Of torch.compile.
    """

    small: tuple[int, int] = (192, 256)
    window: int = 6
    runs: tuple[tuple[str, str], ...] = tuple((r, p) for r in RECIPES for p in ("bf16", "fp16"))
    steps: int = 40
    batch: int = 32
    repeated: tuple[tuple[str, str], ...] = tuple(
        (r, p) for r in RECIPES for p in ("bf16", "fp16", "fp32")
    )
    full: bool = True
    memory: tuple[tuple[str, str], ...] = (
        ("simmim", "vit_small_patch16_224"),
        ("simmim", "vit_base_patch16_224"),
        ("mae", "vit_base_patch16_224"),
        ("simmim", "vit_large_patch16_224"),
    )
    share: int = 4096
    speed: tuple[tuple[str, str, int], ...] = (
        ("mae", "vit_base_patch16_224", 256),
        ("simmim", "vit_base_patch16_224", 256),
        ("mae", "vit_large_patch16_224", 256),
        ("simmim", "vit_large_patch16_224", 256),
    )
    rounds: int = 5
    burst: int = 4
    matrix: int = 8192
    photos: int = 256
    workers: tuple[int, ...] = (1, 4, 8, 14)
    seconds: float = 4.0
    backend: str = "inductor"


TINY = Sizes(
    small=(64, 64),
    window=2,
    runs=(("simmim", "bf16"),),
    steps=20,
    batch=8,
    repeated=(("mae", "bf16"),),
    full=False,
    memory=(("simmim", "vit_tiny_patch16_224"),),
    share=4,
    speed=(("mae", "vit_tiny_patch16_224", 2),),
    rounds=2,
    burst=1,
    matrix=128,
    photos=8,
    workers=(1, 2),
    seconds=0.2,
    backend="aot_eager",
)


@dataclass
class Part:
    """A step's figures, on the disk and on the screen as soon as they are there."""

    name: str
    facts: dict[str, Any]
    folder: Path
    save: Callable[[], None]
    end: float
    processes: list[subprocess.Popen] = field(default_factory=list)

    def left(self) -> float:
        return self.end - time.monotonic()

    def add(self, what: str, shown: str, **facts: Any) -> None:
        """Keep ``facts`` under the name ``what``; ``shown`` stands in the table."""
        self.facts.setdefault("figures", {})[what] = {"shown": shown, **facts}
        print(f"  {what:48} {shown}", flush=True)
        self.save()

    def start(self, words: Sequence[str], log: Path, **environment: str) -> subprocess.Popen:
        """Start Python; what it says goes into ``log``."""
        with log.open("a") as file:
            process = subprocess.Popen(
                [sys.executable, *words],
                env={**os.environ, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        self.processes.append(process)
        return process

    def finish(self, process: subprocess.Popen, log: Path, allowed: Sequence[int] = (0,)) -> None:
        """Wait for it; raise what it said where it failed."""
        code = process.wait(max(1.0, self.left()))
        if code not in allowed:
            raise RuntimeError(f"exit status {code}: …{log.read_text()[-1500:]}")

    def close(self) -> None:
        """End what still runs, and save."""
        for process in self.processes:
            process.kill()
            process.wait()
        self.save()


@dataclass(frozen=True)
class Setting:
    """Where and at what size."""

    device: torch.device
    sizes: Sizes
    folder: Path

    @property
    def world(self) -> World:
        return World(0, 1, self.device)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @functools.cached_property
    def photos(self) -> Path:
        """341 of the demo's photos."""
        folder = self.folder / "demo"
        folder.mkdir()
        demo.unpack(folder)
        return folder / demo.PHOTOS / "val"

    def wait(self) -> None:
        """For the device to have done what it was told."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give the device back what nothing uses."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def small(self, recipe: str, **changes: Any) -> PretrainConfig:
        """The recipe with a small encoder."""
        config = RECIPES[recipe]()
        swin = recipe == "simmim-paper-swin"
        side = self.sizes.small[0 if swin else 1]
        given = SMALL[recipe]
        arguments = given["arguments"] | ({"window_size": self.sizes.window} if swin else {})
        encoder = {**given, "arguments": arguments, "image_size": (side, side)}
        if isinstance(config.decoder, TransformerDecoder):
            config = replace(config, decoder=replace(config.decoder, depth=2, width=128, heads=4))
        return replace(config, encoder=replace(config.encoder, **encoder), **changes)

    def large(self, recipe: str, model: str) -> PretrainConfig:
        """The recipe with a published encoder at 224 pixels; without a GPU, two blocks of it."""
        config = RECIPES[recipe]()
        side = 224 if self.on_gpu else self.sizes.small[1]
        encoder = replace(config.encoder, model=model, image_size=(side, side))
        if not self.on_gpu:
            encoder = replace(encoder, arguments={"depth": 2})
        return replace(config, encoder=encoder)

    def task(self, config: PretrainConfig, device: torch.device | None = None) -> PretrainTask:
        size = config.encoder.image_size
        assert size is not None
        torch.manual_seed(0)
        model = build_model(config, PIXELS, size).to(device or self.device).train()
        return PretrainTask(model)

    def batch(self, task: PretrainTask, rows: int) -> Batch:
        """Random bytes as the loader yields them: channels last, pinned where there is a GPU."""
        shape = (rows, *task.model.encoder.image_size, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        if self.on_gpu:
            images = images.pin_memory()
        return Batch(images.permute(0, 3, 1, 2), torch.arange(rows))


def stepper(
    task: PretrainTask, config: PretrainConfig, rows: int, precision: Any, world: World
) -> Stepper:
    return Stepper(
        task,
        build_optimizer(task.module, task.roles(), config.optim, world),
        batch_size=rows,
        precision=precision,
        clip=config.optim.clip,
        seed=config.seed,
        world=world,
    )


@contextlib.contextmanager
def deterministic(on: bool = True) -> Iterator[None]:  # noqa: FBT001, FBT002
    """Kernels that give the same bits each time, where there are such."""
    torch.use_deterministic_algorithms(on, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=False)


def first_rows(batch: Batch, rows: int) -> Batch:
    return Batch(batch.images[:rows], batch.t[:rows])


def setting_in(folder: Path) -> Setting:
    """The GPU's, where there is one."""
    device = pick_device()
    if device.type == "cuda":
        return Setting(device, Sizes(), folder)
    return Setting(torch.device("cpu"), TINY, folder)
