"""Which settings suit a demo of minutes: pretrain under each, and see what frozen features tell.

    export OMP_WAIT_POLICY=PASSIVE OPENBLAS_NUM_THREADS=1
    python benchmarks/demo_search.py PHOTOS [TRIAL …] --steps 500 --save ENCODERS
    python benchmarks/demo_search.py PHOTOS [TRIAL …] --finetune ENCODERS/TRIAL-STEPS.pt

PHOTOS is the embedded set as unpacked by the demo (its `photos` folder: train, val, unlabeled).
Each trial differs from the base in what TRIALS says. All get about the same time on a quiet
machine: a trial's `pace` is how many of its steps cost as much as one of the base. The figures are
accuracies of a logistic regression and of k-NN on frozen features with 30 labelled photos of each
class, mean over four draws, on the validation photos and, less noisy, on all labelled photos
outside the draw. The test photos are not looked at. Rows are added to benchmarks/results.

With --finetune the trials are those of FINETUNE: an encoder saved before and one from scratch are
fine-tuned on the first draws and asked about the validation photos and 700 others.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simmim.config.demo import LABELS_PER_CLASS
from simmim.config.finetune import ClassifyConfig
from simmim.config.optim import OptimConfig
from simmim.config.recipes import mae
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig, SystemConfig
from simmim.data.audit.survey import survey
from simmim.data.labels import class_folders
from simmim.data.loading.images import ImageSet
from simmim.data.sources.find import find_images
from simmim.evaluate.features import FeatureTable, extract
from simmim.evaluate.probe import accuracy, balanced_accuracy, knn, linear
from simmim.interop.load import LoadedEncoder
from simmim.models.build import build_encoder
from simmim.tasks.classify import finetune_in_memory
from simmim.tasks.pretrain import PretrainTask, build_task
from simmim.training.loop import train
from simmim.training.prepare import Training, prepare
from simmim.training.world import World

RESULTS = Path(__file__).parent / "results" / "demo_search.json"
DRAWS = 4
WORLD = World(0, 1, torch.device("cpu"))

BASE: dict[str, Any] = {
    "encoder": {
        "model": "vit_tiny_patch16_224",
        "image_size": (64, 64),
        "patch_size": 8,
        "arguments": {"depth": 6},
    },
    "decoder": {"depth": 2, "width": 96, "heads": None},
    "optim": OptimConfig(lr=3e-3),
    "augment": {"scale": (0.2, 1.0)},
    "batch_size": 64,
}
"""Where the search began, from the recipe `mae`, which was the demo's."""
TRIALS: dict[str, dict[str, Any]] = {
    "untrained": {"pace": 0.0},
    "batch-64": {"batch_size": 64},
    "batch-32": {"batch_size": 32, "pace": 1.8},
    "batch-32, 48 px": {"batch_size": 32, "encoder": {"image_size": (48, 48)}, "pace": 2.9},
    "batch-16": {"batch_size": 16, "pace": 3.2},
    "batch-32, crop 0.4": {"batch_size": 32, "augment": {"scale": (0.4, 1.0)}, "pace": 1.8},
    "batch-32, 4 blocks": {
        "batch_size": 32,
        "encoder": {"arguments": {"depth": 4}},
        "pace": 2.35,
    },
    "batch-32, 4 blocks, crop 0.5": {
        "batch_size": 32,
        "encoder": {"arguments": {"depth": 4}},
        "augment": {"scale": (0.5, 1.0)},
        "pace": 2.35,
    },
    "batch-32, 4 blocks, crop 0.5, rate 5e-3": {
        "batch_size": 32,
        "encoder": {"arguments": {"depth": 4}},
        "augment": {"scale": (0.5, 1.0)},
        "optim": {"lr": 5e-3},
        "pace": 2.35,
    },
}
"""What differs from BASE, and the pace."""


FINETUNE: dict[str, dict[str, Any]] = {
    "rate 2e-3": {"optim": {"lr": 2e-3}},
    "rate 2e-3, layer decay 0.8, crop 0.5": {
        "optim": {"lr": 2e-3, "layer_decay": 0.8},
        "encoder": {"drop_path": 0.0},
        "augment": {"scale": (0.5, 1.0)},
    },
    "rate 4e-3, layer decay 0.8, crop 0.5": {
        "optim": {"lr": 4e-3, "layer_decay": 0.8},
        "encoder": {"drop_path": 0.0},
        "augment": {"scale": (0.5, 1.0)},
    },
}
"""What differs from the defaults of `simmim finetune`, for 10 epochs at batch 32."""


def configure(changes: dict[str, Any], photos: Path) -> PretrainConfig:
    config = replace(mae(), cache="off", data=(str(photos),), epochs=1.0, holdout=0)  # steps: later
    return changed(changed(config, BASE), changes)


def changed(config: Any, changes: dict[str, Any]) -> Any:
    """A config with other values, and with parts in which some values are others."""
    for name, value in changes.items():
        if name != "pace":
            part = replace(getattr(config, name), **value) if isinstance(value, dict) else value
            config = replace(config, **{name: part})
    return config


def pretrained(
    config: PretrainConfig, images: ImageSet, steps: int
) -> tuple[Training[PretrainConfig, PretrainTask], float, float]:
    """Train for ``steps`` steps; returns seconds of wall and of processor time too."""
    prepared = prepare(config, lambda: build_task(config, images.pixels, WORLD), images, WORLD)
    prepared.resolved = replace(prepared.resolved, steps=steps)
    began, used = time.monotonic(), sum(os.times()[:4])
    train(prepared.task, prepared.plan, prepared.stream, WORLD)
    prepared.stream.close()
    return prepared, time.monotonic() - began, sum(os.times()[:4]) - used


def draws(labels: np.ndarray) -> list[np.ndarray]:
    """Rows of the labelled photos, the same for every trial."""
    rng = np.random.default_rng(20)
    classes = range(labels.max() + 1)
    return [
        np.concatenate(
            [rng.permutation(np.flatnonzero(labels == c))[:LABELS_PER_CLASS] for c in classes]
        )
        for _ in range(DRAWS)
    ]


def frozen(known: FeatureTable, val: FeatureTable) -> dict[str, float]:
    """Accuracies of the frozen features, mean over the draws."""
    assert known.labels is not None
    assert val.labels is not None
    rows: dict[str, list[float]] = {}
    features = np.concatenate([known.features, val.features])
    labels = np.concatenate([known.labels, val.labels])
    is_val = np.arange(len(labels)) >= len(known.labels)
    classes = int(labels.max()) + 1
    for chosen in draws(known.labels):
        rest = np.setdiff1d(np.arange(len(labels)), chosen)
        for name, protocol in (("linear", linear), ("knn", knn)):
            score = protocol(
                features[chosen], labels[chosen], features[rest], labels[rest], classes=classes
            )
            on_val = is_val[rest]
            said, true = score.predictions, labels[rest]
            rows.setdefault(f"{name}_rest", []).append(accuracy(true, said))
            rows.setdefault(f"{name}_val", []).append(accuracy(true[on_val], said[on_val]))
            rows.setdefault(f"{name}_rest_balanced", []).append(
                balanced_accuracy(true, said, classes)
            )
    return {name: round(statistics.fmean(values), 4) for name, values in rows.items()}


def labelled_sets(root: Path, pixels: PixelFormat) -> tuple[dict[str, ImageSet], list[str]]:
    """The training and validation photos with their labels, and the names of the classes."""
    found = {part: class_folders(find_images(root / part)) for part in ("train", "val")}
    sets = {
        part: ImageSet(labels.images, pixels, [label for _, label in labels.pairs()])
        for part, labels in found.items()
        if labels is not None
    }
    assert found["val"] is not None
    return sets, found["val"].classes


def pretraining_trial(
    name: str, images: ImageSet, sets: dict[str, ImageSet], steps: int, save: Path | None
) -> dict[str, Any]:
    changes = TRIALS[name]
    steps = round(steps * changes.get("pace", 1.0))
    prepared, wall, cpu = pretrained(configure(changes, Path(images.paths.where)), images, steps)
    encoder = prepared.task.model.encoder
    if save is not None:
        save.mkdir(exist_ok=True)
        torch.save(encoder.state_dict(), save / f"{name}-{steps}.pt")
    loaded = LoadedEncoder(encoder, images.pixels)
    known, val = (extract(loaded, sets[part]) for part in ("train", "val"))
    return {
        "trial": name,
        "changes": {k: v for k, v in changes.items() if k != "pace"},
        "steps": steps,
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        **frozen(known, val),
    }


def finetuning_trial(
    name: str, weights: Path, sets: dict[str, ImageSet], classes: list[str], count: int
) -> dict[str, Any]:
    train, pixels = sets["train"], sets["train"].pixels
    assert train.labels is not None
    where = train.paths.where
    config = configure(TRIALS[weights.stem.rsplit("-", 1)[0]], Path(where))
    settings = ClassifyConfig(
        data=(where,), init_from="none", epochs=10, batch_size=32, system=SystemConfig(workers=0)
    )
    settings = changed(settings, FINETUNE[name])
    row: dict[str, Any] = {"finetune": name, "encoder": weights.stem, "draws": count}
    scores: dict[str, list[float]] = {}
    began, used = time.monotonic(), sum(os.times()[:4])
    for number, chosen in enumerate(draws(np.array(train.labels))[:count]):
        rest = np.random.default_rng(21).permutation(
            np.setdiff1d(np.arange(len(train.paths)), chosen)
        )[:700]
        for start in ("pretrained", "scratch"):
            torch.manual_seed(number)
            assert config.encoder.image_size is not None
            encoder = build_encoder(
                config.encoder, image_size=config.encoder.image_size, channels=3
            )
            if start == "pretrained":
                encoder.load_state_dict(torch.load(weights))
            learnt, others = (
                replace(
                    train,
                    paths=train.paths.select(rows.tolist()),
                    labels=[train.labels[i] for i in rows],
                )
                for rows in (chosen, rest)
            )
            begun = LoadedEncoder(encoder, pixels)
            classifier = finetune_in_memory(settings, begun, learnt, classes=classes, world=WORLD)
            for part, photos in (("val", sets["val"]), ("rest", others)):
                said = classifier.predict(photos).score()
                scores.setdefault(f"{start}_{part}", []).append(said.accuracy)
    row |= {"wall_s": round(time.monotonic() - began, 1)}
    row |= {"cpu_s": round(sum(os.times()[:4]) - used, 1)}
    return row | {name: round(statistics.fmean(values), 4) for name, values in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("trials", nargs="*")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--save", type=Path, help="folder for the encoders' weights")
    parser.add_argument("--finetune", type=Path, help="an encoder's weights saved before")
    parser.add_argument("--draws", type=int, default=1, help="of labels, with --finetune")
    options = parser.parse_args()
    root, paths = options.photos, find_images(options.photos)
    pixels = survey(paths, channels=None).pixels
    sets, classes = labelled_sets(root, pixels)
    for name in options.trials or (FINETUNE if options.finetune else TRIALS):
        if options.finetune:
            row = finetuning_trial(name, options.finetune, sets, classes, options.draws)
        else:
            row = pretraining_trial(
                name, ImageSet(paths, pixels), sets, options.steps, options.save
            )
        print(json.dumps(row), flush=True)
        rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps([*rows, row], indent=1) + "\n")


if __name__ == "__main__":
    main()
