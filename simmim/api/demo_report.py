"""The demo's part of the report, and its figures on the terminal."""

import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Grid
from sklearn.manifold import TSNE

from simmim.data.demo import PHOTOS, TEST_PHOTOS
from simmim.evaluate.features import FeatureTable
from simmim.report.classified import Answers, confusion, examples
from simmim.report.html import write_report
from simmim.report.sections import (
    Commands,
    Comparison,
    EmbeddingMap,
    Neighbour,
    Neighbours,
    Query,
    Section,
    Table,
    Tile,
)
from simmim.report.summary import describe
from simmim.report.words import count, percent, points
from simmim.runs.record import read_run
from simmim.studies.label_efficiency import METHODS, Measurements

SHUFFLED = (
    "The labels were shuffled before measuring, as a check: every accuracy must be near chance "
    "(10 % balanced), and no difference may remain."
)


@dataclass(frozen=True)
class Story:
    """What the report tells."""

    run: Path
    measured: Measurements
    document: dict[str, Any]
    """What results.json says."""
    table: FeatureTable
    """Embeddings of the test photos."""
    minutes: float
    """The whole demo's."""


def comparisons(measured: Measurements) -> tuple[Comparison, Comparison]:
    """Fine-tuning, and frozen features, each against an encoder with random weights."""
    labels = f"{measured.labels // len(measured.classes)} labelled photos of each class"
    rule = (
        f"For each draw, {labels} were chosen at random among the photos for training; both sides "
        "got the same ones, the same settings, and as many steps. Measured on the "
        f"{len(measured.asked[0].paths)} test photos, which neither was trained on. The standard "
        "error is that of the paired difference over draws of labels, random weights and orders; "
        "nothing within it is claimed. The pretraining was done once and the test photos are the "
        "same throughout, so it says nothing of other pretraining seeds or other photos."
    )
    tuned = measured.comparison(
        ["finetune"],
        title="A classifier from few labels: pretrained or from scratch",
        lead=rule,
    )
    frozen = measured.comparison(
        ["linear", "knn"],
        title="Features as they are: pretrained or random",
        lead="The encoder is not trained further here: a logistic regression, or a vote of the 20 "
        "nearest labelled photos, works on its features. Against an encoder with random weights, "
        "which is better than chance, since colours and brightness pass through it. Same draws.",
        baseline="a random encoder",
    )
    return tuned, frozen


def report(story: Story) -> Path:
    """Write RUN/report.html with the demo's sections."""
    plain = describe(read_run(story.run), _sections(story))
    (tuned,) = comparisons(story.measured)[0].paired
    document = story.document
    told = [
        f"Can photos without labels help to sort photos? {count(document['photos'], 'photo')} of "
        "clothes from many people's homes (Alexey Grigorev's clothing dataset, CC0), ten classes; "
        f"{document['labels_in_a_draw']} labels.",
        *plain.summary,
        "The recipe simmim-fast with a small encoder, as it learns faster than the default recipe "
        f"in runs this short. Everything took {story.minutes:.0f} minutes.",
    ]
    if document["labels_shuffled"]:
        told.append(SHUFFLED)
    tiles = [
        Tile(
            value=percent(tuned.pretrained.accuracy, 1),
            label="accuracy, pretrained",
            hint="fine-tuned, test photos",
        ),
        Tile(
            value=percent(tuned.baseline.accuracy, 1),
            label="accuracy, from scratch",
            hint="same labels and steps",
        ),
        Tile(
            value=points(tuned.difference.accuracy),
            label="points of difference",
            hint=f"± {100 * tuned.error.accuracy:.1f} standard error"
            if tuned.draws > 1
            else "one draw, no standard error",
        ),
        *plain.tiles,
    ]
    return write_report(
        story.run / "report.html",
        replace(
            plain,
            title="simmim demo: sorting photos of clothes",
            summary=told,
            verdict=_verdict(story.measured),
            tone="good" if tuned.verdict == "better" else "caution",
            tiles=tiles[:8],
            sections=[*plain.sections[:-1], _next(story.run)],
        ),
    )


def _verdict(measured: Measurements) -> str:
    tuned, frozen = comparisons(measured)
    return " ".join(
        sentence[0].upper() + sentence[1:] for sentence in (*tuned.sentences, *frozen.sentences)
    )


def _sections(story: Story) -> list[Section]:
    tuned, frozen = comparisons(story.measured)
    curve = Comparison(
        title="How much do more labels help?",
        lead="A logistic regression on frozen features, from few labelled photos of each class to "
        "many; mean over the draws ± one standard error.",
        draws=story.measured.curve,
        baseline="a random encoder",
    )
    parts: list[Section] = [tuned, frozen, curve]
    earlier = _earlier(story.document)
    if earlier is not None:
        parts.append(earlier)
    one = story.measured.find(1, "finetune", "pretrained")
    answers = Answers(one.paths, story.measured.classes, one.labels, one.probabilities)
    lead = "The pretrained and fine-tuned classifier of the first draw, on the test photos."
    parts.append(confusion(answers, lead))
    lead = (
        "Test photos of each class, by how sure the same classifier was of its answer, right or "
        "wrong."
    )
    parts.append(examples(answers, lead, lambda row: story.run / TEST_PHOTOS / one.paths[row]))
    parts.append(_neighbours(story))
    parts.append(_map(story))
    return parts


def _earlier(document: dict[str, Any]) -> Table | None:
    """How the figures grew where the run was pretrained in several goes."""
    if not document["earlier"]:
        return None
    rows = [
        (
            f"{told['minutes']:.0f} min",
            count(told["steps"]),
            METHODS[pair["method"]],
            percent(pair["pretrained"]["accuracy"], 1),
            percent(pair["scratch"]["accuracy"], 1),
            _gain(
                pair["difference"]["accuracy"],
                pair["standard_error_of_the_difference"]["accuracy"],
            ),
        )
        for told in (*document["earlier"], document)
        for pair in told["paired"]
    ]
    return Table(
        title="What more pretraining gave",
        lead="Accuracy on the test photos after each go.",
        columns=("pretrained for", "steps", "used as", "pretrained", "scratch", "difference"),
        rows=rows,
    )


def _neighbours(story: Story, shown: int = 6) -> Neighbours:
    """For one photo of each class, the nearest others by cosine of the standardised features."""
    table, classes = story.table, story.measured.classes
    assert table.labels is not None
    unit = _unit(table.features)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    queries = []
    for label, name in enumerate(classes):
        row = int(np.flatnonzero(table.labels == label)[0])
        near = np.argsort(-similarity[row], kind="stable")[:shown]
        queries.append(
            Query(
                photo=story.run / TEST_PHOTOS / table.paths[row],
                label=name,
                neighbours=[
                    Neighbour(
                        photo=story.run / TEST_PHOTOS / table.paths[other],
                        label=classes[table.labels[other]],
                        similarity=float(similarity[row, other]),
                    )
                    for other in near
                ],
            )
        )
    return Neighbours(
        title="Nearest photos",
        lead="The first test photo of each class and the test photos nearest to it by the "
        "pretrained encoder's features, learned without any label.",
        queries=queries,
    )


def _map(story: Story) -> EmbeddingMap:
    table = story.table
    assert table.labels is not None
    places = TSNE(metric="cosine", init="pca", perplexity=20, random_state=0).fit_transform(
        _unit(table.features)
    )
    return EmbeddingMap(
        title="A map of the test photos",
        lead="By the pretrained encoder's features, before any fine-tuning, laid out by t-SNE.",
        points=places,
        labels=table.labels.tolist(),
        classes=story.measured.classes,
        photos=[story.run / TEST_PHOTOS / path for path in table.paths],
        titles=table.paths,
    )


def _unit(features: np.ndarray) -> np.ndarray:
    """Standardised over the photos, then of length 1 each."""
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _gain(difference: float, error: float | None) -> str:
    """Points with their standard error, which a single draw does not have."""
    if error is None or not math.isfinite(error):
        return points(difference)
    return f"{points(difference)} ± {100 * error:.1f}"


def next_steps(run: Path) -> list[tuple[str, str]]:
    """Commands to go on with, and what they do."""
    name, photos = shlex.quote(str(run)), shlex.quote(str(run / PHOTOS))
    return [
        (f"simmim demo --minutes 60 --out {name}", "pretrain on, and measure again"),
        ("simmim pretrain MY_PHOTOS/", "the same with your own photos; no labels needed"),
        (
            f"simmim finetune MY_LABELLED_PHOTOS/ --from {name}",
            "a classifier, from one folder per class",
        ),
        (
            f"simmim embed {name} {photos} --out photos.parquet",
            "a vector for each photo, for search",
        ),
    ]


def _next(run: Path) -> Commands:
    return Commands(title="What to do next", commands=next_steps(run))


def print_figures(console: Console, measured: Measurements, document: dict[str, Any]) -> None:
    """Print accuracies, paired differences with standard errors, and what may be claimed."""
    tuned, frozen = comparisons(measured)
    console.print()
    if document["labels_shuffled"]:
        console.print(SHUFFLED, style="yellow")
    console.print(
        f"On {document['test_photos']} test photos; mean of {count(measured.draws, 'draw')} of "
        f"{measured.labels} labels, {measured.labels // len(measured.classes)} of each class; "
        "differences in points ± one standard error of the paired difference:\n",
        highlight=False,
    )
    grid = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("", "", "pretrained", "random start", "difference"):
        grid.add_column(name, justify="right" if name else "left", no_wrap=True)
    for pair in (*tuned.paired, *frozen.paired):
        for measure in ("accuracy", "balanced"):
            here, there, gained, error = (
                getattr(found, measure)
                for found in (pair.pretrained, pair.baseline, pair.difference, pair.error)
            )
            grid.add_row(
                pair.protocol if measure == "accuracy" else "",
                measure,
                percent(here, 1),
                percent(there, 1),
                _gain(gained, error),
            )
    grid.add_row(
        "always the largest class",
        "accuracy",
        percent(document["always_the_largest_class"], 1),
        percent(document["always_the_largest_class"], 1),
    )
    console.print(grid, highlight=False)
    console.print()
    for sentence in (*tuned.sentences, *frozen.sentences):
        console.print(sentence[0].upper() + sentence[1:], highlight=False)
