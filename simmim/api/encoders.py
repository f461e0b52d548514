"""An encoder opened for images, and its features of them, as several commands want them."""

from collections.abc import Callable, Sequence

from rich.console import Console

from simmim.api.remarks import values
from simmim.config.encoder import Size
from simmim.data.audit.survey import Survey
from simmim.data.loading.images import Annotation, ImageSet
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.evaluate.features import FeatureTable, extract
from simmim.interop.load import LoadedEncoder, load_found, scaled_for
from simmim.interop.open import describe, open_source
from simmim.interop.resize import resize
from simmim.machine import pick_workers
from simmim.report import terminal
from simmim.training.world import ALONE, World, pick_device


def list_images(data: Sequence[str], annotations: frozenset[Annotation]) -> Listing:
    """The images of all of ``data``, with what is asked for beside them."""
    return find_images(*data, boxes="boxes" in annotations, maps="maps" in annotations)


def open_encoder(
    source: str,
    console: Console,
    data: Sequence[str],
    size: Size | Callable[[Size, int], Size] | None = None,
    *,
    annotations: frozenset[Annotation] = frozenset(),
) -> LoadedEncoder:
    """The encoder of a source, on this machine's device; what should be known of it is printed.

    Args:
        source: See ``simmim.interop.open.open_source``.
        console: Where to print.
        data: All images that it is for. The depth of their values is measured.
        size: Height and width in pixels that it is to take, or what tells them from its own and
            the side of a patch; None: its own.
        annotations: What the images are listed with.

    Raises:
        CheckpointError: See ``open_source``.
        ConfigError: The size does not fit its patches.
        DataError: The images have other channels.
    """
    found = open_source(source)
    seen = scaled_for(found.pixels, list_images(data, annotations))
    rows = [] if found.own else describe(found)
    if callable(size):
        size = size(found.image_size, found.patch)
    found, changes = resize(found, size or found.image_size, found.patch, seen.pixels)
    terminal.facts(console, rows + changes + depth(seen))
    return load_found(found).to(pick_device())


def depth(seen: Survey) -> list[tuple[str, str]]:
    """What should be known of the values of images, for ``terminal.facts``."""
    return [values(seen), *(("note", note) for note in seen.notes)]


def features(
    console: Console,
    encoder: LoadedEncoder,
    images: ImageSet,
    batch: int,
    workers: int | None,
    *,
    world: World = ALONE,
) -> FeatureTable:
    """The features of images, of which each process reads a share, with a progress line."""
    stage = terminal.Stage(console)

    def update(done: int, of: int) -> None:
        stage.update(done / of, f"features of {of:,} images")

    try:
        count = pick_workers(workers, world.ranks)
        return extract(encoder, images, batch=batch, workers=count, progress=update, world=world)
    finally:
        stage.close()
