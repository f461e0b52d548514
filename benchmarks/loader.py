"""Images/s of one core: simmim's loader beside the original SimMIM's (torchvision on PIL).

    python benchmarks/loader.py [--rounds 7] [--out benchmarks/results/loader.json]

Both sides run in one process with one thread, files in the page cache, batches of 32: random
resized crop (0.2 to 1 of the area) to 224 pixels, flip, normalised float32 batch on the CPU.

- original: ImageFolder, PIL, `convert("RGB")`, RandomResizedCrop, flip, ToTensor, Normalize, and
  DataLoader's collate, as in SimMIM's data_simmim.py (its mask left out, which costs little)
- ours: `TrainStream` with `workers=0`, up to the batch of bytes that goes to the device
- ours, normalised: and then `normalise`, which a run does on its device, here on the same core

The photos are mosaics of simmim's own demo photos, enlarged twice (500×375, JPEG quality 96, about
100 kB, as ImageNet's are) and sixteen times (4000×3000, quality 90, about 3 MB), with sensor noise.
The sides take turns within each round; raw times, medians and ratios go into the JSON file.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from simmim.api.shard import run_shard
from simmim.config.augment import AugmentConfig
from simmim.config.data import ShardConfig
from simmim.config.resolved import PixelFormat
from simmim.data import demo
from simmim.data.formats.decode import read_pixels
from simmim.data.loading.augment import choose_shrink
from simmim.data.loading.cache import ImageCache
from simmim.data.loading.geometry import random_geometry
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.runs.folder import environment
from simmim.tensors.patches import normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS = PixelFormat(channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=MEAN, std=STD)
AUGMENT, SIZE, BATCH = AugmentConfig(), (224, 224), 32

Take = Callable[[int], object]
"""Loads so many images."""


def picture(tiles: list[Image.Image], rng: np.random.Generator, zoom: int, noise: float):
    """A mosaic, 250·zoom pixels wide and three quarters as high."""
    width, height, side = 250 * zoom, 375 * zoom // 2, 80 * zoom
    whole = Image.new("RGB", (width, height))
    for top, left in itertools.product(range(0, height, side), range(0, width, side)):
        tile = tiles[rng.integers(len(tiles))]
        size = (tile.width * zoom, tile.height * zoom)
        whole.paste(tile.resize(size, Image.Resampling.BICUBIC), (left, top))
    values = np.asarray(whole).astype(np.float32)
    values += rng.normal(0, noise, (height, width, 1)) + rng.normal(0, noise / 2, values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def make(folder: Path, count: int, zoom: int, quality: int) -> float:
    """Write photos; returns their mean size in kB."""
    with tempfile.TemporaryDirectory() as unpacked:
        demo.unpack(Path(unpacked))
        files = sorted(Path(unpacked).rglob("*.jpg"))[::8]
        tiles = [Image.open(file).convert("RGB") for file in files]
    rng = np.random.default_rng(0)
    (folder / "class").mkdir(parents=True)
    for i in range(count):
        picture(tiles, rng, zoom, 5.0).save(folder / "class" / f"{i:04}.jpg", quality=quality)
    return sum(file.stat().st_size for file in folder.rglob("*.jpg")) / count / 1e3


def original(folder: Path) -> Take:
    steps = [
        transforms.RandomResizedCrop(SIZE[0], AUGMENT.scale, AUGMENT.ratio),
        transforms.RandomHorizontalFlip(AUGMENT.flip),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    data = datasets.ImageFolder(str(folder), transforms.Compose(steps))

    def endless():
        while True:
            yield from DataLoader(data, BATCH, shuffle=True, drop_last=False)

    batches = endless()

    def take(count: int) -> None:
        while count > 0:
            count -= len(next(batches)[0])

    return take


def ours(images: Listing, cache: ImageCache | None = None, *, to_floats: bool) -> Take:
    stream = TrainStream(
        ImageSet(images, PIXELS, cache=cache),
        augment=AUGMENT,
        size=SIZE,
        seed=0,
        batch_size=BATCH,
        micro_batch=BATCH,
        workers=0,
    )
    batches = stream.start(0)

    def take(count: int) -> None:
        while count > 0:
            batch = next(batches)
            if to_floats:
                normalise(batch.images, PIXELS)
            count -= len(batch.t)

    return take


def both(name: str, images: Listing, cache: ImageCache | None = None) -> dict[str, Take]:
    return {
        name: ours(images, cache, to_floats=False),
        f"{name}_normalised": ours(images, cache, to_floats=True),
    }


def scaled_decoding(images: Listing) -> Take:
    keys = itertools.count()

    def take(count: int) -> None:
        for _ in range(count):
            t = next(keys)
            opened = images.open(t % len(images))
            drawn = random_geometry(opened.height, opened.width, AUGMENT, SIZE, (0, 2, t, 0))
            read_pixels(opened, choose_shrink(opened, drawn.box, SIZE)[0])

    return take


def race(sides: dict[str, Take], count: int, rounds: int) -> dict[str, list[float]]:
    """Return images/s of each side and round; a first round for warming up is left out."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, take in sides.items():
            began = time.perf_counter()
            take(count)
            if number:
                rates[name].append(count / (time.perf_counter() - began))
    return rates


def summary(rates: dict[str, list[float]], beside: str) -> dict[str, object]:
    """Medians, and the median over the rounds of each side's rate over that of ``beside``."""
    ratios = {
        name: statistics.median(a / b for a, b in zip(of, rates[beside], strict=True))
        for name, of in rates.items()
    }
    medians = {name: statistics.median(of) for name, of in rates.items()}
    return {"images_per_s": medians, f"over_{beside}": ratios, "raw": rates}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loader.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["SIMMIM_CACHE"] = str(root / "cache")
        photos_kb = make(root / "photos", 256, 2, 96)
        large_kb = make(root / "large", 8, 16, 90)
        shards = run_shard(
            ShardConfig(data=(str(root / "photos"),), out=root / "shards", workers=0)
        )
        raw = find_images(root / "photos")
        cached = ImageCache(raw, PIXELS, SIZE)
        for i in range(len(raw)):
            read_pixels(cached.open(i))
        sides = {
            "original": original(root / "photos"),
            **both("raw", raw),
            **both("shards", find_images(shards)),
            **both("cache", raw, cached),
        }
        photos = race(sides, 256, arguments.rounds)
        large = find_images(root / "large")
        sides = {
            "original": original(root / "large"),
            **both("raw", large),
            "scaled_decoding": scaled_decoding(large),
        }
        large_rates = race(sides, BATCH, max(3, arguments.rounds // 2))
    found = {
        "machine": environment(),
        "photos": {"pixels": "500x375", "mean_kB": photos_kb, **summary(photos, "original")},
        "large": {
            "pixels": "4000x3000",
            "mean_kB": large_kb,
            **summary(large_rates, "original"),
            **{
                "over_scaled_decoding": summary(large_rates, "scaled_decoding")[
                    "over_scaled_decoding"
                ]
            },
        },
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    short = {k: {n: v for n, v in part.items() if n != "raw"} for k, part in found.items()}
    print(json.dumps(short, indent=1))


if __name__ == "__main__":
    main()
