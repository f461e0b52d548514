"""`simmim-fast` beside the original MAE design at equal time, and what each of its parts gives.

    export OMP_WAIT_POLICY=PASSIVE OPENBLAS_NUM_THREADS=1
    python benchmarks/fast.py WORK --clothing DIR --cifar DIR --speed [--sides …]
    python benchmarks/fast.py WORK --clothing DIR --cifar DIR [--seconds 300] [--sides …]
    python benchmarks/fast.py WORK --table

DIR holds a folder per part and in it one per class (`train/CLASS/…`, `val/CLASS/…`, `test`, where
there is one, and `unlabeled/` without classes). All images of `train` and `unlabeled` are
pretrained on without labels, of CIFAR-10 every fifth. `mae/5` and the like get a fifth of the time.
`--fashion DIR` and `--elpv DIR` are two sets nothing was chosen by: every sixth and fifth image
of the two parts of Fashion-MNIST, and ELPV's solar cells at 96 pixels, functional below a
probability of one half and defective from it, a quarter of them `val`.

Time is what a run takes on one core while another runs on the other, and no more: with --speed,
each side's median step is timed (two at a time, for 20 s; the machine must have nothing else to
do), and a run is then as many steps as fit, however busy the machine is. A side that was not timed
has as many steps as `fast`.

What a run is worth: logistic regression on frozen features (the mean of the patch tokens) with 10,
30 and 100 labels a class, mean over four draws, asked about all other labelled images; k-NN with
four fifths of them; with --finetune also, on the clothing photos, fine-tuned on 30
labels a class, mean over three draws, and for the first seed on all of `train`, asked about `val`
and `test`. A row for each run goes into benchmarks/results/fast.jsonl as soon as it is known; rows
that are there are not made again.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "fast.jsonl"
SPEEDS = RESULTS.with_name("fast_speed.jsonl")
LABELS = (10, 30, 100)
DRAWS = 4
FINETUNINGS = 3

SETS: dict[str, list[str]] = {
    "clothing": ["--image-size", "64", "--patch-size", "8"],
    "cifar": ["--image-size", "32", "--patch-size", "4"],
    "fashion": ["--image-size", "28", "--patch-size", "4"],
    "elpv": ["--image-size", "64", "--patch-size", "8"],
}
COMMON = """
    --model vit_tiny_patch16_224 --arguments depth=4 --augment.scale 0.5,1 --batch-size 32
    --threads 1 --workers 0 --holdout 0 --picture-every 0 --tensorboard false --keep 1
    --save-minutes 100 --max-bad 0
"""
SIDES: dict[str, str] = {
    "mae": "--recipe mae --decoder.depth 2 --decoder.width 96 --decoder.heads 3 --optim.lr 3e-3",
    "fast": "--recipe simmim-fast",
    "simmim": "--recipe simmim",
    "AdamW": "--recipe simmim-fast --optim.kind adamw --optim.lr 3e-3",
    "Muon of blocks alone": "--recipe simmim-fast --optim.matrices block",
    "momentum 0.95": "--recipe simmim-fast --optim.momentum 0.95",
    "cosine": "--recipe simmim-fast --optim.schedule cosine",
    "pixels alone": "--recipe simmim-fast --target pixels",
    "HOG alone": "--recipe simmim-fast --target hog",
    "cells of half a patch": "--recipe simmim-fast --target.hog.cell 4",
    "raw pixels": "--recipe simmim-fast --target.pixels.norm-pix false",
    "decoder of 2 blocks": "--recipe simmim-fast --decoder.depth 2",
    "85 % masked": "--recipe simmim-fast --mask.ratio 0.85",
    "60 % masked": "--recipe simmim-fast --mask.ratio 0.6",
    "60 % masked, pixels alone": "--recipe simmim-fast --mask.ratio 0.6 --target pixels",
    "60 % masked, HOG alone": "--recipe simmim-fast --mask.ratio 0.6 --target hog",
    "60 % masked, decoder of 2 blocks": "--recipe simmim-fast --mask.ratio 0.6 --decoder.depth 2",
    "50 % masked": "--recipe simmim-fast --mask.ratio 0.5",
    "50 % masked, pixels alone": "--recipe simmim-fast --mask.ratio 0.5 --target pixels",
    "no layout": "--recipe simmim-fast --extra none",
    "half the rate": "--recipe simmim-fast --optim.lr 8e-3",
}
"""What each side differs in; those with other words take one thing out of `simmim-fast`."""


def rows(file: Path) -> list[dict[str, Any]]:
    """What is known already."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def jobs(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All runs that are asked for and have no row yet."""
    known = [{key: row[key] for key in ("set", "side", "seconds", "seed")} for row in rows(RESULTS)]
    for seed in range(args.seeds):
        for name in SETS:
            for side in args.sides:
                share = 5 if side.endswith("/5") else 1
                job = {
                    "set": name,
                    "side": side.removesuffix("/5"),
                    "seconds": args.seconds // share,
                    "seed": seed,
                }
                if getattr(args, name) and job not in known:
                    yield job


def parts(name: str, root: Path, work: Path) -> dict[str, Path]:
    """The folders of a set; of CIFAR-10 those with every fifth image."""
    if name != "cifar":
        return {each.name: each for each in sorted(root.iterdir()) if each.is_dir()}
    for file in sorted(root.glob("*/*/*"))[::5]:
        link = work / "cifar" / file.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(file.resolve())
    return {each.name: each for each in sorted((work / "cifar").iterdir())}


def trained(folders: dict[str, Path]) -> list[str]:
    """The parts of a set that are pretrained on."""
    return [part for part in ("train", "unlabeled") if part in folders]


def pretrain(job: dict[str, Any], folders: dict[str, Path], run: Path, *length: str) -> None:
    """Pretrain as a job says, in a process of its own; a run that is whole stays as it is."""
    if not (run / "encoder.safetensors").exists():
        data = [str(folders[part]) for part in trained(folders)]
        command = [sys.executable, "-m", "simmim", "pretrain", *data, *COMMON.split()]
        command += [*SETS[job["set"]], *SIDES[job["side"]].split(), "--seed", str(job["seed"])]
        log = (run.parent / "log.txt").open("a")
        subprocess.run([*command, *length, "--out", str(run)], check=True, stdout=log)


def length(job: dict[str, Any], folders: dict[str, Path]) -> tuple[int, str]:
    """Steps and epochs that fit into the seconds of a job."""
    speeds = {(row["set"], row["side"]): row["step"] for row in rows(SPEEDS)}
    side = job["side"] if (job["set"], job["side"]) in speeds else "fast"
    steps = round(job["seconds"] / speeds[job["set"], side])
    files = [file for part in trained(folders) for file in folders[part].rglob("*.*")]
    images = sum(file.suffix in (".jpg", ".png") for file in files)
    return steps, repr((steps - 0.5) * 32 / images)


def speed(job: dict[str, Any], folders: dict[str, Path], work: Path) -> dict[str, Any]:
    """The median step of a side, in seconds."""
    run = work / f"speed-{job['set']}-{job['side']}"
    pretrain(job, folders, run, "--budget", "20s")
    times = [row["time"] for row in rows(run / "metrics.jsonl")][10:]
    step = statistics.median(after - before for before, after in itertools.pairwise(times))
    return {"set": job["set"], "side": job["side"], "step": round(step, 4)}


def measure(run: Path, folders: dict[str, Path], seed: int, *, finetune: bool) -> dict[str, Any]:
    """What the encoder of a run is worth, in per cent."""
    import torch

    import simmim
    from simmim.config.demo import classifying
    from simmim.data.labels import class_folders
    from simmim.data.loading.images import ImageSet
    from simmim.data.sources.find import find_images
    from simmim.evaluate.features import extract
    from simmim.evaluate.probe import accuracy, knn, linear
    from simmim.tasks.classify import finetune_in_memory
    from simmim.tensors.counter import Purpose, hash64
    from simmim.training.world import ALONE

    torch.set_num_threads(1)
    encoder = simmim.load(run)
    sets, classes = {}, []
    for part in ("train", "val", "test"):
        if part in folders:
            labels = class_folders(find_images(str(folders[part])))
            classes = labels.classes
            sets[part] = ImageSet(labels.images, encoder.pixels, [n for _, n in labels.pairs()])
    tables = {part: extract(encoder, images) for part, images in sets.items()}
    features = np.concatenate([table.features for table in tables.values()])
    y = np.concatenate([table.labels for table in tables.values()])
    train = len(sets["train"].labels)

    def draw(number: int, each: int) -> list[int]:
        rows = sorted(range(train), key=lambda row: hash64(0, Purpose.DRAW, number, row))
        return [row for n in range(len(classes)) for row in [r for r in rows if y[r] == n][:each]]

    def asked(protocol, rows: list[int]) -> float:
        rest = np.setdiff1d(np.arange(len(y)), rows)
        pieces = (features[rows], y[rows], features[rest], y[rest])
        return 100 * protocol(*pieces, classes=len(classes)).accuracy

    values: dict[str, Any] = {
        str(each): statistics.mean(asked(linear, draw(n, each)) for n in range(DRAWS))
        for each in LABELS
    }
    order = sorted(range(len(y)), key=lambda row: hash64(1, Purpose.DRAW, 0, row))
    values["knn"] = asked(knn, order[: len(y) * 4 // 5])
    if finetune:

        def tuned(rows: list[int], number: int) -> float:
            whole = sets["train"]
            some = replace(whole, paths=whole.paths.select(rows), labels=[int(y[r]) for r in rows])
            settings = replace(classifying(str(folders["train"])), seed=seed + number)
            model = finetune_in_memory(settings, encoder, some, classes=classes, world=ALONE)
            said = [model.predict(sets[part]) for part in ("val", "test")]
            chosen = np.concatenate([each.probabilities.argmax(1) for each in said])
            return 100 * accuracy(np.concatenate([each.labels for each in said]), chosen)

        few = [tuned(draw(n, 30), n) for n in range(FINETUNINGS)]
        values["finetuned 30"] = statistics.mean(few)
        if seed == 0:
            values["finetuned all"] = tuned(list(range(train)), 0)
    return values


def table() -> str:
    """The means over the seeds, with their standard deviation, as Markdown."""
    names = [*map(str, LABELS), "knn", "finetuned 30", "finetuned all"]
    lines = [f"| set | side | seconds | seeds | steps | {' | '.join(names)} |"]
    lines.append("|---" * (len(names) + 5) + "|")
    groups: dict[tuple, list[dict]] = {}
    for row in rows(RESULTS):
        groups.setdefault((row["set"], row["side"], row["seconds"]), []).append(row)
    for key, group in sorted(
        groups.items(), key=lambda item: (item[0][0], -item[0][2], item[0][1])
    ):
        cells = []
        for name in names:
            values = [row[name] for row in group if name in row]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        steps = statistics.mean(row["steps"] for row in group)
        lines.append(
            f"| {' | '.join(map(str, key))} | {len(group)} | {steps:.0f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("work", type=Path, help="runs are made here")
    parser.add_argument("--sides", nargs="+", default=["fast", "mae", "fast/5"])
    for name in SETS:
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--finetune", action="store_true", help="too, on the clothing photos")
    parser.add_argument("--jobs", type=int, default=2, help="at a time")
    parser.add_argument("--speed", action="store_true", help="time the steps of the sides")
    parser.add_argument("--table", action="store_true", help="print what is known")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        print(table())
        return
    args.work.mkdir(parents=True, exist_ok=True)
    folders = {
        name: parts(name, getattr(args, name), args.work) for name in SETS if getattr(args, name)
    }
    if args.one:
        print(json.dumps(one(json.loads(args.one), folders, args)))
        return
    results = SPEEDS if args.speed else RESULTS

    def make(job: dict[str, Any]) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", json.dumps(job)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        with results.open("a") as file:
            file.write(done.stdout.splitlines()[-1] + "\n")
        print(done.stdout.splitlines()[-1], flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(make, speeds(args) if args.speed else jobs(args)))


def speeds(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All sides that are asked for and not timed yet."""
    known = [(row["set"], row["side"]) for row in rows(SPEEDS)]
    for name in SETS:
        for side in args.sides:
            if getattr(args, name) and "/" not in side and (name, side) not in known:
                yield {"set": name, "side": side, "seed": 0}


def one(
    job: dict[str, Any], folders: dict[str, dict[str, Path]], args: argparse.Namespace
) -> dict[str, Any]:
    """The row of one job."""
    own = folders[job["set"]]
    if args.speed:
        return speed(job, own, args.work)
    run = args.work / "-".join(map(str, job.values()))
    steps, epochs = length(job, own)
    pretrain(job, own, run, "--epochs", epochs)
    finetune = job["set"] == "clothing" and args.finetune
    return {**job, "steps": steps, **measure(run, own, job["seed"], finetune=finetune)}


if __name__ == "__main__":
    main()
