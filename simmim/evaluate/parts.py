"""Results of many images in a folder: streamed, gone on with, shared by processes.

What a folder holds it tells in a card, so that only the same command goes on in it.

A Parquet part holds the rows of so many images that follow each other. It is computed by one
process from these images alone, so that its bytes hang neither on where the work was stopped nor on
how many processes there are.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim.config.run import FORMAT
from simmim.config.seal import read_sealed, seal_json
from simmim.data.loading.loader import NoneReadableError, none_readable
from simmim.data.names import plain
from simmim.data.on_ray import join_ray, on_ray
from simmim.data.sources.listing import Listing
from simmim.errors import ConfigError, DataError, ResourceError, SimmimError
from simmim.evaluate.features import Progress
from simmim.runs.files import replacing, write_text
from simmim.runs.lock import Lock
from simmim.training.world import World

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 8192
"""Images of a part."""
CARD = "_parts.json"
"""What a folder holds; readers of Parquet folders pass over names that begin so."""
SKIPPED = b"skipped"
"""Metadata of a part: its images that could not be read, each with its reason, as JSON."""

Work = Callable[[range, Progress], "tuple[pa.Table, dict[str, str]]"]
"""Gives the rows of the images at some places, and which could not be read."""


@dataclass(frozen=True)
class Written:
    """What is in a folder of parts.

    Attributes:
        rows: Rows in all parts.
        skipped: Images without a row, each with its reason.
        parts: Number of parts.
        before: Parts that were there before.
    """

    rows: int
    skipped: dict[str, str]
    parts: int
    before: int

    def within(self, folder: Path) -> str:
        """How many parts a folder has, and how many it had before, in words."""
        before = f", {self.before:,} of them from before" if self.before else ""
        return f"{self.parts:,} part{'s' * (self.parts != 1)} in {folder}{before}"


def write_parts(
    folder: Path,
    listing: Listing,
    work: Work,
    *,
    schema: "pa.Schema",
    facts: dict[str, Any],
    world: World,
    progress: Progress,
    elsewhere: Work | None = None,
) -> Written:
    """Write the parts that are not there yet.

    Args:
        folder: A new or an empty one, or one in which the same was begun.
        listing: All images.
        work: What makes a part.
        schema: Of the rows.
        facts: What else decides the rows, as JSON.
        world: The processes, each of which takes every so many-th part.
        progress: Told how many images of this process's are done.
        elsewhere: The same as ``work``, which can be sent to the machines of a Ray cluster, where
            they are to make the parts.

    Raises:
        ConfigError: The folder holds anything else, such as parts of other facts; or there are
            several processes, or no Ray, where Ray is asked for.
        DataError: No image could be read.
        ResourceError: A part could not be written.
    """
    if elsewhere is not None:
        if world.ranks > 1:
            raise ConfigError("--engine ray spreads the work itself; start it without torchrun.")
        join_ray()
    count = -(-len(listing) // ROWS)
    files = [folder / f"part-{number:06d}.parquet" for number in range(count)]
    places = [range(n * ROWS, min((n + 1) * ROWS, len(listing))) for n in range(count)]
    asked = {
        "rows_a_part": ROWS,
        "columns": [f"{field.name}: {field.type}" for field in schema],
        **facts,
    }
    with begun(folder, listing, asked, world):
        before = world.share(sum(file.exists() for file in files))
        mine = range(world.rank, count, world.ranks)
        missing = [number for number in mine if not files[number].exists()]
        total = sum(len(places[number]) for number in mine)
        done, error = total - sum(len(places[number]) for number in missing), None

        part = partial(_make, schema=schema, places=places, files=files)

        def here(numbers: Iterable[int]) -> Iterator[tuple[int, None]]:
            for number in numbers:
                part(number, _shifted(progress, done, total), work=work)
                yield number, None

        engine = here
        if elsewhere is not None:
            engine = partial(on_ray, partial(part, work=elsewhere), what="part", gpu=True)
        try:
            for number, _ in engine(missing):
                done += len(places[number])
                progress(done, total)
        except SimmimError as found:
            error = found
        for theirs in world.gather(error):
            if theirs is not None:
                world.fail(theirs)
        return world.write(lambda: _sum_up(files, listing, before))


def _make(
    number: int,
    progress: Progress = lambda *_: None,
    *,
    work: Work,
    schema: "pa.Schema",
    places: Sequence[range],
    files: Sequence[Path],
) -> None:
    _write(files[number], schema, *_rows(work, places[number], progress, schema))


def check_same(listing: Listing, fingerprint: str) -> None:
    """Raise ``DataError`` where another machine lists other images than the one that asked."""
    if listing.fingerprint() != fingerprint:
        raise DataError(
            f"a machine of the cluster finds other images in {listing.where} than the one that "
            "gave the command. All must reach the same ones by that name."
        )


def _shifted(progress: Progress, done: int, total: int) -> Progress:
    """Told of a part's images, it tells of all."""
    return lambda now, _: progress(done + now, total)


def _rows(
    work: Work,
    rows: range,
    progress: Progress,
    schema: "pa.Schema",
) -> "tuple[pa.Table, dict[str, str]]":
    try:
        return work(rows, progress)
    except NoneReadableError as error:
        return schema.empty_table(), error.bad


@contextmanager
def begun(folder: Path, listing: Listing, facts: dict[str, Any], world: World) -> Iterator[None]:
    """Keep a folder for what this command writes of images, a new one or one that it went on with.

    Args:
        folder: A new or an empty one, or one in which the same was begun.
        listing: All images.
        facts: What else decides what is written, as JSON.
        world: The processes.

    Raises:
        ConfigError: The folder holds anything else.
    """
    asked = {"format": FORMAT, "images": len(listing), **facts}
    with ExitStack() as held:
        world.write(lambda: _begin(folder, listing, asked, held))
        yield


def _begin(folder: Path, listing: Listing, asked: dict[str, Any], held: ExitStack) -> None:
    """Make the folder and lock it, or see that the same was begun in it."""
    card = folder / CARD
    asked = json.loads(json.dumps({**asked, "fingerprint": listing.fingerprint()}))
    with writing(folder):
        if not card.exists():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise ConfigError(
                    f"--out {folder} exists and holds something else. Choose another --out."
                )
            folder.mkdir(parents=True, exist_ok=True)
            write_text(card, seal_json(asked))
        have = json.loads(read_sealed(card, f"Delete {folder}, or choose another --out.").text)
        other = [name for name, value in asked.items() if have.get(name) != value]
        if other:
            raise ConfigError(
                f"{folder} was begun by another command, or for other images or weights (not the "
                f"same: {', '.join(other)}). Choose another --out, or delete that folder."
            )
        held.enter_context(Lock(folder, "simmim"))
        for left in folder.rglob(".tmp-*"):  # of a process that was killed
            left.unlink()


def _write(file: Path, schema: "pa.Schema", table: "pa.Table", skipped: dict[str, str]) -> None:
    import pyarrow.parquet as pq  # slow to import

    said = json.dumps({plain(path): reason for path, reason in skipped.items()})
    table = table.cast(schema).replace_schema_metadata({SKIPPED: said.encode()})
    with writing(file), replacing(file) as temporary, temporary.open("wb") as stream:
        pq.write_table(table, stream)


def _sum_up(files: list[Path], listing: Listing, before: int) -> Written:
    """What the parts hold, by their ends alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, skipped = 0, {}
    for file in files:
        try:
            found = pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{file} is damaged: {error}. Delete this part, and give the same command again."
            ) from error
        rows += found.num_rows
        skipped |= json.loads(found.metadata[SKIPPED])
    if not rows:
        raise DataError(none_readable(listing, skipped))
    return Written(rows, skipped, len(files), before)


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Say what could not be written, and that it can be gone on with."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{what} could not be written: {error}. What was finished is kept; free some space, "
            "and give the same command again."
        ) from error
