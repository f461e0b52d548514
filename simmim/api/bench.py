"""``simmim bench``: how fast images come on this machine, beside how fast a model takes them."""

import contextlib
import io
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from simmim.api.bench_encoder import names_encoder, run_encoder_bench
from simmim.api.remarks import notes
from simmim.config.data import BenchConfig
from simmim.config.encoder import EncoderConfig
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.data.audit.survey import survey
from simmim.data.formats.decode import is_eight_bit, read_pixels
from simmim.data.formats.image_file import UnreadableError
from simmim.data.loading.cache import ImageCache, file_bytes, in_words, loss_in_words, pick_cache
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream
from simmim.data.loading.quarantine import unreadable
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.machine import cores, pick_workers
from simmim.report import terminal
from simmim.report.pictures import write_whole
from simmim.report.words import count, percent, speed
from simmim.runs.files import check_can_write
from simmim.tasks.pretrain import build_task
from simmim.tensors.batch import Batch
from simmim.training import resolve
from simmim.training.optim import build_optimizer
from simmim.training.step import Stepper
from simmim.training.world import World, join

SAMPLE = 512
"""Images that are read, over and over: after the first round they come from memory."""
BATCH = 32
ENOUGH = 1.1
"""The loader is taken to be fast enough where it gives so many times what the model takes."""

READING, DECODING = "reading alone", "decoding alone"
PILLOW = "Pillow, as SimMIM's loader did, this process"
LOADER, CACHE = "simmim's loader", "simmim's loader from the cache"
TIMEOUT = 10.0
"""Seconds after which something that gave no image at all is given up."""

Pieces = Generator[int]
"""Does work without end, and yields how many images each piece was."""


@dataclass
class Figures:
    """What was measured, in images/s.

    Attributes:
        images: Images in all.
        workers: Loader processes of a run.
        cores: Cores that this process may use.
        rates: By the name of what was timed.
        model: What the model takes; 0: not timed.
        device: The model's device.
        cache_bytes: What the cache of all images takes on the disk; 0: no 8-bit images.
        loss: What crops from the cache lack.
        keeps: Whether a run keeps these images decoded by default (``--cache auto``).
        said: What should be known of the images, as names and values.
    """

    images: int
    workers: int
    cores: int
    rates: dict[str, float] = field(default_factory=dict)
    model: float = 0.0
    device: str = ""
    cache_bytes: int = 0
    loss: str = ""
    keeps: bool = False
    said: list[tuple[str, str]] = field(default_factory=list)


def run_bench(config: BenchConfig) -> dict[str, Any]:
    """Time each way of loading and a step of the model, or an encoder; print a table and a verdict.

    Returns:
        The figures and the verdict, as they go into the JSON file.

    Raises:
        ConfigError: A folder of ``out`` that is not there, an unknown model.
        DataError: No image can be read.
    """
    if config.out is not None:
        check_can_write(config.out)
    if names_encoder(config.data):
        return run_encoder_bench(config)
    console = Console()
    stage = terminal.Stage(console)
    try:
        with join() as world:
            found = _measure(config, world, stage)
    finally:
        stage.close()
    advice = verdict(found)
    terminal.facts(console, found.said + table(found))
    terminal.done(advice, console)
    facts = {**asdict(found), "verdict": advice}
    if config.out is not None:
        write_whole(config.out, json.dumps(facts, indent=1).encode())
    return facts


def _measure(config: BenchConfig, world: World, stage: terminal.Stage) -> Figures:
    images = find_images(*config.data, found=lambda n: stage.update(0.0, f"{n:,} images found"))
    looked_at = survey(images, channels=None, sample=64)
    pixels = looked_at.pixels
    sample, size = images.sample(SAMPLE), config.size
    workers = pick_workers(config.workers)
    found = Figures(len(images), workers, cores(), said=notes(images, looked_at))
    if looked_at.bad:
        said = unreadable(dict(looked_at.bad), looked_at.sampled, "images looked at")
        found.said.append(("unreadable", said))
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="simmim-bench-") as folder:
        sides = _sides(config, ImageSet(sample, pixels), workers, Path(folder))
        for number, (name, pieces) in enumerate(sides):
            stage.update(number / (len(sides) + 1), name)
            torch.set_num_threads(1)  # as in the loader's processes
            try:
                if rate := _rate(pieces, config.seconds):
                    found.rates[name] = rate
            finally:
                torch.set_num_threads(threads)
                pieces.close()
    if is_eight_bit(pixels):
        found.cache_bytes = file_bytes(images, pixels, size)
        found.keeps, _ = pick_cache("auto", images, pixels, size)
        found.loss = loss_in_words(size, config.augment.scale[0])
    if config.model != "none":
        stage.update(len(sides) / (len(sides) + 1), f"a training step of {config.model}")
        found.model = _model_rate(config, sample, pixels, world)
        found.device = world.device.type
    return found


def _sides(
    config: BenchConfig, images: ImageSet, workers: int, folder: Path
) -> list[tuple[str, Pieces]]:
    """Return what is timed, by name."""
    listing, pixels, eight_bit = images.paths, images.pixels, is_eight_bit(images.pixels)
    sides = [
        (READING, _each(len(images), listing.read)),
        (DECODING, _each(len(images), lambda i: read_pixels(listing.open(i)))),
    ]
    if eight_bit and pixels.channels == 3:
        sides.append((PILLOW, _each(len(images), _PillowView(listing, pixels, config))))
    # Each in this process and with the workers of a run; with none it is the same.
    runs = sorted({0, workers})
    sides += [(_named(LOADER, number), _stream(config, images, number)) for number in runs]
    if eight_bit:
        sides += [(_named(CACHE, n), _stream(config, images, n, folder)) for n in runs]
    return sides


def _each(images: int, work: Callable[[int], object]) -> Pieces:
    """Do ``work`` for one image after the other, without end; unreadable ones count as none."""
    for i in itertools.cycle(range(images)):
        try:
            work(i)
        except (UnreadableError, Image.UnidentifiedImageError, OSError, NotImplementedError):
            yield 0
        else:
            yield 1


def _stream(
    config: BenchConfig, images: ImageSet, workers: int, folder: Path | None = None
) -> Pieces:
    """Load batches as a run does, without end; from a cache in ``folder``, filled before."""
    size = config.size
    if folder is not None:
        cache = ImageCache(images.paths, images.pixels, size, folder)
        for i in range(len(cache)):
            with contextlib.suppress(UnreadableError, OSError):
                read_pixels(cache.open(i))
        images = replace(images, cache=cache)
    stream = TrainStream(
        images,
        augment=config.augment,
        size=size,
        seed=0,
        batch_size=BATCH,
        micro_batch=BATCH,
        workers=workers,
    )
    try:
        for batch in stream.start(0):
            yield len(batch.t)
    finally:
        stream.close()


class _PillowView:
    """One view as the original SimMIM's loader makes it, by Pillow, to normalised float32."""

    def __init__(self, images: Listing, pixels: PixelFormat, config: BenchConfig) -> None:
        self.images = images
        self.mean = torch.tensor(pixels.mean).view(-1, 1, 1)
        self.std = torch.tensor(pixels.std).view(-1, 1, 1)
        self.augment, self.side = config.augment, config.size[0]
        self.rng = np.random.default_rng(0)

    def __call__(self, i: int) -> torch.Tensor:
        image = Image.open(io.BytesIO(self.images.read(i))).convert("RGB")
        low, high = self.augment.ratio
        share = self.rng.uniform(*self.augment.scale)
        ratio = math.exp(self.rng.uniform(math.log(low), math.log(high)))
        area = image.width * image.height * share
        width = min(image.width, max(1, round(math.sqrt(area * ratio))))
        height = min(image.height, max(1, round(math.sqrt(area / ratio))))
        left = int(self.rng.integers(image.width - width + 1))
        top = int(self.rng.integers(image.height - height + 1))
        view = image.crop((left, top, left + width, top + height))
        view = view.resize((self.side, self.side), Image.Resampling.BILINEAR)
        if self.rng.random() < self.augment.flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        planes = torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous()
        return (planes.float().div(255) - self.mean) / self.std


def _rate(pieces: Pieces, seconds: float) -> float:
    """Return images/s; what was made ahead while the first pieces were waited for is left out."""
    began = time.perf_counter()
    for _ in range(4):
        next(pieces)
    images, start = 0, time.perf_counter()
    while (now := time.perf_counter()) - start < seconds or not images:
        images += next(pieces)
        if not images and now - began > max(seconds, TIMEOUT):
            return 0.0
    return images / (time.perf_counter() - start)


def _model_rate(config: BenchConfig, images: Listing, pixels: PixelFormat, world: World) -> float:
    """Return images/s of a training step on one batch that is there already."""
    size = config.size
    asked = PretrainConfig(encoder=EncoderConfig(model=config.model, image_size=size))
    torch.set_num_threads(cores())
    task = build_task(asked, pixels, world)
    dtype = torch.uint8 if is_eight_bit(pixels) else torch.float32
    shape = (pixels.channels, *size)
    sample = Batch(torch.zeros(2, *shape, dtype=dtype), torch.arange(2))
    width = task.model.encoder.width
    fit = resolve.pick_step(
        task, asked, sample, images=len(images), width=width, world=world, why={}
    )
    rows = fit.micro_batch
    stepper = Stepper(
        task,
        build_optimizer(task.module, task.roles(), asked.optim, world),
        batch_size=rows * world.ranks,
        precision=fit.precision,
        clip=asked.optim.clip,
        seed=0,
        world=world,
    )
    task.module.train()
    batch = Batch(torch.zeros(rows, *shape, dtype=dtype), torch.arange(rows)).to(world.device)
    times: list[float] = []
    while len(times) < 3 or sum(times) < config.seconds:
        start = time.perf_counter()
        stepper.step(itertools.repeat(batch), rate=0.0)
        times.append(time.perf_counter() - start)
    return rows / statistics.median(times[1:])


def _named(what: str, workers: int) -> str:
    return f"{what}, {count(workers, 'worker') if workers else 'this process'}"


def table(found: Figures) -> list[tuple[str, str]]:
    """Return names and images/s of all that was timed, for the terminal."""
    rows = [(name, f"{speed(rate):>8} images/s") for name, rate in found.rates.items()]
    if found.model:
        rows.append((f"the model takes ({found.device})", f"{speed(found.model):>8} images/s"))
    return rows


def verdict(found: Figures) -> list[str]:
    """Say whether the model will wait for images, and what helps."""
    if not found.model or _named(LOADER, found.workers) not in found.rates:
        return _cache_in_words(found)
    loader, model = found.rates[_named(LOADER, found.workers)], found.model
    if loader >= ENOUGH * model:
        spare = f"images come {loader / model:.1f} times as fast as the model takes them"
        return [f"verdict     the loader will not starve the model: {spare}"]
    waits = max(0.0, 1 - loader / model)
    cached = found.rates.get(_named(CACHE, found.workers), 0.0)
    if found.keeps and cached >= ENOUGH * model:
        return [
            f"verdict     the loader will not starve the model after the first epoch, "
            f"{percent(waits)} of which it waits",
            f"cache       kept by default, {in_words(found.cache_bytes)}: then images come "
            f"{cached / model:.1f} times as fast as the model takes them",
            f"            {found.loss}",
        ]
    lines = [
        f"verdict     the loader starves the model, which would wait {percent(waits)} of the time"
        if waits > 0.05
        else "verdict     the loader is only just as fast as the model"
    ]
    if cached > loader:
        lines += _cache_in_words(found)
    need = math.ceil(ENOUGH * model / max(found.rates.get(_named(LOADER, 0), loader), 1e-9))
    if found.workers < need <= found.cores:
        lines.append(f"workers     --workers {need} should do")
    elif need > found.cores:
        lines.append(f"workers     {need} would be needed, and there are {found.cores} cores")
    lines.append(
        "shards      simmim shard DATA --out SHARDS makes small files of large images, once"
    )
    return lines


def _cache_in_words(found: Figures) -> list[str]:
    cached = found.rates.get(_named(CACHE, found.workers))
    if cached is None:
        return []
    return [
        f"cache       --cache on gives {speed(cached)} images/s after the first epoch and takes "
        f"{in_words(found.cache_bytes)}",
        f"            {found.loss}",
    ]
