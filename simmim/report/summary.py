"""The report on a pretraining, and what it shares with those on other runs."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence

from simmim.report import certificate, figures
from simmim.report.sections import (
    Commands,
    Facts,
    Figure,
    Gallery,
    Picture,
    Report,
    Section,
    Table,
    Tile,
)
from simmim.report.verdict import longer, measured_on, verdict_of, within_patches
from simmim.report.words import count, duration, number, percent, speed
from simmim.runs.record import Record, column, mapping

_SHOWN_BAD = 20
_DETAIL = ("explained", "explained_blur")


def describe(record: Record, sections: Sequence[Section] = ()) -> Report:
    """The report on a run, with ``sections`` of the caller after the reconstructions."""
    tone, verdict = verdict_of(record)
    parts = [_reconstructions(record), *sections, _curves(record), *standing(record), _next(record)]
    return Report(
        title=record.run.resolve().name,
        summary=_summary(record),
        verdict=verdict,
        tone=tone,
        tiles=_tiles(record),
        remarks=record.problems,
        sections=[part for part in parts if part is not None],
        footer=f"Written by simmim from {record.run.resolve()}.",
    )


def standing(record: Record) -> list[Section | None]:
    """What stands on the page of every run: settings, images, machine, certificate."""
    return [
        _settings(record),
        _data(record),
        _quarantine(record),
        _environment(record),
        certificate.section(certificate.read()),
    ]


def trained_on(record: Record) -> tuple[str, str]:
    """The encoder's name, and how many images from where, in words."""
    config, images = record.config, record.resolved.get("images")
    on = count(images, "image") if isinstance(images, int) else "images"
    if config.get("data"):
        on += f" from {_sources(config['data'])}"
    return str(mapping(config.get("encoder")).get("model", "an encoder")), on


def _summary(record: Record) -> list[str]:
    """What was trained, on what, for how long."""
    config = record.config
    model, on = trained_on(record)
    said = [f"{model} was pretrained on {on}, without labels."]
    ratio = mapping(config.get("mask")).get("ratio")
    if isinstance(ratio, int | float):
        said.append(
            f"In every step {percent(ratio)} of each image was hidden, and the model had to "
            f"predict it from the rest (recipe {config.get('recipe', 'unknown')})."
        )
    return said + course(record)


def course(record: Record) -> list[str]:
    """How long a run has trained, in sentences, and what happened on the way."""
    said = []
    if record.rows:
        took = f" in {duration(record.seconds)}" if record.seconds else ""
        epoch = record.last("epoch")
        passes = f", {number(round(epoch, 1))} passes over the images" if epoch else ""
        said.append(f"It trained for {count(record.step, 'step')}{passes}{took}.")
    if record.skipped:
        of = "All" if record.skipped >= record.step else f"{count(record.skipped)} of the"
        said.append(
            f"{of} {count(record.step, 'step')} were skipped, since no gradient was finite there."
        )
    said += [
        f"It was planned anew after step {each.get('until')}: {each.get('why')}."
        for each in map(mapping, record.resolved.get("earlier") or ())
    ]
    if record.step < record.steps:
        said.append(
            f"The run is not complete: {count(record.steps, 'step')} are planned, "
            f"{percent(math.floor(100 * record.step / record.steps) / 100)} are done."
        )
    return said


def _tiles(record: Record) -> list[Tile]:
    tiles = []
    for key, against in (("explained", "the mean colour"), ("explained_blur", "interpolation")):
        value = record.last(key)
        if value is not None:
            tiles.append(
                Tile(value=percent(value), label="explained detail", hint=f"against {against}")
            )
    knn = record.last("knn")
    if knn is not None:
        tiles.append(Tile(value=percent(knn), label="k-NN accuracy", hint="frozen features"))
    return tiles + size_tiles(record)


def size_tiles(record: Record) -> list[Tile]:
    """Images, steps, time."""
    tiles = []
    images = record.resolved.get("images")
    if isinstance(images, int):
        held = record.resolved.get("holdout")
        hint = f"and {held} held out" if held else ""
        tiles.append(Tile(value=count(images), label="training images", hint=hint))
    if record.rows:
        of = f"of {count(record.steps)}" if record.steps else ""
        tiles.append(Tile(value=count(record.step), label="steps", hint=of))
    if record.seconds:
        rate = record.last("images_per_s")
        hint = f"{speed(rate)} images/s" if rate else ""
        tiles.append(Tile(value=duration(record.seconds), label="training time", hint=hint))
    if record.quarantine:
        tiles.append(Tile(value=count(len(record.quarantine)), label="unreadable images"))
    return tiles


def _reconstructions(record: Record) -> Section | None:
    if not record.pictures:
        return None
    chosen = [record.pictures[0], record.pictures[-1]][: len(record.pictures)]
    when = ["After the first", "After the last"] if len(chosen) == 2 else ["After"]
    items = [
        Picture(
            photo=file,
            alt=f"Rows of original, masked and reconstructed images after step {step}",
            caption=f"{word} look, step {step:,}." if len(chosen) == 2 else f"Step {step:,}.",
        )
        for word, (step, file) in zip(when, chosen, strict=True)
    ]
    lead = (
        "A few images: what they are, what the encoder saw of them, and what the model filled "
        "in. Look at edges and textures that run on through hidden patches. Blur is expected: the "
        "loss rewards the average of what could be there."
    )
    if within_patches(record):
        lead += " This recipe predicts each patch without its mean and contrast; both are put back."
    return Gallery(title="What it fills in", lead=lead, items=items)


Drawing = tuple[str, Callable[[Sequence[figures.Row]], str], str]
"""The column that must be there, what draws it, and the caption."""


def _curves(record: Record) -> Section | None:
    explained = (
        "explained",
        figures.explained_curve,
        f"Explained detail on {measured_on(record)}. It must rise. At 0 % (dashed) a "
        "prediction is worth no more than the baseline it is measured against.",
    )
    loss = (
        "loss",
        figures.loss_curve,
        "The loss: falling fast, then slowly. Its height says nothing between data sets or "
        "recipes; explained detail does. Faint: single steps.",
    )
    knn = (
        "knn",
        figures.knn_curve,
        "How often the nearest labelled images by frozen features have the right class.",
    )
    return curves(record, [explained, loss, knn])


def curves(record: Record, drawings: Sequence[Drawing]) -> Section | None:
    """The task's own drawings, then rate and speed; those without two points are left out."""
    speed_told = f"Speed.{_waiting(record)} Dips are pictures, checkpoints or a busy machine."
    rate_told = "The learning rate: a short warm-up, then the decay."
    common: list[Drawing] = [
        ("lr", figures.rate_curve, rate_told),
        ("images_per_s", figures.speed_curve, speed_told),
    ]
    items = [
        Figure(svg=draw(record.rows), caption=caption)
        for key, draw, caption in [*drawings, *common]
        if len(column(record.rows, key)[0]) > 1
    ]
    return Gallery(title="How it learned", items=items) if items else None


def _waiting(record: Record) -> str:
    waits = column(record.rows, "data_wait")[1]
    return (
        f" {percent(float(waits.mean()))} of the time went into waiting for data."
        if len(waits)
        else ""
    )


def _settings(record: Record) -> Section | None:
    if not record.config:
        return None
    why = mapping(record.resolved.get("why"))
    hashes = ("asked", "lists")
    chosen = {key: value for key, value in record.resolved.items() if key not in ("why", *hashes)}
    chosen["lr"] = mapping(record.config.get("optim")).get("lr", "")
    facts = [
        (key.replace("_", " "), _say(chosen.get(key, "")), str(reason))
        for key, reason in why.items()
    ]
    named = {key for key in why if key in chosen}
    rest = {key: value for key, value in chosen.items() if key not in named}
    asked = {key: value for key, value in record.config.items() if key != "resolved"}
    return Facts(
        title="Settings",
        lead="What was chosen for this run, and by which rule. config.yaml holds all of it.",
        facts=facts,
        more=[*_flat(rest), *_flat(asked)],
    )


def _data(record: Record) -> Section | None:
    if not record.data:
        return None
    data = dict(record.data)
    bad, pixels, channels = data.pop("bad", None), data.pop("pixels", None), data.get("channels")
    if isinstance(channels, Mapping):
        data["channels"] = {
            f"{key} channel{'s' * (str(key) != '1')}": value for key, value in channels.items()
        }
    sizes = data.get("sizes")
    if isinstance(sizes, Mapping):
        data["sizes"] = " · ".join(f"{side} {_span(span)}" for side, span in sizes.items())
    facts = [(key.replace("_", " "), _say(value), "") for key, value in data.items()]
    if isinstance(bad, list) and bad:
        facts.append(("unreadable", count(len(bad)), ""))
    return Facts(
        title="Images",
        lead="What was found in the folder before training began.",
        facts=facts,
        more=_flat(mapping(pixels)),
        more_title="How pixel values become the model's input",
    )


def _span(span: object) -> str:
    """Smallest, median and largest of something in pixels, in words."""
    match span:
        case [low, middle, high]:
            if low == high:
                return f"{_say(low)} pixels"
            return f"{_say(low)} to {_say(high)} pixels, median {_say(middle)}"
    return _say(span)


def _quarantine(record: Record) -> Section | None:
    bad = record.quarantine
    if not bad:
        return None
    more = f"The first {_SHOWN_BAD} of {len(bad):,}. " if len(bad) > _SHOWN_BAD else ""
    return Table(
        title="Unreadable images",
        lead=f"Could not be read: {count(len(bad), 'image')}. Other images took their places in "
        "training; no file was touched.",
        columns=("file", "reason"),
        rows=[(str(row.get("path", "?")), str(row.get("reason", "?"))) for row in bad[:_SHOWN_BAD]],
        note=f"{more}All of them: quarantine.jsonl.",
    )


def _environment(record: Record) -> Section | None:
    flat = _flat(record.environment)
    if not flat:
        return None
    return Facts(
        title="Environment",
        lead="With the same versions, machine and threads the same command gives the same bits.",
        facts=(),
        more=flat,
        more_title="Versions and hardware",
    )


def _next(record: Record) -> Section:
    """Commands that fit the state of the run."""
    run = shlex.quote(str(record.run))
    commands = []
    if record.step < record.steps or not record.rows:
        commands.append((f"simmim pretrain --resume {run}", "go on from the last checkpoint"))
    elif any((value := record.last(key)) is not None and value <= 0 for key in _DETAIL):
        flags, words = longer(record)
        commands.append((f"simmim pretrain --resume {run} {flags}", f"train {words}"))
    if record.rows:
        commands += [
            (
                f"simmim finetune LABELLED_PHOTOS --from {run}",
                "a classifier from a folder with one subfolder for each class",
            ),
            (
                f"simmim probe {run} LABELLED_PHOTOS",
                "what the features are worth for your classes, without training the encoder",
            ),
            (
                f"simmim embed {run} PHOTOS --out embeddings.parquet",
                "a vector for each photo, to search and to compare",
            ),
        ]
        if record.last("explained") is not None:
            more = "pictures like those above of photos you choose"
            commands.append((f"simmim reconstruct {run} PHOTOS", more))
    return Commands(title="What to do next", commands=commands)


def _flat(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as dotted names and values."""
    flat = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", _say(value)))
    return flat


def _say(value: object) -> str:
    """Any value of a JSON file as a person would write it."""
    match value:
        case None:
            said = "not set"
        case bool():
            said = "yes" if value else "no"
        case int():
            said = str(value) if abs(value) < 1_000 else count(value)
        case float():
            said = number(value)
        case Mapping():
            said = " · ".join(f"{key}: {_say(part)}" for key, part in value.items()) or "none"
        case [int(), int()]:
            said = " × ".join(str(part) for part in value)
        case list() | tuple():
            said = ", ".join(_say(part) for part in value[:6]) or "none"
            if len(value) > 6:
                said += f", … ({len(value):,} in all)"
        case _:
            said = str(value)
    return said


def _sources(data: object) -> str:
    """The sources of images in words; older runs name a single one."""
    return ", ".join(map(str, data)) if isinstance(data, list) else str(data)
