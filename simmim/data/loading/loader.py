"""Batches: the same for any number of workers, any micro-batch, and from any step on."""

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence

import torch

from simmim.config.augment import AugmentConfig
from simmim.data.loading.geometry import Geometry, Size, centre_geometry
from simmim.data.loading.images import ImageSet
from simmim.data.loading.order import Order
from simmim.data.loading.quarantine import Quarantine, reasons
from simmim.data.loading.rows import IMAGES, VIEW, PlainRows, Report, TrainRows, slot_shapes
from simmim.data.loading.workers import Arrays, Crew, Fill, Shapes, empty, slot_bytes
from simmim.data.sources.listing import Listing
from simmim.errors import ConfigError, DataError, TrainingError
from simmim.tensors.batch import Batch

CHUNK = 32
"""Most images that a worker does at a time."""
SHARED_BYTES = 2**30
"""Memory for images made ahead, over all workers; two chunks per worker are always there."""
BESIDE = ("frames", "maps", "boxes", "categories", "crowd", "valid", "masks")
"""Arrays of a slot that go into a batch as they are."""
TIMEOUT = 120.0
"""Seconds after which a worker that gave nothing counts as hung."""


class TrainStream:
    """The endless stream of one rank's training batches.

    Every image and every random number follows from (seed, t), t = step · global batch + row, so
    that workers, micro-batches and ranks change nothing but who does the work.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        augment: AugmentConfig,
        size: Size,
        seed: int,
        batch_size: int,
        micro_batch: int,
        workers: int,
        weights: Sequence[float] = (),
        groups: Sequence[int] = (),
        views: Sequence[tuple[AugmentConfig, Size]] = (),
        rank: int = 0,
        ranks: int = 1,
        quarantine: Quarantine | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        """Describe the stream; workers start with ``start``.

        Args:
            images: What to train on.
            augment: The random views.
            size: Height and width of a view in pixels.
            seed: Seed of the run.
            batch_size: Images of a step over all ranks.
            micro_batch: Most images that are yielded at once.
            workers: Background processes; 0 decodes in this one, when a batch is asked for.
            weights: Shares of the sources of the images, where there are several; none: every
                image comes once in an epoch.
            groups: Sizes of groups of the images, one after another, that come alike often.
            views: Further views of each image: how they are drawn, and height and width.
            rank: Number of this process.
            ranks: Number of processes, which share each global batch in equal parts.
            quarantine: Is told which images were tried and which were unreadable, and judges.
            timeout: Seconds after which a worker that gave nothing counts as hung.

        Raises:
            ConfigError: The ranks cannot share the batch equally, or the weights do not fit.
            DataError: There are no images.
        """
        if batch_size % ranks:
            raise ConfigError(
                f"--batch-size {batch_size} cannot be shared by {ranks} processes in equal parts; "
                f"the next that can: {batch_size + ranks - batch_size % ranks}."
            )
        if not len(images):
            raise DataError(f"there are no images to train on in {images.paths.where}.")
        rows = batch_size // ranks
        micro = min(micro_batch, rows)
        chunk = _chunk(micro, workers)
        self._images = images
        self.quarantine = quarantine
        # The rank's rows as (first, count), cut into micro-batches, and each of them into chunks.
        self._pieces = [
            [(row, min(chunk, end - row)) for row in range(begin, end, chunk)]
            for begin in range(0, rows, micro)
            for end in [min(begin + micro, rows)]
        ]
        chunks = [part for piece in self._pieces for part in piece]
        counts = images.paths.counts() if weights else list(groups) or [len(images)]
        _check_weights(weights, counts)
        weights = weights or [1.0] * len(groups)
        order = Order(tuple(counts), seed, tuple(weights))
        self._rows = TrainRows(
            images=images,
            views=((augment, size), *views),
            order=order,
            batch_size=batch_size,
            first_row=rank * rows,
            chunks=chunks,
        )
        slot = slot_shapes(images, chunk, [size for _, size in self._rows.views])
        self._crew = _crew(self._rows, slot, workers=workers, micro=micro, timeout=timeout)
        self._running: Generator[Batch] | None = None

    def start(self, step: int) -> Iterator[Batch]:
        """Yield this rank's micro-batches from ``step`` on, without end.

        A worker that dies or hangs is replaced at the same position, twice at most.

        Raises:
            TrainingError: Too many images are unreadable, the storage fails, or a worker died or
                hung for the third time at the same place.
        """
        self.close()
        self._running = self._batches(step)
        return self._running

    def close(self) -> None:
        """End the workers; ``start`` begins anew."""
        if self._running is not None:
            self._running.close()
        self._running = None

    @property
    def bad(self) -> int:
        """Distinct unreadable images known so far."""
        return 0 if self.quarantine is None else self.quarantine.count

    def _batches(self, step: int) -> Generator[Batch]:
        task = step * len(self._rows.chunks)
        with contextlib.closing(self._crew.run(task, None)) as done:
            for piece in itertools.cycle(self._pieces):
                first = self._rows.places(task).start
                arrays, used = self._take(piece, done)
                task += len(piece)
                yield _batch(arrays, range(first, first + len(used)), used, self._images)

    def _take(
        self, piece: list[tuple[int, int]], done: Iterator[tuple[Arrays, Report]]
    ) -> tuple[Arrays, list[int]]:
        """Put the chunks of a micro-batch together; return it with the images used."""
        if not self._crew.workers and len(piece) == 1:  # then the arrays are ours
            arrays, report = next(done)
            self._judge(report)
            return {name: each[: piece[0][1]] for name, each in arrays.items()}, report.used
        whole, used = empty(_with_rows(self._crew.slot, sum(n for _, n in piece))), []
        for _, length in piece:
            arrays, report = next(done)
            self._judge(report)
            for name, array in whole.items():
                array[len(used) : len(used) + length] = arrays[name][:length]
            used += report.used
        return whole, used

    def _judge(self, report: Report) -> None:
        if self.quarantine is not None:
            self.quarantine.tried(report.tried)
            for index, reason in report.bad:
                self.quarantine.add(self._images.paths[index], reason)
            self.quarantine.check()
        if report.stop:
            raise TrainingError(report.stop)


def load_views(
    images: ImageSet,
    size: Size,
    *,
    bad: dict[str, str],
    batch: int = 64,
    workers: int = 0,
    place: Callable[[int, int, Size], Geometry] = centre_geometry,
) -> Iterator[tuple[list[int], Batch]]:
    """Yield plain views in order, with the indices of the images that they are of.

    Unreadable images are left out. The ``t`` of a batch are these indices.

    Args:
        images: Which images.
        size: Height and width of a view in pixels.
        bad: Takes up the unreadable images, each with its reason.
        batch: Most images that are yielded at once.
        workers: Background processes; 0 decodes in this one.
        place: Where the view of an image lies, by its height, its width, and ``size``.

    Raises:
        DataError: The storage fails.
        TrainingError: A worker died or hung for the third time at the same place.
    """
    rows = PlainRows(images=images, size=size, chunk=batch, place=place)
    slot = {**slot_shapes(images, batch, [size]), "frames": ((batch, 2), torch.int64)}
    crew = _crew(rows, slot, workers=workers, micro=batch, timeout=TIMEOUT)
    with contextlib.closing(crew.run(0, -(-len(images) // batch))) as done:
        for arrays, report in done:
            if report.stop:
                raise DataError(report.stop)
            bad |= {images.paths[index]: reason for index, reason in report.bad}
            if report.used:
                views = empty(_with_rows(slot, len(report.used)))
                for name, array in views.items():
                    array.copy_(arrays[name][: len(array)])
                yield report.used, _batch(views, report.used, report.used, images)


def readable(images: ImageSet, size: Size, *, bad: dict[str, str], workers: int = 0) -> ImageSet:
    """Read all images once, and return those that can be; see ``load_views``.

    Raises:
        DataError: None of them can be read, or the storage fails.
    """
    # Masks of all objects take much more memory than the images.
    batch = 8 if "masks" in images.annotations else 64
    views = load_views(images, size, bad=bad, batch=batch, workers=workers)
    rows = [row for used, _ in views for row in used]
    if not rows:
        raise NoneReadableError(none_readable(images.paths, bad), bad)
    return images if len(rows) == len(images) else images.select(rows)


class NoneReadableError(DataError):
    """None of the images could be read; ``bad`` has their names, each with its reason."""

    def __init__(self, text: str, bad: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.bad = bad or {}


def none_readable(paths: Listing, bad: dict[str, str]) -> str:
    """Say that no image could be read, and why."""
    return f"none of the {len(paths):,} images in {paths.where} could be read: {reasons(bad)}."


def _check_weights(weights: Sequence[float], counts: list[int]) -> None:
    """Raise ``ConfigError`` unless there is a weight for each source, above 0."""
    if not weights:
        return
    if len(weights) != len(counts):
        raise ConfigError(
            f"--weights gives {len(weights)} shares, and there are {len(counts)} sources of "
            "images; give one for each."
        )
    if min(weights) <= 0 or min(counts) < 1:
        raise ConfigError("--weights are shares above 0; leave out sources that are not wanted.")


def _chunk(micro: int, workers: int) -> int:
    """Return the images of a worker's task: equal parts of a micro-batch, for a short wait."""
    return micro if not workers else -(-micro // -(-micro // CHUNK))


def _crew(fill: Fill, slot: Shapes, *, workers: int, micro: int, timeout: float) -> Crew:
    """Plan for two micro-batches made ahead, at least two chunks per worker, in bounded memory."""
    chunk = slot[IMAGES][0][0]
    wanted = 1 + -(-2 * micro // (chunk * max(workers, 1)))
    room = SHARED_BYTES // (slot_bytes(slot) * max(workers, 1))
    ahead = min(max(2, min(wanted, room)), 255)
    return Crew(fill=fill, slot=slot, workers=workers, ahead=ahead, timeout=timeout)


def _with_rows(slot: Shapes, rows: int) -> Shapes:
    return {name: ((rows, *shape[1:]), dtype) for name, (shape, dtype) in slot.items()}


def _batch(arrays: Arrays, places: Sequence[int], used: list[int], source: ImageSet) -> Batch:
    labels = captions = None
    if source.labels is not None:
        labels = torch.tensor([source.labels[index] for index in used])
    if "captions" in source.annotations:
        captions = [source.paths.caption(index) or "" for index in used]
    views = [
        array.permute(0, 3, 1, 2)
        for name, array in arrays.items()
        if name == IMAGES or name.startswith(VIEW)
    ]
    return Batch(
        views[0],
        torch.tensor(places),
        labels,
        torch.tensor(used),
        tuple(views[1:]) or None,
        captions=captions,
        **{name: arrays[name] for name in BESIDE if name in arrays},
    )
