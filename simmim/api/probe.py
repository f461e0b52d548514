"""`simmim probe`: what frozen features are worth for telling classes apart."""

import math
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from simmim.api.encoders import features, open_encoder
from simmim.api.labelled import labelled_parts
from simmim.config.commands import ProbeConfig
from simmim.data.loading.quarantine import unreadable
from simmim.evaluate.probe import Score, always_the_largest, knn, linear
from simmim.report import terminal


def run_probe(config: ProbeConfig) -> None:
    """Measure and print what frozen features are worth for telling classes apart."""
    console = Console()
    data = [config.data, *([] if config.val is None else [config.val])]
    encoder = open_encoder(config.run, console, data)
    train, test, classes, said = labelled_parts(config, 1 - config.train_share, encoder.pixels)
    terminal.facts(console, said)
    learnt, asked = (
        features(console, encoder, images, config.batch_size, config.workers)
        for images in (train, test)
    )
    for table, what in ((learnt, "images to learn from"), (asked, "images asked about")):
        if table.skipped:
            tried = len(table.paths) + len(table.skipped)
            terminal.line(console, unreadable(table.skipped, tried, what))
    assert learnt.labels is not None
    assert asked.labels is not None
    pieces = (learnt.features, learnt.labels, asked.features, asked.labels)
    if config.protocol == "knn":
        score = knn(*pieces, classes=len(classes), k=config.k)
        how = f"k-NN, k = {config.k}, cosine"
    else:
        score = linear(*pieces, classes=len(classes), seed=config.seed)
        how = "logistic regression"
    _print_score(
        console,
        how=how,
        score=score,
        labels=asked.labels,
        learnt=len(learnt.paths),
        classes=classes,
    )


def _print_score(
    console: Console,
    *,
    how: str,
    score: Score,
    labels: np.ndarray,
    learnt: int,
    classes: Sequence[str],
) -> None:
    error = math.sqrt(score.accuracy * (1 - score.accuracy) / len(labels))
    terminal.done(
        [
            f"{how} on frozen features: {learnt:,} images to learn from, {len(labels):,} asked, "
            f"{len(classes)} classes",
            f"accuracy           {score.accuracy:.1%} ± {error:.1%} (standard error)",
            f"balanced accuracy  {score.balanced_accuracy:.1%}",
            always_the_largest(labels),
        ],
        console,
    )
