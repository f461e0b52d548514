"""`simmim embed`: one feature vector per image, in a file or a folder of parts."""

import json
import shlex
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from simmim.api.encoders import features, open_encoder
from simmim.api.remarks import notes
from simmim.config.commands import EmbedConfig
from simmim.data.labels import Labels, labels_of
from simmim.data.loading.images import ImageSet
from simmim.data.loading.quarantine import unreadable
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.evaluate.embed import embedding_table, write_embeddings
from simmim.evaluate.features import Progress, extract
from simmim.evaluate.parts import check_same, write_parts
from simmim.interop.load import LoadedEncoder
from simmim.machine import pick_workers
from simmim.report import terminal
from simmim.runs.encoder import hash_of
from simmim.training.world import World, join

if TYPE_CHECKING:
    import pyarrow as pa


_Opened = tuple[LoadedEncoder, Listing, Labels | None]


def run_embed(config: EmbedConfig) -> Path:
    """Write the pooled features of images to a file, or to a folder of parts."""
    with join() as world:
        console = Console(quiet=not world.leads)
        encoder, paths, labels = _open(config, console)
        terminal.facts(console, notes(paths, labels=labels))
        work = _write_parts if not config.out.suffix else _write_file
        lines = work(config, encoder, paths, labels, world=world, console=console)
    if config.out.suffix != ".npz":
        # Names in JSON are names in Python.
        read = f"import pyarrow.parquet as pq; print(pq.read_table({json.dumps(str(config.out))}))"
        lines += ["next:", f"  python -c {shlex.quote(read)}"]
    terminal.done(lines, console)
    return config.out


def _open(config: EmbedConfig, console: Console) -> _Opened:
    """The encoder, the images, and their labels."""
    encoder = open_encoder(config.run, console, [config.data])
    paths = find_images(config.data)
    return encoder, paths, labels_of(paths)


@lru_cache(maxsize=1)
def _open_once(config: EmbedConfig, fingerprint: str) -> _Opened:
    """The same images; a process of a cluster makes many parts of them."""
    opened = _open(config, Console(quiet=True))
    check_same(opened[1], fingerprint)
    return opened


def _labelled(
    paths: Listing, labels: Labels | None, encoder: LoadedEncoder, rows: range
) -> ImageSet:
    """The images at some places, with their labels, -1 for none."""
    images = ImageSet(paths.select(rows), encoder.pixels)
    if labels is None:
        return images
    of = [labels.of(row) for row in rows]
    return replace(images, labels=[-1 if label is None else label for label in of])


def _write_file(
    config: EmbedConfig,
    encoder: LoadedEncoder,
    paths: Listing,
    labels: Labels | None,
    *,
    world: World,
    console: Console,
) -> list[str]:
    """Keep all rows in memory until they are written; what should be known of them."""
    images = _labelled(paths, labels, encoder, range(len(paths)))
    table = features(console, encoder, images, config.batch_size, config.workers, world=world)
    classes = None if labels is None else labels.classes
    out = world.write(lambda: write_embeddings(table, config.out, classes=classes))
    lines = [f"{len(table.paths):,} embeddings of {table.features.shape[1]} numbers in {out}"]
    if table.skipped:
        lines.append(f"no row: {unreadable(table.skipped, len(paths))}")
    if table.labels is not None and min(table.labels) < 0:
        lines.append(f"no label: {(table.labels < 0).sum():,} of {len(table.paths):,}")
    return lines


def _rows(
    rows: range,
    progress: Progress,
    *,
    config: EmbedConfig,
    opened: _Opened,
    workers: int,
) -> "tuple[pa.Table, dict[str, str]]":
    """Of the images at some places; see ``write_parts``."""
    encoder, paths, labels = opened
    images = _labelled(paths, labels, encoder, rows)
    table = extract(encoder, images, batch=config.batch_size, workers=workers, progress=progress)
    return embedding_table(table, None if labels is None else labels.classes), table.skipped


def _rows_elsewhere(
    rows: range, progress: Progress, *, config: EmbedConfig, fingerprint: str
) -> "tuple[pa.Table, dict[str, str]]":
    opened = _open_once(config, fingerprint)
    return _rows(rows, progress, config=config, opened=opened, workers=0)


def _write_parts(
    config: EmbedConfig,
    encoder: LoadedEncoder,
    paths: Listing,
    labels: Labels | None,
    *,
    world: World,
    console: Console,
) -> list[str]:
    """Write a part after the other; what should be known of them."""
    import pyarrow as pa  # slow to import

    width = encoder.encoder.width
    workers = pick_workers(config.workers, world.ranks)
    work = partial(_rows, config=config, opened=(encoder, paths, labels), workers=workers)
    label = [] if labels is None else [("label", pa.string())]
    schema = pa.schema(
        [("path", pa.string()), *label, ("embedding", pa.list_(pa.float32(), width))]
    )
    facts = {
        "weights": hash_of(encoder.encoder.timm_state()),
        "image_size": encoder.image_size,
        "pixels": asdict(encoder.pixels),
        "batch_size": config.batch_size,
    }
    stage = terminal.Stage(console)

    def update(done: int, of: int) -> None:
        stage.update(done / max(of, 1), f"features of {of:,} images")

    try:
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
    finally:
        stage.close()
    lines = [f"{found.rows:,} embeddings of {width} numbers in {found.within(config.out)}"]
    if found.skipped:
        lines.append(f"no row: {unreadable(found.skipped, len(paths))}")
    return lines
