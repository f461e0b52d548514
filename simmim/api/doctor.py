"""`simmim doctor`: looks at the machine and what is installed, and says what is wrong."""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, distributions, requires
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from rich.console import Console

from simmim.config.commands import DoctorConfig
from simmim.data.sources.places import check_exists, is_elsewhere
from simmim.errors import ConfigError, SimmimError, VerificationError
from simmim.machine import available_memory, cores, cpu_quota, total_memory
from simmim.report import terminal
from simmim.runs.files import sync
from simmim.runs.folder import cpu_name
from simmim.runs.overview import runs_below
from simmim.verify.installation import Disk, Facts, Finding, Reading, Torch, findings
from simmim.verify.probes import TRIALS

STYLES = {"ok": "green", "warn": "yellow", "bad": "bold red"}

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY")
_PATIENCE = 120
"""Seconds in which all trials must have answered."""
_WRITTEN = 64 << 20
"""Bytes that are written to time a disk."""
_READ_SECONDS = 3.0
_READ_IMAGES = 2048


def run_doctor(config: DoctorConfig) -> dict[str, Any]:
    """Look, judge and print; what is printed as JSON.

    Raises:
        VerificationError: Something is bad.
    """
    facts = gather(config)
    found = findings(facts)
    verdicts = {finding.verdict for finding in found}
    worst = next(each for each in ("bad", "warn", "ok") if each in verdicts)
    said = {
        "verdict": worst,
        "findings": [asdict(finding) for finding in found],
        "facts": {name: each for name, each in asdict(facts).items() if name != "requires"},
    }
    if config.json:
        Console().print_json(data=said, indent=1)
    else:
        _print(found)
    bad = [finding for finding in found if finding.verdict == "bad"]
    if bad:
        raise VerificationError(
            f"{len(bad)} of {len(found)} findings are bad: "
            f"{', '.join(dict.fromkeys(finding.name for finding in bad))}."
        )
    return said


def gather(config: DoctorConfig) -> Facts:
    """What there is to know of this machine."""
    place, source = _place_and_source(config.data)
    tried = trials()
    torch = tried["torch"]
    named = [(d.metadata["Name"], d.version) for d in distributions()]
    installed = {str(canonicalize_name(name)): version for name, version in named if name}
    return Facts(
        cpu=cpu_name(),
        cores=cores(),
        quota=cpu_quota(),
        load=os.getloadavg()[0],
        memory=total_memory(),
        memory_free=available_memory(),
        threads={name: os.environ[name] for name in _THREADS if name in os.environ},
        installed=installed,
        requires={name: _requires(name) for name in ("simmim", "torchvision", "timm")},
        torch=torch if isinstance(torch, str) else Torch(**torch),
        torchvision=_error(tried["torchvision"]),
        jpeg=_error(tried["jpeg"]),
        nvidia=_nvidia_devices(),
        driver=_driver(),
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"),
        shm=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        disk=time_disk(place),
        reading=time_reading(source) if source is not None else None,
    )


def _place_and_source(data: str | None) -> tuple[Path, str | None]:
    """Where runs are to be written, and the images to read."""
    if data is None:
        return Path("runs"), None
    if not is_elsewhere(data):
        check_exists(data)
    folder = Path(data)
    if folder.is_dir() and (_is_empty(folder) or runs_below(folder).runs):
        return folder, None
    return Path("runs"), data


def _is_empty(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}.") from error


def trials(names: Iterable[str] = TRIALS) -> dict[str, Any]:
    """What each trial answered; text where something is wrong."""
    answers: dict[str, Any] = {}
    while left := [name for name in names if name not in answers]:
        command = [sys.executable, "-m", "simmim.verify.probes", *left]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_PATIENCE, check=False
            )
            said = done.stdout
            last = done.stderr.strip().rpartition("\n")[2]
            death = f"the process ended with status {done.returncode}. {last}".strip()
        except subprocess.TimeoutExpired as hung:
            said = (hung.stdout or b"").decode("utf-8", "replace")
            death = f"no answer in {_PATIENCE} s"
        for line in said.splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                answer = json.loads(line)
                answers[answer["name"]] = answer.get("error") or answer["facts"]
        answers.setdefault(next((name for name in left if name not in answers), left[0]), death)
    return answers


def _error(answer: object) -> str:
    return answer if isinstance(answer, str) else ""


def _requires(package: str) -> list[str]:
    try:
        return requires(package) or []
    except PackageNotFoundError:
        return []


def _nvidia_devices() -> int:
    """GPUs of NVIDIA on the bus, whether or not anything can use them."""
    found = 0
    for device in Path("/sys/bus/pci/devices").glob("*"):
        with contextlib.suppress(OSError):
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
            found += vendor == "0x10de" and kind.startswith("0x03")
    return found


def _driver() -> str | None:
    """The version of NVIDIA's driver, where it is loaded."""
    with contextlib.suppress(OSError):
        return Path("/sys/module/nvidia/version").read_text().strip()
    return None


def time_disk(place: Path) -> Disk:
    """Write a large file and some small ones where runs are written, and remove them."""
    there = next(each for each in (place, *place.absolute().parents) if each.is_dir())
    name = str(place)
    try:
        free = shutil.disk_usage(there).free
        if free < 4 * _WRITTEN:
            return Disk(place=name, free=free)
        with tempfile.TemporaryDirectory(prefix=".simmim-doctor-", dir=there) as folder:
            block, file = os.urandom(1 << 20), Path(folder) / "large"
            began = time.perf_counter()
            with file.open("wb") as stream:
                for _ in range(_WRITTEN >> 20):
                    stream.write(block)
            sync(file)
            write = _WRITTEN / (time.perf_counter() - began)
            times = [_seconds_of_small(Path(folder) / f"small-{i}") for i in range(5)]
        return Disk(place=name, free=free, write=write, fsync=statistics.median(times))
    except OSError as error:
        return Disk(place=name, error=error.strerror or str(error))


def _seconds_of_small(file: Path) -> float:
    began = time.perf_counter()
    file.write_bytes(bytes(4096))
    sync(file)
    return time.perf_counter() - began


def time_reading(source: str) -> Reading:
    """Read images for some seconds, chosen all over the source."""
    try:
        from simmim.data.formats.image_file import UnreadableError
        from simmim.data.sources.find import find_images

        images = find_images(source)
    except (SimmimError, ImportError) as error:
        return Reading(source=source, error=str(error))
    sample = images.sample(_READ_IMAGES)
    size = tried = failed = 0
    began = now = time.perf_counter()
    while tried < len(sample) and now - began < _READ_SECONDS:
        try:
            size += len(sample.read(tried))
        except (OSError, UnreadableError):
            failed += 1
        tried += 1
        now = time.perf_counter()
    return Reading(
        source=source,
        images=len(images),
        images_per_s=(tried - failed) / (now - began),
        bytes_per_s=size / (now - began),
        failed=failed,
        tried=tried,
    )


def _print(found: Sequence[Finding]) -> None:
    console = Console(highlight=False)
    width = max(len(finding.name) for finding in found)
    for each in found:
        line = f"{each.verdict:4}  {each.name:{width}}  {each.said}"
        terminal.line(console, line, STYLES[each.verdict])
        if each.way:
            terminal.line(console, f"{'':{width + 8}}{each.way}", "dim")
