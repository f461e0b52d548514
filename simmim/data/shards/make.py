"""All shards of a folder: planned, made by several processes or machines, and put on the list."""

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from simmim.config.data import ShardConfig
from simmim.data.audit.duplicates import Hashes, Pairs, find_exact, find_near
from simmim.data.labels import Labels, labels_of
from simmim.data.loading.quarantine import reasons
from simmim.data.names import plain
from simmim.data.processes import Place, ProcessLoss, do_all
from simmim.data.shards.plan import (
    PLAN,
    Job,
    Settings,
    check_same,
    images_per_shard,
    read_json,
    shards_of,
)
from simmim.data.shards.write import Shard, finished, hash_block, write_shard, write_whole
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.data.sources.shards import INDEX
from simmim.data.sources.tables.columns import npy_bytes
from simmim.errors import ConfigError, DataError, TrainingError, running

Progress = Callable[[int, int, str], None]
"""Called with what is done, of how much, and what it is."""
Work = Callable[[Job, int, Place], Any]
Engine = Callable[[Work, Iterable[int]], Iterator[tuple[int, Any]]]
"""Does work with each number, and yields number and result as they get done."""


@dataclass(frozen=True)
class Made:
    """What came of it.

    Attributes:
        index: What is in index.json; None where other parts are still to be made.
        shards: Shards that are there, of this part.
        missing: Shards of other parts that are not there yet.
        already: Nothing was left to do.
    """

    index: dict[str, Any] | None
    shards: int
    missing: int = 0
    already: bool = False


def plan_job(config: ShardConfig, found: Callable[[int], None] | None = None) -> Job:
    """List the images and decide how they are cut into shards.

    Raises:
        ConfigError: The shards would lie among the images.
        DataError: No images, or labels that do not fit.
    """
    out = config.out.absolute()
    for where in config.data:
        folder = Path(where).absolute()
        if folder.is_dir() and out.is_relative_to(folder):
            raise ConfigError(
                f"--out {config.out} lies in {where}, whose images it would be made of; choose a "
                "folder beside it."
            )
    listing = find_images(*config.data, found=found)
    labels = labels_of(listing, config.labels)
    notes = () if labels is None else tuple(labels.notes)
    keeps = config.format == "keep"
    size = None if keeps else config.size
    settings = Settings(
        size=size,
        format=config.format,
        quality=config.quality,
        per_shard=config.per_shard or images_per_shard(listing, size, config.format),
        dedupe=config.dedupe,
    )
    numbers, classes = label_numbers(listing, labels)
    return Job(listing, settings, out, tuple(classes), numbers, notes)


def label_numbers(listing: Listing, labels: Labels | None) -> tuple[np.ndarray | None, list[str]]:
    """Number the class of each image, -1 where it has none: int32 (n,); and name the classes."""
    if labels is None:
        return None, []
    numbers = np.full(len(listing), -1, np.int32)
    for row, label in labels.pairs():
        numbers[row] = label
    return numbers, labels.classes


def make_shards(
    job: Job, part: tuple[int, int], engine: Engine, progress: Progress | None = None
) -> Made:
    """Make the shards of a part, and the index once all parts are there.

    Whatever was finished before is not done again. A process that is killed at any time leaves
    nothing that is taken for a shard.

    Args:
        job: Images and settings.
        part: Which part, from 0 on, and of how many.
        engine: What does the work.
        progress: Told how far it is.

    Raises:
        ConfigError: The folder holds something else, or was begun with other settings.
        DataError: It was begun with other images, or none of them can be read.
        TrainingError: The storage failed, or an image ended several processes.
    """
    asked = job.describe()
    index = read_json(job.out / INDEX)
    if index is not None:
        check_same(index, asked, job.out)
        _remove(job.work)
        return Made(index, len(index["shards"]), already=True)
    _begin(job, asked)
    try:
        with running():
            return _make(job, part, engine, progress or (lambda *_: None), asked)
    except OSError as error:
        index = read_json(job.out / INDEX)
        if index is not None:  # another process was faster, and has cleared up
            return Made(index, len(index["shards"]), already=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        failed = TrainingError(
            f"{f'the disk of {job.out} is full' if full else 'the storage failed'}: {error}. "
            "Shards that were finished are kept; start the same command again to go on."
        )
        failed.started = True
        raise failed from error


def _make(job: Job, part: tuple[int, int], engine: Engine, say: Progress, asked: Any) -> Made:
    if job.settings.dedupe != "none" and not job.kept_file.exists():
        _hash_all(job, part, engine, say)
        _leave_out(job)
    count = shards_of(len(job.kept()), job.settings.per_shard)
    mine = range(part[0], count, part[1])
    missing = [number for number in mine if finished(job, number) is None]
    done = len(mine) - len(missing)
    say(done, len(mine), f"{len(mine)} shards")
    for _, shard in _checked(job, engine(write_shard, missing)):
        done += 1
        say(done, len(mine), f"{len(mine)} shards, {shard.file} is written and checked")
    shards = [finished(job, number) for number in range(count)]
    left = sum(shard is None for shard in shards)
    if left:
        return Made(None, len(mine), left)
    return Made(_finish(job, [shard for shard in shards if shard], asked), len(mine))


def _begin(job: Job, asked: dict[str, Any]) -> None:
    """Make the folder, or see that it was begun with the same images and settings.

    Raises:
        ConfigError, DataError: See ``make_shards``.
    """
    file = job.work / PLAN
    have = read_json(file)
    if have is None:
        others = [path.name for path in job.out.iterdir()] if job.out.is_dir() else []
        if job.out.exists() and not job.out.is_dir():
            raise ConfigError(f"--out {job.out} is a file; name a new folder.")
        if set(others) - {job.work.name}:
            raise ConfigError(
                f"{job.out} holds other files, such as {min(others)}. Choose another --out."
            )
        try:
            job.work.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(asked).encode())
        except OSError as error:
            raise ConfigError(f"--out {job.out} cannot be written to: {error}.") from error
        have = read_json(file) or {}  # another machine may have begun at the same moment
    check_same(have, asked, job.out)


def _hash_all(job: Job, part: tuple[int, int], engine: Engine, say: Progress) -> None:
    """Hash all images: this part's, then those that no other machine has done meanwhile."""
    mine = range(part[0], job.blocks, part[1])
    others = [number for number in range(job.blocks) if number % part[1] != part[0]]
    for numbers in (mine, others[part[0] * len(others) // part[1] :] + others):
        hashed = [job.hashes_file(number).exists() for number in range(job.blocks)]
        missing = [number for number in dict.fromkeys(numbers) if not hashed[number]]
        done = sum(hashed)
        for _ in _checked(job, engine(hash_block, missing)):
            done = min(done + 1, job.blocks)
            say(done, job.blocks, f"hashes of {len(job.listing):,} images")


def _leave_out(job: Job) -> None:
    """Decide which duplicates are left out, and write down what each is like."""
    blocks = [np.load(job.hashes_file(number)) for number in range(job.blocks)]
    found = np.concatenate([block["hashes"] for block in blocks], 1)
    blank, valid = (
        np.concatenate([block[name] for block in blocks]) for name in ("blank", "valid")
    )
    near = job.settings.dedupe == "near"
    hashes = Hashes(*found, blank=blank)
    pairs = find_near(hashes, valid) if near else find_exact(found[0], valid)
    lines = "".join(f"{json.dumps(row)}\n" for row in pairs_in_words(pairs, job.listing))
    write_whole(job.work / "duplicates.jsonl", lines.encode())
    stays = np.ones(len(job.listing), bool)
    stays[pairs.later] = False
    write_whole(job.kept_file, npy_bytes(np.flatnonzero(stays)))


def pairs_in_words(pairs: Pairs, names: Listing) -> Iterator[dict[str, str]]:
    """Yield which image is like which earlier one, and how."""
    for later, kept, exact in zip(*(values.tolist() for values in pairs), strict=True):
        kind = "exact" if exact else "near"
        yield {"path": plain(names[later]), "like": plain(names[kept]), "kind": kind}


def _finish(job: Job, shards: list[Shard], asked: dict[str, Any]) -> dict[str, Any]:
    """Write the reports and, last, the index; then clear up."""
    images = sum(shard.images for shard in shards)
    bad = [row for shard in shards for row in shard.unreadable]
    if not images:
        _remove(job.work)
        raise DataError(f"none of the {len(bad):,} images can be read: {reasons(dict(bad))}.")
    if bad:
        lines = (json.dumps({"path": name, "reason": reason}) for name, reason in bad)
        write_whole(job.out / "quarantine.jsonl", "".join(f"{line}\n" for line in lines).encode())
    left_out = len(job.listing) - len(job.kept())
    report = job.work / "duplicates.jsonl"
    if left_out and report.exists():
        report.replace(job.out / report.name)
    index = {
        **asked,
        "images": images,
        "quarantine": len(bad),
        "duplicates": left_out,
        "left_out": sum(shard.left_out for shard in shards),
        "classes": list(job.classes),
        "shards": [
            {"file": s.file, "images": s.images, "bytes": s.bytes, "sha256": s.sha256}
            for s in shards
            if s.images
        ],
    }
    write_whole(job.out / INDEX, json.dumps(index, indent=1).encode() + b"\n")
    _remove(job.work)
    return index


def _checked(job: Job, results: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Pass on what is done; a task that was lost for good ends the work."""
    for number, result in results:
        if isinstance(result, ProcessLoss):
            where = f", at {job.listing[result.at]}" if result.at >= 0 else ""
            raise TrainingError(
                f"a process {result.how} several times at the same shard{where}. Look at the "
                "memory (`dmesg | grep -i kill`); fewer --workers need less. Shards that were "
                "finished are kept."
            )
        yield number, result


def local(job: Job, workers: int) -> Engine:
    """The engine that needs nothing: processes of this machine."""

    def run(work: Work, numbers: Iterable[int]) -> Iterator[tuple[int, Any]]:
        return do_all(partial(_call, work, job), numbers, workers)

    return run


def _call(work: Work, job: Job, number: int, place: Place) -> Any:
    return work(job, number, place)


def _remove(folder: Path) -> None:
    """Remove a folder into which a process that is about to end may still write."""
    for wait in (0.0, 0.2, 1.0, 3.0):
        time.sleep(wait)
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
