"""`simmim export`: write for another library, load with it, compare, and only then keep."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from simmim.config.commands import ExportConfig
from simmim.config.run import FORMAT, PretrainConfig
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import load_views, none_readable
from simmim.data.loading.quarantine import unreadable
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.errors import CheckpointError, ConfigError, DataError, SimmimError, VerificationError
from simmim.interop.export import onnx, plain, program, timm
from simmim.interop.export.card import Origin, model_card, read_origin
from simmim.interop.export.check import LIMIT, batches, differences, judge
from simmim.interop.export.model import Graph, Subject, facts_of
from simmim.interop.export.usage import usage
from simmim.interop.load import encoder_from, model_from
from simmim.interop.open import describe, open_source
from simmim.models.mim import MaskedImageModel
from simmim.report import terminal
from simmim.runs.encoder import CARD, read_card
from simmim.runs.files import check_space, write_text
from simmim.runs.folder import CONFIG, check_free, read_config
from simmim.runs.images import open_images
from simmim.tasks.detector import Detector
from simmim.tasks.heads import CLASSES
from simmim.tasks.load import AnyHead, load_head, save_head_of
from simmim.tensors.patches import normalise

MOST = 16
"""Images that are compared on."""
_UNFINISHED = ".unfinished"
_HEADLESS = (
    "the head is not in it, since the other library's model has no place for it; --format "
    "safetensors takes it, and onnx and torch but a detector's"
)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """All that writing and comparing need.

    Attributes:
        config: What was asked.
        subject: Encoder, perhaps with a head.
        task: The whole of a fine-tuned run, a detector too.
        model: Encoder and decoder, where there is a decoder and the format takes it.
        recipe: The run's config, where it has one.
        origin: Where the weights come from.
        values: Decoded values of real images (B, C, H, W), as the loader gives them.
        compared_on: What these images are, in words.
    """

    config: ExportConfig
    subject: Subject
    task: AnyHead | None
    model: MaskedImageModel | None
    recipe: PretrainConfig | None
    origin: Origin
    values: Tensor
    compared_on: str

    @property
    def images(self) -> Tensor:
        """Normalised images."""
        return normalise(self.values, self.subject.pixels)

    @property
    def graph(self) -> Graph:
        """What is traced."""
        return Graph(self.subject, normalised=not self.config.normalise)

    @property
    def inputs(self) -> Tensor:
        """What the graph takes."""
        return self.values.float() if self.config.normalise else self.images


def run_export(config: ExportConfig) -> Path:
    """Export as ``config`` says; returns the folder.

    Raises:
        SimmimError: Nothing can be read or written, or there are no images to compare on.
        VerificationError: The other library cannot open what was written, or gives something
            else. Nothing is left of it.
    """
    console = Console()
    check_free(config.out)
    job = _prepare(config, console)
    needed = 4 * sum(p.numel() for p in (job.model or job.subject.encoder).parameters())
    check_space(config.out, needed, "the export")
    with _unfinished(config.out) as folder:
        with _as_ours(f"the {config.format} export could not be written"):
            notes = _WRITERS[config.format](folder, job)
        with _as_ours(f"what was written cannot be opened again ({config.format})"):
            found = _COMPARERS[config.format](folder, job)
        judge(config.format, found)
        lines = _lines(found)
        write_text(folder / "README.md", _card(job, lines + notes, _architecture(folder)))
        written = _contents(folder)
    terminal.done(
        [
            f"written    {config.out}: {written}",
            f"compared   {job.compared_on}",
            *(f"  {line}" for line in lines),
            *notes,
            f"licence    {job.origin.licence}",
            "next (README.md in the folder has more):",
            f"  {usage(config.format, config.out, job.graph).line}",
        ],
        console,
    )
    return config.out


def _prepare(config: ExportConfig, console: Console) -> _Job:
    """Open the source and read the images."""
    folder = Path(config.run)
    recipe, model = None, None
    lineage: dict[str, Any] = {}
    if (folder / CARD).is_file():
        card = read_card(folder)
        lineage, licence = dict(card["lineage"]), card.get("licence")
    else:
        licence = None
    task = load_head(folder) if (folder / CLASSES).is_file() else None
    if task is not None:
        subject = _subject(task, config.format)
    else:
        found = open_source(config.run, whole=config.format == "hf")
        if not found.own:
            terminal.facts(console, describe(found))
            lineage = {"started_from": found.layout, **lineage}
        licence = found.licence or licence
        if config.format == "hf" and found.pretraining is not None:
            model = model_from(found).eval()
        encoder = model.encoder if model is not None else encoder_from(found).eval()
        subject = Subject(encoder=encoder, pixels=found.pixels)
        if (folder / CONFIG).is_file():
            recipe = read_config(folder, PretrainConfig)[0]
    licence = config.licence or licence or "unknown"
    values, told = _real_images(config, subject)
    return _Job(
        config=config,
        subject=subject,
        task=task,
        model=model,
        recipe=recipe,
        origin=read_origin(config.run, licence=licence, lineage=lineage),
        values=values,
        compared_on=told,
    )


def _subject(task: AnyHead, form: str) -> Subject:
    """What of a fine-tuned run goes into a graph, or beside the encoder.

    Raises:
        ConfigError: It does not go into one.
    """
    if not isinstance(task, Detector):
        return Subject(encoder=task.encoder, pixels=task.pixels, net=task, classes=task.classes)
    if form in ("onnx", "torch"):
        raise ConfigError(
            "a detector is no graph: how many boxes there are, and which are left when others lie "
            "over them, hangs on the image, and torchvision's code for it cannot be traced. "
            "--format safetensors takes all of it, for simmim.load; the encoder alone goes by "
            "--format timm or hf."
        )
    return Subject(encoder=task.encoder, pixels=task.pixels)


def _real_images(config: ExportConfig, subject: Subject) -> tuple[Tensor, str]:
    """Decoded views of the images to compare on, and what they are."""
    if config.compare_on is not None:
        paths, what = find_images(config.compare_on), "images"
    else:
        paths, what = _own_images(Path(config.run))
    images, bad = ImageSet(paths.sample(MOST), subject.pixels), {}
    views = load_views(images, subject.encoder.image_size, bad=bad)
    found = [batch.images for _, batch in views]
    if not found:
        raise DataError(f"{none_readable(images.paths, bad)} Name others by --images.")
    values = torch.cat(found).contiguous()
    told = f"; {unreadable(bad, len(images))}" if bad else ""
    return values, f"{len(values)} {what} of {paths.where}{told}"


def _own_images(run: Path) -> tuple[Listing, str]:
    """The images that a run held out, or else trained on."""
    try:
        own = open_images(run)
    except (CheckpointError, DataError) as error:
        raise ConfigError(f"{error} Name a folder of real images to compare on by --images.") from (
            error
        )
    if own.held:
        return own.listing.select(own.held), "held-out images"
    return own.listing, "training images"


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """A folder inside ``out`` whose contents move up at the end, or vanish with it."""
    folder = out / _UNFINISHED
    made = [each for each in (out, *out.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written ({error.strerror}); choose another --out."
        ) from error
    try:
        yield folder
        for item in folder.iterdir():
            item.replace(out / item.name)
        folder.rmdir()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # others may have used them meanwhile
            for each in made:
                each.rmdir()
        raise


@contextmanager
def _as_ours(what: str) -> Iterator[None]:
    """Turn whatever another library raises into one message."""
    try:
        yield
    except SimmimError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())[:400]
        raise VerificationError(
            f"{what}: {type(error).__name__}: {told}. Nothing of it was kept."
        ) from error


def _lines(found: Mapping[str, float]) -> list[str]:
    width = max(map(len, found))
    return [f"{name:{width}}  {_told(value)}" for name, value in found.items()]


def _told(value: float) -> str:
    if value == 0:
        return "the same in every bit"
    return f"largest difference {value:.1e} of the largest value (limit {LIMIT:g})"


def _card(job: _Job, checked: Sequence[str], architecture: str | None = None) -> str:
    config = job.config
    code = usage(config.format, Path("DIR"), job.graph, architecture=architecture).code
    lines = [f"compared by simmim on {len(job.values)} real images:", *checked]
    return model_card(
        job.subject,
        job.origin,
        kind=config.format,
        usage=code,
        inside=config.normalise,
        checked=[" ".join(line.split()) for line in lines],
    )


def _architecture(folder: Path) -> str | None:
    """The class of transformers that a folder names, where it does."""
    try:
        return json.loads((folder / "config.json").read_bytes())["architectures"][0]
    except (OSError, KeyError):
        return None


def _contents(folder: Path) -> str:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return ", ".join(f"{file.relative_to(folder)} ({_size(file.stat().st_size)})" for file in files)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _write_timm(folder: Path, job: _Job) -> list[str]:
    origin = job.origin
    timm.write_timm(folder, job.subject, licence=origin.licence, lineage=dict(origin.lineage))
    if job.task is None or (job.subject.head is not None and timm.takes_head(job.subject.encoder)):
        return []
    return [f"note: {_HEADLESS}"]


def _write_onnx(folder: Path, job: _Job) -> list[str]:
    onnx.write_onnx(folder, job.graph, facts=facts_of(job.graph, licence=job.origin.licence))
    _write_classes(folder, job.subject)
    return [
        f"opset      {onnx.OPSET}, any batch size, compared at {_sizes(job)}",
        f"input      {onnx.INPUT}: {facts_of(job.graph, licence='')['input']}",
    ]


def _write_program(folder: Path, job: _Job) -> list[str]:
    facts = facts_of(job.graph, licence=job.origin.licence)
    program.write_program(folder, job.graph, facts=facts)
    _write_classes(folder, job.subject)
    return [
        f"program    torch {torch.__version__}, any batch size, compared at {_sizes(job)}",
        f"input      {facts['input']}",
    ]


def _sizes(job: _Job) -> str:
    return ", ".join(map(str, batches(job.values)))


def _write_classes(folder: Path, subject: Subject) -> None:
    if subject.net is not None:
        document = {"format": FORMAT, "classes": list(subject.classes)}
        write_text(folder / CLASSES, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _write_plain(folder: Path, job: _Job) -> list[str]:
    subject, origin = job.subject, job.origin
    if job.task is None:
        plain.write_plain(folder, subject, licence=origin.licence, lineage=dict(origin.lineage))
    else:
        save_head_of(folder, job.task, {**origin.lineage, "licence": origin.licence})
    return []


def _compare_plain(folder: Path, job: _Job) -> dict[str, float]:
    found = plain.compare_plain(folder, job.subject, job.images)
    if job.task is None:
        return found
    again = load_head(folder)
    if job.subject.net is not None:
        theirs = Graph(_subject(again, job.config.format))
        found |= differences(Graph(job.subject).named(job.images), theirs.named(job.images))
    states = differences(job.task.timm_state(), again.timm_state())
    return found | {"head and weights": max(states.values())}


def _write_hf(folder: Path, job: _Job) -> list[str]:
    from simmim.interop.export.huggingface import write_huggingface

    subject = job.subject
    notes = write_huggingface(
        folder,
        job.model,
        subject.encoder,
        subject.pixels,
        config=job.recipe,
        card=_card(job, []),
        classes=list(subject.classes) or None,
        head=subject.head,
        licence=job.origin.licence,
    )
    notes += [_HEADLESS] if job.task is not None and subject.head is None else []
    return [f"note: {note}" for note in notes]


def _compare_hf(folder: Path, job: _Job) -> dict[str, float]:
    from simmim.interop.export.huggingface import compare_huggingface

    subject = job.subject
    return compare_huggingface(folder, job.model, subject.encoder, job.images, head=subject.head)


_WRITERS: dict[str, Callable[[Path, _Job], list[str]]] = {
    "timm": _write_timm,
    "hf": _write_hf,
    "onnx": _write_onnx,
    "safetensors": _write_plain,
    "torch": _write_program,
}
"""Each writes into a folder and returns what to tell beside."""
_COMPARERS: dict[str, Callable[[Path, _Job], dict[str, float]]] = {
    "timm": lambda folder, job: timm.compare_timm(folder, job.subject, job.images),
    "hf": _compare_hf,
    "onnx": lambda folder, job: onnx.compare_onnx(folder, job.graph, job.inputs),
    "safetensors": _compare_plain,
    "torch": lambda folder, job: program.compare_program(folder, job.graph, job.inputs),
}
"""Each loads what was written and returns the largest difference of each output."""
