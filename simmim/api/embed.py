"""`simmim embed`: one feature vector per image, in a file."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from simmim.api.encoders import features, open_encoder
from simmim.api.remarks import notes
from simmim.config.commands import EmbedConfig
from simmim.data.labels import labels_of
from simmim.data.loading.images import ImageSet
from simmim.data.loading.quarantine import unreadable
from simmim.data.sources.find import find_images
from simmim.evaluate.embed import write_embeddings
from simmim.report import terminal


def run_embed(config: EmbedConfig) -> Path:
    """Write the pooled features of images to a file."""
    console = Console()
    encoder = open_encoder(config.run, console, [config.data])
    paths = find_images(config.data)
    labels = labels_of(paths)
    terminal.facts(console, notes(paths, labels=labels))
    images, classes = ImageSet(paths, encoder.pixels), None
    if labels is not None:
        of = [labels.of(row) for row in range(len(paths))]
        images = replace(images, labels=[-1 if label is None else label for label in of])
        classes = labels.classes
    table = features(console, encoder, images, config.batch_size, config.workers)
    out = write_embeddings(table, config.out, classes=classes)
    lines = [f"{len(table.paths):,} embeddings of {table.features.shape[1]} numbers in {out}"]
    if table.skipped:
        lines.append(f"no row: {unreadable(table.skipped, len(paths))}")
    if table.labels is not None and min(table.labels) < 0:
        lines.append(f"no label: {(table.labels < 0).sum():,} of {len(table.paths):,}")
    if out.suffix == ".parquet":
        # Names in JSON are names in Python.
        read = f"import pyarrow.parquet as pq; print(pq.read_table({json.dumps(str(out))}))"
        lines += ["next:", f"  python -c {shlex.quote(read)}"]
    terminal.done(lines, console)
    return out
