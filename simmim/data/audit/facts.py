"""From what was seen of all images to the facts that one should know before training on them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from simmim.data.audit.duplicates import Pairs, find_near
from simmim.data.audit.image_facts import EXAMPLES, LISTED, ImageFacts, merge
from simmim.data.audit.ranges import bits_in_use, measured_range
from simmim.data.audit.survey import Survey
from simmim.data.formats.decode import usable
from simmim.data.labels import labels_of
from simmim.data.names import plain
from simmim.data.parts import is_held, place_of
from simmim.data.sources.index import in_order
from simmim.data.sources.listing import Listing

SIDES = (0, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
"""Where the bars of the histogram of shorter sides begin, in pixels."""


@dataclass(frozen=True)
class ImagePair:
    """Two images that are the same (``exact``) or nearly so, and the parts that they lie in."""

    path: str
    like: str
    exact: bool
    parts: tuple[str, str] = ("", "")
    classes: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Facts:
    """What ``simmim scan`` tells; examples are the first of their kind, counts are of all.

    Attributes:
        where: The sources as given.
        images: Images that there are.
        looked_at: Images that were looked at.
        bytes: Of those files.
        formats: Images by format and by (channels, type), most frequent first; so ``channels``.
        types: Images by the type of their values.
        values: For each type the smallest and the largest value, and what that means.
        sides: Smallest, median, largest height and width in pixels.
        histogram: Lower end in pixels, and images whose shorter side lies from it to the next.
        parts: Images in each part: DATA and --val, or train, val, test.
        classes: Readable images of DATA in each class, in the order of the classes.
        unlabelled: Those without a class, where others have one.
        reasons: Unreadable images by reason; ``bad`` names them.
        misfits: Readable images that training passes over: floats among integers, other channels.
        odd: By what is odd but was read: how many, and names.
        blank: How many images without content, and names.
        exact: Images with the same pixels as one before them; ``near``: that look nearly so.
        duplicates: The first of them.
        leaked: Images of a part that is held out with a like in another part; ``leaks``: pairs.
        notes: What was left out, changed, clipped or guessed, such as folders that are passed over.
        conflicts: Groups of like images with more than one class among them.
    """

    where: list[str]
    images: int
    looked_at: int
    bytes: int
    formats: dict[str, int]
    channels: dict[str, int]
    types: dict[str, int]
    values: dict[str, tuple[float, float, str]]
    sides: dict[str, tuple[int, int, int]]
    histogram: list[tuple[int, int]]
    parts: dict[str, int]
    classes: dict[str, int]
    unlabelled: int
    unreadable: int
    reasons: dict[str, int]
    bad: list[tuple[str, str]]
    misfits: int
    odd: dict[str, tuple[int, list[str]]]
    blank: tuple[int, list[str]]
    exact: int
    near: int
    duplicates: list[ImagePair]
    leaked: dict[str, int]
    leaks: list[ImagePair]
    conflicts: int
    notes: list[str]
    pixels: dict[str, Any] = field(default_factory=dict)
    """How values become the encoder's input, measured on a sample; see PixelFormat."""

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and texts, ready for JSON."""
        return {"format": 1, **asdict(self)}


@dataclass
class Images:
    """All images that were looked at: their names, parts and classes.

    Attributes:
        listings: DATA, and --val where it is given.
        names: Of these two, where both are given.
        classes: Names of all classes.
        label: int32, class of each image; -1: none.
        notes: What was left out or guessed of the classes.
    """

    listings: list[Listing]
    classes: list[str]
    label: np.ndarray
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, listings: list[Listing], table: Any) -> "Images":
        """Find the classes of all images.

        Raises:
            DataError: A table of labels that does not fit.
        """
        found = [_classes(listing, table) for listing in listings]
        classes = in_order(sorted({name for names, _, _ in found for name in names}))
        if len(found) == 1:
            classes = found[0][0]  # the source's own order
        place = {name: i for i, name in enumerate(classes)}
        labels = []
        for names, label, _ in found:
            table_of = np.array([place[name] for name in names] + [-1], np.int32)
            labels.append(table_of[label])
        notes = [note for _, _, notes in found for note in notes]
        return cls(listings, classes, np.concatenate(labels), notes)

    def name(self, row: int) -> str:
        """The name of an image, of --val with its source before it."""
        first = len(self.listings[0])
        if row < first:
            return plain(self.listings[0][row])
        return plain(f"{self.listings[1].where}: {self.listings[1][row - first]}")

    def read(self, row: int) -> bytes:
        """The file of an image."""
        first = len(self.listings[0])
        if row < first:
            return self.listings[0].read(row)
        return self.listings[1].read(row - first)

    def class_of(self, row: int) -> str:
        """The class of an image; empty where it has none."""
        return self.classes[self.label[row]] if self.label[row] >= 0 else ""


@dataclass(frozen=True)
class Examples:
    """The numbers of the images that the examples in ``Facts`` name."""

    duplicates: list[tuple[int, int]]
    leaks: list[tuple[int, int]]
    odd: dict[str, list[int]]
    blank: list[int]


def facts(
    images: Images, seen: list[ImageFacts], total: int, survey: Survey | None
) -> tuple[Facts, Examples]:
    """Draw up what was seen, and say which images are its examples.

    Args:
        images: What was looked at.
        seen: One for each listing.
        total: Images that there are, where only a sample was looked at.
        survey: Of DATA, for how values become the encoder's input; None where no image can be used.
    """
    whole = _joined(seen)
    part, parts = _parts(images)
    pairs = find_near(whole.hashes, whole.readable)
    groups = _groups(pairs)

    def pair(row: int, other: int) -> ImagePair:
        first, second = (parts[part[i]] if part[i] >= 0 else "" for i in (row, other))
        return ImagePair(
            images.name(row),
            images.name(other),
            bool(whole.exact[row] == whole.exact[other]),
            (first, second),
            (images.class_of(row), images.class_of(other)),
        )

    leaked, leaks = _leaks(groups, part, parts)
    shown = Examples(
        list(_first(pairs)),
        leaks,
        {what: rows for what, (_, rows) in whole.odd.items()},
        np.flatnonzero(whole.blank)[:EXAMPLES].tolist(),
    )
    first = len(images.listings[0])
    label = images.label[:first][whole.readable[:first]]
    labelled = np.bincount(label[label >= 0], minlength=len(images.classes))
    kinds = Counter[str](), Counter[str](), Counter[str]()
    for (form, channels, kind), count in whole.kinds.items():
        for counter, name in zip(kinds, (form, str(channels), kind), strict=True):
            counter[name] += count
    found = Facts(
        where=[plain(listing.where) for listing in images.listings],
        images=total,
        looked_at=len(whole.exact),
        bytes=whole.bytes,
        formats=dict(kinds[0].most_common()),
        channels=dict(kinds[1].most_common()),
        types=dict(kinds[2].most_common()),
        values=_values(whole),
        sides={
            "height": _spread(whole.height[whole.readable]),
            "width": _spread(whole.width[whole.readable]),
        },
        histogram=_histogram(np.minimum(whole.height, whole.width)[whole.readable]),
        parts={name: int((part == i).sum()) for i, name in enumerate(parts)},
        classes={name: int(n) for name, n in zip(images.classes, labelled, strict=True)},
        unlabelled=int((label < 0).sum()) if images.classes else 0,
        unreadable=int((~whole.readable).sum()),
        reasons=dict(whole.reasons.most_common()),
        bad=[(images.name(row), reason) for row, reason in whole.bad],
        misfits=sum(
            n
            for (_, channels, kind), n in whole.kinds.items()
            if survey is not None and not usable(channels, kind, survey.pixels)
        ),
        odd={
            what: (count, [images.name(row) for row in rows])
            for what, (count, rows) in whole.odd.items()
        },
        blank=(int(whole.blank.sum()), [images.name(row) for row in shown.blank]),
        exact=int(pairs.exact.sum()),
        near=int((~pairs.exact).sum()),
        duplicates=[pair(*rows) for rows in shown.duplicates],
        leaked=leaked,
        leaks=[pair(*rows) for rows in leaks],
        conflicts=_conflicts(groups, images.label),
        notes=[
            *(plain(n) for each in images.listings for info in each.infos for n in info.notes),
            *map(plain, images.notes),
            *(plain(note) for note in ([] if survey is None else survey.notes)),
        ],
        pixels={} if survey is None else asdict(survey.pixels),
    )
    return found, shown


def _classes(listing: Listing, table: Any) -> tuple[list[str], np.ndarray, list[str]]:
    """Names of the classes, the class of each image, -1 where it has none, and notes of them."""
    label = np.full(len(listing), -1, np.int32)
    labels = labels_of(listing, table)
    if labels is not None:
        for row, number in labels.pairs():
            label[row] = number
        return labels.classes, label, labels.notes
    # train/CLASS, val/CLASS: the folder in a part of a split.
    numbers: dict[str, int] = {}
    inside = listing.indexes[0].inside
    for row, name in enumerate(map(inside, listing) if listing.parts else ()):
        part = place_of(name, listing.parts)
        inner = name.removeprefix(f"{listing.parts[part]}/").split("/")
        if part >= 0 and len(inner) > 1:
            label[row] = numbers.setdefault(inner[0], len(numbers))
    if len(numbers) < 2 or 2 * len(numbers) > (label >= 0).sum():
        return [], np.full(len(listing), -1, np.int32), []
    names = in_order(list(numbers))
    order = np.array([names.index(name) for name in numbers] + [-1], np.int32)
    return names, order[label], []


def _joined(seen: list[ImageFacts]) -> ImageFacts:
    """What was seen of DATA and of --val together."""
    whole, start = ImageFacts.of(sum(len(each.exact) for each in seen)), 0
    for each in seen:
        merge(whole, start, each)
        start += len(each.exact)
    whole.odd = dict(sorted(whole.odd.items()))
    return whole


def _parts(images: Images) -> tuple[np.ndarray, list[str]]:
    """The part of each image, -1 where it is in none, and the names of the parts."""
    if len(images.listings) > 1:
        sizes = [len(listing) for listing in images.listings]
        return np.repeat(np.arange(2), sizes), ["DATA", "--val"]
    (listing,) = images.listings
    names = map(listing.indexes[0].inside, listing)
    return np.array([place_of(name, listing.parts) for name in names]), listing.parts


def _groups(pairs: Pairs) -> list[list[int]]:
    """Sets of like images, the one that is kept first."""
    groups: dict[int, list[int]] = {}
    for later, kept in zip(pairs.later.tolist(), pairs.kept.tolist(), strict=True):
        groups.setdefault(kept, [kept]).append(later)
    return list(groups.values())


def _leaks(
    groups: list[list[int]], part: np.ndarray, parts: list[str]
) -> tuple[dict[str, int], list[tuple[int, int]]]:
    """Count the images of held-out parts that have a like elsewhere; and the first of them."""
    held = {i for i, name in enumerate(parts) if is_held(name) or name == "--val"}
    counts: Counter[str] = Counter()
    pairs: list[tuple[int, int]] = []
    for group in groups:
        for row in group:
            others = [other for other in group if part[other] not in (part[row], -1)]
            if int(part[row]) not in held or not others:
                continue
            counts[parts[part[row]]] += 1
            if len(pairs) < LISTED:
                # Best to name one that is trained on.
                pairs.append((row, min(others, key=lambda one: int(part[one]) in held)))
    return dict(counts), pairs


def _conflicts(groups: list[list[int]], label: np.ndarray) -> int:
    return sum(len({int(label[row]) for row in group} - {-1}) > 1 for group in groups)


def _first(pairs: Pairs) -> Iterator[tuple[int, int]]:
    """The first pairs, as many exact as near ones where there are many of both."""
    kinds = [np.flatnonzero(pairs.exact), np.flatnonzero(~pairs.exact)]
    half = LISTED // 2
    for place in np.sort(np.concatenate([kinds[0][:half], kinds[1][:half]])).tolist():
        yield int(pairs.later[place]), int(pairs.kept[place])


def _values(whole: ImageFacts) -> dict[str, tuple[float, float, str]]:
    """For each type: the smallest and largest value, and what they tell."""
    found = {}
    for kind, peak in whole.peak.items():
        words = "8 bits"
        if kind in whole.points:
            low, high = measured_range(np.concatenate(whole.points[kind]))
            within = f"99.8 % within {low:.4g} … {high:.4g}"
            words = f"float, {within}" if kind == "float32" else _depth(high, peak, within)
        found[kind] = (whole.low[kind], peak, words)
    return found


def _depth(high: float, peak: float, within: str) -> str:
    bits = bits_in_use(high)
    return f"{bits} bits in use of 16" + (f", {within}" if peak >= 2**bits else "")


def _histogram(sides: np.ndarray) -> list[tuple[int, int]]:
    counts = np.histogram(sides, bins=[*SIDES, 1 << 31])[0]
    used = np.flatnonzero(counts)
    if not len(used):
        return []
    return [(SIDES[i], int(counts[i])) for i in range(used[0], used[-1] + 1)]


def _spread(values: np.ndarray) -> tuple[int, int, int]:
    if not len(values):
        return 0, 0, 0
    return int(values.min()), round(float(np.median(values))), int(values.max())
