"""`simmim predict`: what fine-tuned runs say of images, and find in them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from rich.console import Console

from simmim.api.encoders import depth
from simmim.api.remarks import notes
from simmim.config.commands import PredictConfig
from simmim.data.formats.image_file import UnreadableError
from simmim.data.loading.images import ImageSet
from simmim.data.loading.quarantine import unreadable
from simmim.data.sources.boxed import tells_boxes
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.errors import CheckpointError, ConfigError, DataError, SimmimError
from simmim.evaluate.features import Progress
from simmim.evaluate.parts import begun, check_same, write_parts
from simmim.interop.load import scaled_for
from simmim.machine import pick_workers
from simmim.report import terminal
from simmim.report.boxes import overlay
from simmim.report.detected import PREDICTIONS
from simmim.report.words import count
from simmim.runs.encoder import hash_of
from simmim.tasks.classifier import CLASSIFIER, Classifier, Predictions
from simmim.tasks.detections import Detections
from simmim.tasks.detector import DETECTOR, load_detector
from simmim.tasks.load import load_head
from simmim.tasks.masks import mask_names, save_png
from simmim.tasks.segmenter import SEGMENTER, Segmenter, load_segmenter
from simmim.training.world import ALONE, World, join, pick_device

if TYPE_CHECKING:
    import pyarrow as pa

M = TypeVar("M", Classifier, Segmenter)


def run_predict(config: PredictConfig) -> Path:
    """Write what the runs say of the images."""
    with join() as world:
        console = Console(quiet=not world.leads)
        lines = _kind(config)(config, world, console)
    terminal.done(lines, console)
    return config.out


def _classify(config: PredictConfig, world: World, console: Console) -> list[str]:
    """The probabilities of classes; returns what should be known of them."""
    if config.out.suffix not in ("", ".csv", ".parquet"):
        raise ConfigError(
            f"what a classifier says goes to a .csv or a .parquet file, or to a folder of Parquet "
            f"parts, a name without an ending; got --out {config.out}."
        )
    models, paths, said = _open(config, _classifier)
    terminal.facts(console, said)
    with _progress(console, "predictions") as update:
        if config.out.suffix:
            return _write_file(config, models, paths, world, update)
        return _write_parts(config, models, paths, world, update)


def _segment(config: PredictConfig, world: World, console: Console) -> list[str]:
    """Masks and overlays; returns what should be known of them."""
    if config.out.suffix:
        raise ConfigError(
            "what a segmenter says goes to a folder of masks, a name without an ending; got --out "
            f"{config.out}."
        )
    if config.engine == "ray":
        raise ConfigError("--engine ray makes Parquet parts; masks are shared by torchrun.")
    models, paths, said = _open(config, load_segmenter)
    terminal.facts(console, said)
    first, *also = models
    with _progress(console, "masks") as update:
        images = ImageSet(paths, first.pixels)
        skipped = first.predict(
            images,
            config.out,
            also=also,
            workers=pick_workers(config.workers, world.ranks),
            progress=update,
            world=world,
        )
    values = first.map_classes.values
    told = ", ".join(f"{k} {name}" for k, name in zip(values, first.classes, strict=True))
    lines = [
        f"{len(paths) - len(skipped):,} masks of {len(values)} classes{_mean(models)}, in "
        f"{config.out / 'masks'}; to look at, in {config.out / 'overlays'}",
        f"values of the masks: {told}",
    ]
    return lines + ([f"no mask: {unreadable(skipped, len(paths))}"] if skipped else [])


def _detect(config: PredictConfig, world: World, console: Console) -> list[str]:
    """The boxes of objects, and overlays; returns what should be known of them."""
    if config.out.suffix not in ("", ".json"):
        raise ConfigError(
            "what a detector finds goes to a .json file, or with overlays to a folder, a name "
            f"without an ending; got --out {config.out}."
        )
    if config.engine == "ray":
        raise ConfigError("--engine ray makes Parquet parts; boxes are shared by torchrun.")
    if config.also:
        raise ConfigError("--also averages probabilities of classes; boxes are of one run.")
    detector = load_detector(Path(config.run)).to(world.device)
    paths = find_images(config.data, boxes=tells_boxes(config.data))
    seen = scaled_for(detector.pixels, paths)
    detector.pixels = seen.pixels
    facts = {
        "weights": [hash_of(detector.timm_state())],
        "image_sizes": [list(detector.encoder.image_size)],
        "pixels": [asdict(detector.pixels)],
    }
    terminal.facts(console, notes(paths) + depth(seen))
    folder = None if config.out.suffix else config.out
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(begun(folder, paths, facts, world))
        update = stack.enter_context(_progress(console, "objects"))
        found = detector.predict(
            ImageSet(paths, seen.pixels),
            batch=config.batch_size,
            workers=pick_workers(config.workers, world.ranks),
            progress=update,
            world=world,
        )
        file = config.out if folder is None else folder / PREDICTIONS
        left_out = world.write(lambda: found.write(file))
        if folder is not None:
            _draw_overlays(found, folder, world)
    boxes = sum(len(each.scores) for each in found.found)
    look = "" if folder is None else f"; to look at, in {folder / 'overlays'}"
    lines = [f"{boxes:,} boxes in {count(len(found.images), 'image')}, in {file}{look}", *left_out]
    return lines + ([f"not seen: {unreadable(found.skipped, len(paths))}"] if found.skipped else [])


def _draw_overlays(found: Detections, folder: Path, world: World) -> None:
    """Write overlays/NAME.png of each image, unless it is there; each process does a share."""
    names = mask_names(found.images)
    error: SimmimError | None = None
    for row in range(world.rank, len(names), world.ranks):
        file = folder / "overlays" / names[row]
        if file.exists():
            continue
        try:
            shown = overlay(found.photo(row), found.found[row], found.classes)
            save_png(file, np.asarray(shown))
        except (UnreadableError, OSError) as failed:
            error = DataError(f"{found.images[row]} could be read, and cannot any more: {failed}.")
            break
        except SimmimError as failed:
            error = failed
            break
    for failed in world.gather(error):
        if failed is not None:
            world.fail(failed)


KINDS: dict[str, Callable[[PredictConfig, World, Console], list[str]]] = {
    CLASSIFIER: _classify,
    SEGMENTER: _segment,
    DETECTOR: _detect,
}
"""What predicts with a run, by the file of weights that its fine-tuning left."""


def _kind(config: PredictConfig) -> Callable[[PredictConfig, World, Console], list[str]]:
    """What all runs predict with.

    Raises:
        CheckpointError: One of them is no fine-tuned run, or they are of different kinds.
    """
    found = {}
    for run in (config.run, *config.also):
        files = [file for file in KINDS if (Path(run) / file).is_file()]
        if not files:
            raise CheckpointError(
                f"{run} is no fine-tuned run: it has no {' or '.join(KINDS)}. `simmim finetune "
                f"DATA --from {run}` makes one of an encoder, with its first checkpoint."
            )
        found[run] = files[0]
    if len(set(found.values())) > 1:
        held = ", ".join(f"{run} has {file}" for run, file in found.items())
        raise CheckpointError(f"these runs answer different questions: {held}. Ask one by one.")
    return KINDS[found[config.run]]


def _classifier(run: Path) -> Classifier:
    model = load_head(run)
    assert isinstance(model, Classifier)  # by the file of its weights
    return model


def _open(
    config: PredictConfig, load: Callable[[Path], M]
) -> tuple[list[M], Listing, list[tuple[str, str]]]:
    """The models, on this machine's device, the images, and what should be known of them."""
    models = [load(Path(run)) for run in (config.run, *config.also)]
    _check_classes(models, (config.run, *config.also))
    paths = find_images(config.data)
    said = notes(paths)
    for model in models:
        seen = scaled_for(model.pixels, paths)
        model.to(pick_device()).pixels = seen.pixels
        said += depth(seen)
    return models, paths, list(dict.fromkeys(said))


@contextmanager
def _progress(console: Console, what: str) -> Iterator[Progress]:
    """A progress line, to be told how many of the images are done."""
    stage = terminal.Stage(console)
    try:
        yield lambda done, of: stage.update(done / max(of, 1), f"{what} for {of:,} images")
    finally:
        stage.close()


def _check_classes(models: Sequence[Classifier | Segmenter], runs: Sequence[str]) -> None:
    """Raise ``ConfigError`` where two of the runs do not know the same classes."""
    for model, run in zip(models[1:], runs[1:], strict=True):
        if model.kind != models[0].kind:
            raise ConfigError(
                f"{run} and {runs[0]} cannot be averaged: they are of the tasks {model.kind} and "
                f"{models[0].kind}."
            )
        pairs = ((models[0], runs[0], model), (model, run, models[0]))
        only = [
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''} in {where} alone"
            for one, where, other in pairs
            if (missing := [name for name in one.classes if name not in other.classes])
        ]
        if only:
            raise ConfigError(
                f"{run} and {runs[0]} cannot be averaged, their classes differ: {'; '.join(only)}."
            )


def predict_together(
    models: Sequence[Classifier],
    images: ImageSet,
    *,
    batch: int,
    workers: int,
    progress: Progress,
    world: World = ALONE,
) -> Predictions:
    """The mean of what classifiers of the same classes say, in the first one's order of them."""
    first, *others = [
        model.predict(
            images,
            batch=batch,
            workers=workers,
            world=world,
            progress=lambda done, of, n=number: progress(n * of + done, len(models) * of),
        )
        for number, model in enumerate(models)
    ]
    shares = [first.probabilities]
    for other in others:
        assert other.paths == first.paths  # what cannot be read does not hang on the model
        order = [other.classes.index(name) for name in first.classes]
        shares.append(other.probabilities[:, order] if order else other.probabilities)
    mean = np.mean(shares, axis=0, dtype=np.float64)
    return replace(first, probabilities=mean.astype(first.probabilities.dtype))


def _write_file(
    config: PredictConfig,
    models: Sequence[Classifier],
    paths: Listing,
    world: World,
    update: Progress,
) -> list[str]:
    said = predict_together(
        models,
        ImageSet(paths, models[0].pixels),
        batch=config.batch_size,
        workers=pick_workers(config.workers, world.ranks),
        progress=update,
        world=world,
    )
    world.write(lambda: said.write(config.out))
    where = str(config.out)
    return _told(models, len(said.paths), where, said.skipped, len(paths))


def _rows(
    rows: range,
    progress: Progress,
    *,
    config: PredictConfig,
    models: Sequence[Classifier],
    paths: Listing,
    workers: int,
) -> "tuple[pa.Table, dict[str, str]]":
    """Of the images at some places; see ``write_parts``."""
    images = ImageSet(paths.select(rows), models[0].pixels)
    options = {"batch": config.batch_size, "workers": workers, "progress": progress}
    said = predict_together(models, images, **options)
    return said.table(), said.skipped


def _rows_elsewhere(
    rows: range, progress: Progress, *, config: PredictConfig, fingerprint: str
) -> "tuple[pa.Table, dict[str, str]]":
    models, paths = _open_once(config, fingerprint)
    return _rows(rows, progress, config=config, models=models, paths=paths, workers=0)


@lru_cache(maxsize=1)
def _open_once(config: PredictConfig, fingerprint: str) -> tuple[list[Classifier], Listing]:
    """The same images; a process of a cluster makes many parts of them."""
    models, paths, _ = _open(config, _classifier)
    check_same(paths, fingerprint)
    return models, paths


def _write_parts(
    config: PredictConfig,
    models: Sequence[Classifier],
    paths: Listing,
    world: World,
    update: Progress,
) -> list[str]:
    import pyarrow as pa  # slow to import

    workers = pick_workers(config.workers, world.ranks)
    work = partial(_rows, config=config, models=models, paths=paths, workers=workers)
    shares = [(name, pa.float32()) for name in models[0].classes]
    form = models[0].answers.form()
    schema = pa.schema([("path", pa.string()), ("prediction", form), *shares])
    facts = {
        "weights": [hash_of(model.timm_state()) for model in models],
        "image_sizes": [list(model.encoder.image_size) for model in models],
        "pixels": [asdict(model.pixels) for model in models],
        "batch_size": config.batch_size,
    }
    found = write_parts(
        config.out,
        paths,
        work,
        schema=schema,
        facts=facts,
        world=world,
        progress=update,
        elsewhere=partial(_rows_elsewhere, config=config, fingerprint=paths.fingerprint())
        if config.engine == "ray"
        else None,
    )
    return _told(models, found.rows, found.within(config.out), found.skipped, len(paths))


def _told(
    models: Sequence[Classifier], rows: int, where: str, skipped: dict[str, str], of: int
) -> list[str]:
    """What came of it, in words."""
    lines = [f"{rows:,} predictions {models[0].among}{_mean(models)}, in {where}"]
    return lines + ([f"no row: {unreadable(skipped, of)}"] if skipped else [])


def _mean(models: Sequence[object]) -> str:
    return f", the mean of {len(models)} runs" if len(models) > 1 else ""
