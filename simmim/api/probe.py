"""`simmim probe`: what frozen features are worth for telling classes apart."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console

from simmim.api.encoders import open_encoder
from simmim.api.labelled import labelled_parts
from simmim.config.commands import ProbeConfig
from simmim.data.loading.images import ImageSet
from simmim.data.loading.quarantine import unreadable
from simmim.evaluate.estimate import Estimate
from simmim.evaluate.fewshot import SHOTS
from simmim.evaluate.protocols import DRAWS, Protocols, Results, Say
from simmim.evaluate.readings import read
from simmim.interop.load import LoadedEncoder
from simmim.interop.scratch import scratch_encoder
from simmim.machine import pick_workers
from simmim.models.build import describe_encoder
from simmim.report import terminal
from simmim.report.words import count
from simmim.training.world import World, join

SINGLE = ("knn", "linear", "attentive", "fewshot")
"""Protocols that can be asked for one by one."""
BRACKETS = (
    "in brackets, 95%: of accuracy the exact binomial interval over the images asked about, of "
    "balanced accuracy the bootstrap's over them"
)
DRAWN = ", of few labels Student's t over the draws"


def run_probe(config: ProbeConfig) -> None:
    """Measure and print what frozen features are worth for telling classes apart."""
    with join() as world:
        _probe(config, world, Console(quiet=not world.leads))


def _probe(config: ProbeConfig, world: World, console: Console) -> None:
    data = [config.data, *([] if config.val is None else [config.val])]
    encoder = open_encoder(config.run, console, data)
    learnt, asked, classes, said = labelled_parts(config, 1 - config.train_share, encoder.pixels)
    terminal.facts(console, said)
    how = Protocols(
        classes=len(classes),
        names=frozenset(SINGLE if config.protocol == "all" else [config.protocol]),
        blocks=config.layers == "all",
        k=config.k,
        seed=config.seed,
    )
    parts = {"images to learn from": learnt, "images asked about": asked}
    random = scratch_encoder(describe_encoder(encoder.encoder, 0.0), encoder, 0, config.seed)
    both = [("", encoder), ("a random encoder: ", random.to(world.device))]
    stage = terminal.Stage(console)
    found: list[Results] = []
    try:
        for whose, each in both:

            def say(share: float, text: str, whose: str = whose) -> None:
                stage.update(share, whose + text)

            skipped, results = _measure(config, how, each, parts, world=world, say=say)
            for line in [] if found else skipped:
                stage.note(line)
            found.append(results)
    finally:
        stage.close()
    terminal.done(_lines(*found, classes=classes), console)


def _measure(
    config: ProbeConfig,
    how: Protocols,
    encoder: LoadedEncoder,
    parts: dict[str, ImageSet],
    *,
    world: World,
    say: Say,
) -> tuple[list[str], Results]:
    """What could not be read, in words; and what the first process measured."""
    pieces, skipped = [], []
    for what, images in parts.items():
        piece = read(
            encoder,
            images,
            blocks=how.blocks,
            tokens="attentive" in how.names,
            batch=config.batch_size,
            workers=pick_workers(config.workers, world.ranks),
            progress=lambda done, of: say(done / of, f"features of {of:,} images"),
            world=world,
        )
        if piece.skipped:
            skipped.append(unreadable(piece.skipped, len(images), what))
        pieces.append(piece)
    learnt, asked = pieces
    if not world.leads:
        return skipped, Results(learnt.labels, asked.labels)
    return skipped, how.measure(learnt, asked, say)


def _lines(found: Results, random: Results, *, classes: Sequence[str]) -> list[str]:
    """What was measured, a protocol after the other, each number beside the random encoder's."""
    lines = [
        f"frozen features: {len(found.learnt):,} images to learn from, {len(found.asked):,} asked, "
        f"{len(classes)} classes"
    ]
    for name, result in found.protocols.items():
        other = random.protocols[name]
        lines += [
            name,
            _beside("accuracy", result.accuracy, other.accuracy),
            _beside("balanced accuracy", result.balanced, other.balanced),
        ]
    if found.shots:
        lines.append(f"few labels: logistic regression, accuracy, the mean of {DRAWS} draws")
        for each, estimate in found.shots.items():
            lines.append(_beside(f"{count(each, 'label')} a class", estimate, random.shots[each]))
        lines += _short_of_labels(found.learnt, classes)
    for name, block in found.blocks.items():
        other = random.blocks[name]
        lines.append(f"blocks: {name}, on training images that were left out to choose on")
        lines += [
            _beside(f"block {number}", *pair)
            for number, pair in enumerate(zip(block.left_out, other.left_out, strict=True), start=1)
        ]
        whose = f"block {other.number} of a random encoder"
        own, theirs = block.result, other.result
        lines += [
            f"best block: {block.number} for {name}",
            _beside("accuracy", own.accuracy, theirs.accuracy, whose),
            _beside("balanced accuracy", own.balanced, theirs.balanced, whose),
        ]
    return [*lines, *_baseline(found.asked), BRACKETS + (DRAWN if found.shots else "")]


def _beside(what: str, own: Estimate, random: Estimate, whose: str = "a random encoder") -> str:
    return f"  {what:17}  {own!s:22}  {whose}: {random}"


def _short_of_labels(labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Which classes have fewer images than the numbers of labels that were asked for."""
    counts = np.bincount(labels, minlength=len(classes))
    lines = []
    for each in SHOTS:
        short = [name for name, have in zip(classes, counts, strict=True) if have < each]
        if not short:
            continue
        text = f"{len(short)} of {len(classes)} classes"
        rest = f"fewer than {each} images to learn from, such as {short[0]}"
        if len(short) == len(classes):
            lines.append(f"  {count(each, 'label')} a class: not measured, as all have {rest}")
        else:
            lines.append(f"  {count(each, 'label')} a class: {text} have {rest}: all are taken")
    return lines


def _baseline(labels: np.ndarray) -> list[str]:
    """What a predictor that looks at no image is right for."""
    counts = np.bincount(labels)
    share = Estimate.of_count(int(counts.max()), len(labels))
    return [
        "always the largest class",
        f"  accuracy           {share}",
        f"  balanced accuracy  {1 / np.count_nonzero(counts):.1%}",
    ]
