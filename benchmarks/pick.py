"""Are picked labels worth more than random ones?

    python benchmarks/pick.py RUN --clothing DIR
    python benchmarks/pick.py --table

DIR holds `train/CLASS/…`, `val/CLASS/…` and `test/CLASS/…`. RUN was pretrained without labels:

    simmim pretrain DIR/train DIR/unlabeled --recipe simmim-fast --image-size 64 --patch-size 8 \\
        --model vit_tiny_patch16_224 --arguments depth=4 --budget 5m

In each of ten draws half of `train`, chosen at random, is the pool. From the same pool every way of
choosing takes as many images; they get their labels, and a logistic regression on frozen features
is asked about `val` with the other half, by which the way was chosen, and about `test`. What is
paired is the pool. A
row for each draw, way and number of labels goes into benchmarks/results/pick.jsonl; a row that is
there is not made again.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from simmim.evaluate.pick import diverse, doubts
from simmim.evaluate.probe import accuracy, balanced_accuracy, linear

RESULTS = Path(__file__).parent / "results" / "pick.jsonl"
DRAWS = 10
COUNTS = (100,)
ROUNDS = 4
Choice = Callable[[np.ndarray, np.ndarray, int, np.random.Generator], np.ndarray]


def random(features: np.ndarray, _: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Any."""
    return rng.choice(len(features), n, replace=False)


def picked(features: np.ndarray, _: np.ndarray, n: int, __: np.random.Generator) -> np.ndarray:
    """As `simmim pick` does where nothing is labelled."""
    return diverse(features, features[:0], n, seed=0)[0]


def rounds(features: np.ndarray, labels: np.ndarray, n: int, __: np.random.Generator) -> np.ndarray:
    """As `simmim pick` does in four rounds, each with the labels of those before."""
    chosen = np.empty(0, np.int64)
    for _ in range(ROUNDS):
        rest = np.setdiff1d(np.arange(len(features)), chosen)
        known, own = features[chosen], features[rest]
        weights = doubts(own, known, labels[chosen], labels.max() + 1)
        found = diverse(own, known, n // ROUNDS, 0, weights)[0]
        chosen = np.concatenate([chosen, rest[found]])
    return chosen


def k_centre(features: np.ndarray, _: np.ndarray, n: int, __: np.random.Generator) -> np.ndarray:
    """Greedily, the image farthest from its nearest chosen one (core-set)."""
    middle = features.mean(0)
    chosen = [int(np.linalg.norm(features - middle, axis=1).argmin())]
    near = np.linalg.norm(features - features[chosen[0]], axis=1)
    while len(chosen) < n:
        chosen.append(int(near.argmax()))
        near = np.minimum(near, np.linalg.norm(features - features[chosen[-1]], axis=1))
    return np.array(chosen)


def k_means(features: np.ndarray, _: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """The image nearest to the middle of each of n clusters."""
    model = KMeans(n, random_state=int(rng.integers(1 << 30))).fit(features)
    return np.array(
        [_inside(model.transform(features)[:, k], model.labels_ == k) for k in range(n)]
    )


def typical(features: np.ndarray, _: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """The image of each of n clusters with the nearest 20 neighbours in it (TypiClust)."""
    labels = KMeans(n, random_state=int(rng.integers(1 << 30))).fit(features).labels_
    chosen = []
    for k in range(n):
        rows = np.flatnonzero(labels == k)
        distances = np.sort(np.linalg.norm(features[rows, None] - features[rows], axis=2), 1)
        chosen.append(rows[distances[:, 1:21].mean(1).argmin() if len(rows) > 1 else 0])
    return np.array(chosen)


def _inside(distances: np.ndarray, inside: np.ndarray) -> int:
    return int(np.where(inside, distances, np.inf).argmin())


WAYS: dict[str, Choice] = {
    "random": random,
    "pick": picked,
    "pick, 4 rounds": rounds,
    "k-means": k_means,
    "typical": typical,
    "k-centre": k_centre,
}


def tables(run: str, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and classes of each part."""
    from simmim.data.labels import needed_labels
    from simmim.data.loading.images import ImageSet
    from simmim.data.sources.find import find_images
    from simmim.evaluate.features import extract
    from simmim.interop.load import load_encoder

    encoder, found = load_encoder(run), {}
    for part in ("train", "val", "test"):
        labels = needed_labels(find_images(folder / part))
        images = ImageSet(labels.images, encoder.pixels, [label for _, label in labels.pairs()])
        table = extract(encoder, images)
        found[part] = table.features, table.labels
    return found


def measure(parts: dict[str, tuple[np.ndarray, np.ndarray]], rows: list[dict]) -> None:
    """Make the rows that are not there yet."""
    known = {(row["draw"], row["way"], row["labels"]) for row in rows}
    features, labels = parts["train"]
    classes = len(np.unique(labels))
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        pool = np.sort(rng.choice(len(features), len(features) // 2, replace=False))
        for way, choose in WAYS.items():
            for count in COUNTS:
                if (draw, way, count) in known:
                    continue
                own = np.random.default_rng((draw, count))
                chosen = pool[choose(features[pool], labels[pool], count, own)]
                row = {"draw": draw, "way": way, "labels": count}
                asked = _asked(parts, pool)
                pieces = [np.concatenate(each) for each in zip(*asked.values(), strict=True)]
                learnt = (features[chosen], labels[chosen])
                said = linear(*learnt, *pieces, classes=classes, seed=draw).predictions
                for part, (_, true) in asked.items():
                    own, said = said[: len(true)], said[len(true) :]
                    row[part] = round(accuracy(true, own), 4)
                    row[f"{part}_balanced"] = round(balanced_accuracy(true, own, classes), 4)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


def _asked(
    parts: dict[str, tuple[np.ndarray, np.ndarray]], pool: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and classes of `val`, with what is not in the pool, and of `test`."""
    rest = np.setdiff1d(np.arange(len(parts["train"][1])), pool)
    pairs = zip(parts["val"], parts["train"], strict=True)
    both = [np.concatenate([val, train[rest]]) for val, train in pairs]
    return {"val": (both[0], both[1]), "test": parts["test"]}


def table(rows: list[dict]) -> str:
    """Means, and paired differences to random with their standard error, as Markdown."""
    lines = ["| labels | way | val | − random | test | − random | wins | balanced | − random |"]
    lines.append("|---" * 9 + "|")
    for count in COUNTS:
        groups = {
            way: sorted(
                (row for row in rows if (row["way"], row["labels"]) == (way, count)),
                key=lambda row: row["draw"],
            )
            for way in WAYS
        }
        for way, group in groups.items():
            cells = [str(count), way]
            for name in ("val", "test", "test_balanced"):
                mine = np.array([row[name] for row in group])
                gaps = 100 * (mine - np.array([row[name] for row in groups["random"]]))
                error = gaps.std(ddof=1) / np.sqrt(len(gaps))
                cells += [f"{100 * mine.mean():.1f}", f"{gaps.mean():+.1f} ± {error:.1f}"]
                cells += [f"{(gaps > 0).sum()} of {len(gaps)}"] if name == "test" else []
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", nargs="?")
    parser.add_argument("--clothing", type=Path)
    parser.add_argument("--table", action="store_true", help="print what is known")
    args = parser.parse_args()
    if not args.table:
        before = RESULTS.read_text().splitlines() if RESULTS.exists() else []
        with threadpool_limits(1):
            measure(tables(args.run, args.clothing), [json.loads(line) for line in before])
    print(table([json.loads(line) for line in RESULTS.read_text().splitlines()]))


if __name__ == "__main__":
    main()
