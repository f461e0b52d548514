"""The steps of gpu.py that measure memory and time."""

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from gpu_setting import (
    DETERMINISTIC,
    PLAIN,
    Part,
    Setting,
    deterministic,
    first_rows,
    stepper,
)
from loader import make
from speed import PIXELS, PlainMae, plain
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from simmim.api.shard import run_shard
from simmim.config.augment import AugmentConfig
from simmim.config.data import ShardConfig
from simmim.config.run import PretrainConfig
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream
from simmim.data.sources.find import find_images
from simmim.errors import ResourceError
from simmim.machine import cores
from simmim.tasks.pretrain import PretrainTask
from simmim.tensors.batch import Batch
from simmim.training import resolve


def memory(part: Part, setting: Setting) -> None:
    """What the rule takes a micro-batch to need, and what it takes."""
    for recipe, model in setting.sizes.memory:
        config = setting.large(recipe, model)
        task = setting.task(config)
        per_image = resolve.activation_bytes(task, setting.batch(task, 2), setting.device, "bf16")
        share = setting.sizes.share
        try:
            rows, why = resolve.pick_micro_batch(
                task, config.optim, share, per_image, setting.world
            )
        except ResourceError as error:
            part.add(f"{recipe} {model}", str(error))
            continue
        facts: dict[str, Any] = {"per_image": per_image, "rows": rows, "why": why}
        weights = sum(p.nbytes for p in task.module.parameters())
        facts["estimate"] = 4 * weights + int(1.25 * per_image * rows)
        fits, shown = True, f"{rows} images, {per_image / 1e6:.1f} MB each"
        try:
            batch = setting.batch(task, rows)
            facts["measured"] = [
                peak_memory(setting, task, config, first_rows(batch, count))
                for count in sorted({rows // 4, rows})
            ]
        except torch.OutOfMemoryError as error:
            fits, facts["error"] = False, str(error)
        if setting.on_gpu and fits:
            few, many = facts["measured"][0], facts["measured"][-1]
            slope = (many["allocated"] - few["allocated"]) / max(1, many["rows"] - few["rows"])
            facts |= {"measured_per_image": slope, "over_rule": slope / (1.25 * per_image)}
            shown += (
                f"; rule {facts['estimate'] / 1e9:.1f} GB, measured {many['allocated'] / 1e9:.1f}, "
                f"reserved {many['reserved'] / 1e9:.1f}; per image {slope / 1e6:.1f} MB"
            )
        part.add(f"{recipe} {model}", shown if fits else f"{shown}: DOES NOT FIT", **facts)
        del task
        setting.free()


def peak_memory(
    setting: Setting, task: PretrainTask, config: PretrainConfig, batch: Batch
) -> dict[str, int]:
    """Bytes at the peak of two whole steps."""
    rows = len(batch.t)
    made = stepper(task, config, rows, "bf16", setting.world)
    setting.free()
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        made.step(iter([batch]), rate=0.0)
    if not setting.on_gpu:
        return {"rows": rows}
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"rows": rows, "allocated": allocated, "reserved": reserved}


def speed(part: Part, setting: Setting) -> None:
    """Whole training steps beside a plain loop, then compiled, and what share of the peak."""
    torch.set_num_threads(cores())
    peak = matrix_product(setting)
    part.add("bf16 matrix product", f"{peak / 1e12:.0f} TFLOP/s", flops_per_s=peak)
    for measure in (beside_plain, compiled):
        for recipe, model, batch in setting.sizes.speed:
            setting.free()
            measure(part, Subject(setting, recipe, model, batch, peak))


def matrix_product(setting: Setting) -> float:
    """FLOP/s of a bf16 product of square matrices of random numbers, the median of 20."""
    side = setting.sizes.matrix
    a, b = (torch.randn(side, side, device=setting.device, dtype=torch.bfloat16) for _ in "ab")
    seconds = timed(setting, {"product": lambda: a @ b}, rounds=20, burst=1)["product"]
    return 2 * side**3 / seconds


def timed(
    setting: Setting, sides: dict[str, Callable[[], object]], *, rounds: int, burst: int
) -> dict[str, float]:
    """Median seconds of each; the sides take turns, and warm up before."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        for _ in range(3):
            side()
    for _ in range(rounds):
        for name, side in sides.items():
            setting.wait()
            began = time.perf_counter()
            for _ in range(burst):
                side()
            setting.wait()
            times[name].append((time.perf_counter() - began) / burst)
    return {name: statistics.median(of) for name, of in times.items()}


def forward_flops(run: Callable[[], object]) -> int:
    """FLOPs of matrix products, attention's among them, counted on tensors without memory."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):
        run()
    return counter.get_total_flops()


class Subject:
    """A model whose training steps are timed, in bf16, on bytes that are on the host."""

    def __init__(
        self, setting: Setting, recipe: str, model: str, batch_size: int, peak: float
    ) -> None:
        self.setting, self.model, self.peak = setting, model, peak
        self.name = f"{recipe} {model.removesuffix('_patch16_224')}"
        self.config = setting.large(recipe, model)
        self.task = setting.task(self.config)
        two = setting.batch(self.task, 2)
        per_image = resolve.activation_bytes(self.task, two, setting.device, "bf16")
        self.rows, _ = resolve.pick_micro_batch(
            self.task, self.config.optim, batch_size, per_image, setting.world
        )
        self.batch = setting.batch(self.task, self.rows)
        self.stepper = stepper(self.task, self.config, self.rows, "bf16", setting.world)
        self.one = first_rows(two, 1).to(setting.device)
        self.flops = {"simmim": 3 * forward_flops(lambda: self.task.loss(self.one))}

    def step(self) -> None:
        self.stepper.begin(iter([self.batch]), rate=1e-5)

    def time(self, part: Part, sides: dict[str, Callable[[], object]], **facts: Any) -> None:
        """Time the sides in turns, and keep what each gave."""
        sizes = self.setting.sizes
        seconds = timed(self.setting, sides, rounds=sizes.rounds, burst=sizes.burst)
        for side, each in seconds.items():
            work, rate = self.flops.get(side, self.flops["simmim"]), self.rows / each
            share = work * rate / self.peak
            part.add(
                f"{self.name}, {side}",
                f"{rate:,.0f} images/s, {share:.0%} of the peak, batch {self.rows}",
                images_per_s=rate,
                share=share,
                flops_per_image=work,
                batch=self.rows,
                seconds=each,
                **facts,
            )


def beside_plain(part: Part, subject: Subject) -> None:
    config, device = subject.config, subject.setting.device
    assert config.encoder.image_size is not None
    size = config.encoder.image_size[0]
    torch.manual_seed(0)
    other = PlainMae(config.mask.ratio, fused=True, size=size, **PLAIN[subject.model]).to(device)
    subject.flops["plain loop"] = 3 * forward_flops(lambda: other(subject.one.images.float()))
    plain_step = plain(other, subject.batch.images, bf16=True)
    muon = replace(config, optim=replace(config.optim, kind="muon"))
    with_muon = stepper(subject.task, muon, subject.rows, "bf16", subject.setting.world)
    sides = {
        "simmim": subject.step,
        "simmim with Muon": lambda: with_muon.begin(iter([subject.batch]), rate=1e-5),
        "plain loop": plain_step,
    }
    subject.time(part, sides)
    with warnings.catch_warnings(), deterministic():
        warnings.simplefilter("ignore")
        subject.time(part, {f"simmim, {DETERMINISTIC}": subject.step})


def compiled(part: Part, subject: Subject) -> None:
    """By block, which compiles each kind of block once, and as one."""
    setting, task = subject.setting, subject.task
    backend = setting.sizes.backend
    blocks = [*task.model.encoder.layers, *task.model.decoder.layers]
    for side, reserve in (("blocks compiled", 25.0), ("compiled", 60.0)):
        if setting.on_gpu and part.left() < reserve:
            part.add(f"{subject.name}, {side}", "left out: too little time")
            continue
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        began = time.perf_counter()
        if side == "compiled":
            whole = torch.compile(task.module, dynamic=False, backend=backend)
            task.call = whole  # type: ignore[assignment]
        else:
            for block in blocks:
                block.compile(dynamic=False, backend=backend)
        subject.step()
        setting.wait()
        seconds, counters = time.perf_counter() - began, torch._dynamo.utils.counters
        subject.time(
            part,
            {f"simmim, {side}": subject.step},
            compile_seconds=seconds,
            graphs=counters["stats"]["unique_graphs"],
            graph_breaks=dict(counters["graph_break"]),
        )
        for block in blocks:
            block._compiled_call_impl = None


def loader(part: Part, setting: Setting) -> None:
    """Images/s from shards by number of workers, and a run of ViT-B that waits for them."""
    sizes = setting.sizes
    photos, out = setting.folder / "large", setting.folder / "shards"
    make(photos, sizes.photos, 2, 96)
    run_shard(ShardConfig(data=(str(photos),), out=out, workers=cores()))
    images = ImageSet(find_images(out), PIXELS)
    recipe, model, _ = sizes.speed[0]
    config = setting.large(recipe, model)
    assert config.encoder.image_size is not None
    rows = 128 if setting.on_gpu else 4
    for workers in sizes.workers:
        stream = stream_of(images, config.encoder.image_size, rows, workers)
        batches = stream.start(0)
        rate = rate_of(setting, lambda batches=batches: len(next(batches).t), 4)
        stream.close()
        part.add(f"{workers} workers", f"{rate:,.0f} images/s", images_per_s=rate)
    task = setting.task(config)
    made = stepper(task, config, rows, "bf16", setting.world)
    stream = stream_of(images, config.encoder.image_size, rows, max(sizes.workers[:3]))
    batches = stream.start(0)

    def step() -> int:
        made.begin(batches, rate=1e-5)
        return rows

    rate = rate_of(setting, step, 4)
    stream.close()
    part.add(
        f"{recipe} {model} trained from {max(sizes.workers[:3])} workers",
        f"{rate:,.0f} images/s",
        images_per_s=rate,
    )


def stream_of(images: ImageSet, size: tuple[int, int], rows: int, workers: int) -> TrainStream:
    return TrainStream(
        images,
        augment=AugmentConfig(),
        size=size,
        seed=0,
        batch_size=rows,
        micro_batch=rows,
        workers=workers,
    )


def rate_of(setting: Setting, piece: Callable[[], int], warm: int) -> float:
    """Images/s over some seconds; what was made ahead while waiting at first is left out."""
    for _ in range(warm):
        piece()
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < setting.sizes.seconds or not images:
        images += piece()
    return images / (time.perf_counter() - began)
