"""What a check is, and how a list of them is run."""

import io
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

Status = Literal["passed", "failed", "skipped"]


class WrongError(Exception):
    """What a check found wrong, where a number alone would not say it."""


class SkippedError(Exception):
    """Why a check cannot be made here."""


@dataclass(frozen=True)
class Figure:
    """A figure and the largest that passes."""

    value: float
    limit: float
    what: str
    """What ``value`` is, in words."""

    @property
    def holds(self) -> bool:
        """Whether it is within the limit; what is not a number is not."""
        return self.value <= self.limit


@dataclass(frozen=True)
class Ground:
    """What every check is given."""

    seed: int
    folder: Path
    """An empty folder of its own, deleted afterwards."""

    def numbers(self, purpose: str) -> np.random.Generator:
        """Random numbers of this seed for one purpose."""
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode())])


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: Unique; what is checked.
        compares: What with what.
        run: Measures, or raises: ``SkippedError`` where it cannot be made here, anything else
            where it fails.
    """

    name: str
    compares: str
    run: Callable[[Ground], Figure]


@dataclass(frozen=True)
class Result:
    """What came of a check; certificate.json holds these fields."""

    group: str
    name: str
    compares: str
    status: Status
    measured: str
    """What was measured, and the limit, in words; or why it failed or was skipped."""
    value: float | None
    limit: float | None
    seconds: float


class Watcher(Protocol):
    """What is told of the checks while they run."""

    def starts(self, group: str, check: Check) -> None:
        """A check begins."""
        ...

    def ends(self, result: Result) -> None:
        """It is through."""
        ...


def run(
    checks: Sequence[tuple[str, Sequence[Check]]], *, seed: int, watcher: Watcher
) -> list[Result]:
    """Make the checks of each group, one after the other, on one thread.

    A check that fails or raises does not keep the others from being made. Nothing of torch's
    random numbers or threads is left changed.
    """
    threads = torch.get_num_threads()
    results = []
    try:
        torch.set_num_threads(1)  # small models gain nothing from more, and bits depend on it
        for group, members in checks:
            for check in members:
                watcher.starts(group, check)
                results.append(_one(group, check, seed))
                watcher.ends(results[-1])
    finally:
        torch.set_num_threads(threads)
    return results


def to_json(result: Result) -> dict[str, object]:
    """A result as the certificate holds it; a number that is not finite becomes null."""
    row = asdict(result)
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in row.items()
    }


def _one(group: str, check: Check, seed: int) -> Result:
    began = time.monotonic()
    found: Figure | None = None
    status: Status = "failed"
    try:
        with (
            redirect_stdout(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
            tempfile.TemporaryDirectory(prefix="simmim-verify-") as folder,
            torch.random.fork_rng(devices=[]),
        ):
            torch.manual_seed(seed)
            found = check.run(Ground(seed, Path(folder)))
        status = "passed" if found.holds else "failed"
        words = f"{found.what} {found.value:.3g}, limit {found.limit:.3g}"
    except SkippedError as reason:
        status, words = "skipped", str(reason)
    except WrongError as reason:
        words = str(reason)
    except Exception as error:  # a check must never stop the others
        words = f"{type(error).__name__}: {error}"
    return Result(
        group=group,
        name=check.name,
        compares=check.compares,
        status=status,
        measured=words,
        value=found.value if found else None,
        limit=found.limit if found else None,
        seconds=round(time.monotonic() - began, 3),
    )
