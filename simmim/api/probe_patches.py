"""`simmim probe --task segment`: what frozen patch tokens are worth for telling pixels apart."""

from rich.console import Console

from simmim.api.encoders import open_encoder
from simmim.api.tasks.segment import Segment
from simmim.api.tasks.task import Labelled
from simmim.config.commands import ProbeConfig
from simmim.config.finetune import SegmentConfig
from simmim.config.task import Segmentation
from simmim.data.loading.quarantine import unreadable
from simmim.data.map_classes import MapClasses
from simmim.evaluate.patches import read_patches
from simmim.evaluate.protocols import Say
from simmim.interop.load import LoadedEncoder
from simmim.interop.scratch import scratch_encoder
from simmim.machine import pick_workers
from simmim.models.build import describe_encoder
from simmim.report import terminal
from simmim.report.words import count
from simmim.tasks.patch_probe import PatchProtocols, PixelResult, PixelResults
from simmim.training.world import World

BRACKETS = "in brackets, 95%: the bootstrap's interval over the images asked about"


def probe_patches(config: ProbeConfig, world: World, console: Console) -> None:
    """Measure and print what frozen patch tokens are worth for telling the classes of pixels."""
    data = [config.data, *([] if config.val is None else [config.val])]
    encoder = open_encoder(config.run, console, data, annotations=Segment.annotations)
    asks = SegmentConfig(
        data=(config.data,),
        init_from=config.run,
        val=config.val,
        val_share=1 - config.train_share,
        task=Segmentation(classes=config.classes, ignore=config.ignore),
    )
    labelled = Segment().gather(asks, encoder.pixels)
    terminal.facts(console, labelled.rows)
    how = PatchProtocols(
        classes=MapClasses.of(labelled.classes, labelled.facts),
        names=frozenset(["knn", "linear"] if config.protocol == "all" else [config.protocol]),
        blocks=config.layers == "all",
        k=config.k,
        seed=config.seed,
        world=world,
        workers=pick_workers(config.workers, world.ranks),
    )
    random = scratch_encoder(describe_encoder(encoder.encoder, 0.0), encoder, 0, config.seed)
    both = [("", encoder), ("a random encoder: ", random.to(world.device))]
    stage = terminal.Stage(console)
    found: list[PixelResults] = []
    head: list[str] = []
    try:
        for whose, each in both:

            def say(share: float, text: str, whose: str = whose) -> None:
                stage.update(share, whose + text)

            skipped, read, results = _measure(config, how, each, labelled, say)
            for line in [] if found else skipped:
                stage.note(line)
            head = head or read
            found.append(results)
    finally:
        stage.close()
    terminal.done([*head, *_lines(*found)], console)


def _measure(
    config: ProbeConfig, how: PatchProtocols, encoder: LoadedEncoder, labelled: Labelled, say: Say
) -> tuple[list[str], list[str], PixelResults]:
    """What could not be read and what was read, in words; and what was measured."""
    learnt = read_patches(
        encoder,
        labelled.train,
        how.classes,
        blocks=how.blocks,
        seed=config.seed,
        batch=config.batch_size,
        workers=how.workers,
        progress=lambda done, of: say(done / of, f"patches of {of:,} images"),
        world=how.world,
    )
    found = how.measure(encoder, learnt, labelled.val, say)
    tried = [
        (learnt.skipped, learnt.tried, "images to learn from"),
        (found.skipped, len(labelled.val), "images asked about"),
    ]
    skipped = [unreadable(bad, of, what) for bad, of, what in tried if bad]
    patches, images = learnt.blocks[-1].labels, len(labelled.train)
    few = f" ({learnt.tried:,} of {images:,}, by their names)" * (learnt.tried < images)
    read = [
        f"frozen patches: {len(patches):,} of {learnt.of:,} to learn from, at most {learnt.most:,} "
        f"of an image, drawn by --seed {config.seed}",
        f"{count(learnt.images, 'image')} to learn from{few}, {found.asked:,} asked, "
        f"{len(labelled.classes)} classes",
    ]
    return skipped, read, found


def _lines(own: PixelResults, random: PixelResults) -> list[str]:
    """What was measured, a protocol after the other, each number beside the random encoder's."""
    lines = []
    for name, result in own.protocols.items():
        lines += [name, *_beside(result, random.protocols[name])]
    for name, block in own.blocks.items():
        other = random.blocks[name]
        lines.append(
            f"blocks: {name}, mean IoU of patches of training images left out to choose on"
        )
        pairs = zip(block.left_out, other.left_out, strict=True)
        lines += [mine.beside(f"block {n}", theirs) for n, (mine, theirs) in enumerate(pairs, 1)]
        lines.append(f"best block: {block.number} for {name}")
        lines += _beside(block.result, other.result, f"block {other.number} of a random encoder")
    assert own.trivial is not None
    return [
        *lines,
        "always the largest class",
        f"  mean IoU           {own.trivial.miou}",
        f"  pixel accuracy     {own.trivial.accuracy}",
        BRACKETS,
    ]


def _beside(own: PixelResult, random: PixelResult, whose: str = "a random encoder") -> list[str]:
    return [
        own.miou.beside("mean IoU", random.miou, whose),
        own.accuracy.beside("pixel accuracy", random.accuracy, whose),
    ]
