"""The certificate that ``simmim verify`` leaves on a machine, and its section of a report."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from simmim.report.sections import Facts
from simmim.report.words import count, duration
from simmim.runs.folder import environment

FORMAT = 1
TITLE = "Verification"
NONE = "Not verified on this machine: run `simmim verify`."
_VERSIONS = ("simmim", "torch", "timm", "numpy", "safetensors", "python")
_MACHINE = ("cpu", "gpu")


_SHOWN = {"passed": "passed", "failed": "FAILED", "skipped": "skipped"}
_COLUMNS = ("name", "compares", "status", "measured")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What certificate.json says, where it is of this code on this machine."""

    date: str
    seconds: float
    """What the checks took."""
    fingerprint: str
    versions: dict[str, Any]
    machine: dict[str, Any]
    checks: list[dict[str, str]]
    """``name``, ``compares``, ``status`` and ``measured`` of each."""


def place() -> Path:
    """Where the newest certificate of this user lies."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The standard says that a path that is not absolute is to be ignored.
    root = Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache"
    return root / "simmim" / "certificate.json"


def surroundings() -> dict[str, Any]:
    """The versions and hardware that a certificate is about."""
    found = environment()
    return {
        "versions": {name: found[name] for name in _VERSIONS},
        "machine": {name: found[name] for name in _MACHINE},
    }


def fingerprint(around: Mapping[str, Any]) -> str:
    """Twelve digits that change with versions, hardware, and any source file of simmim."""
    digest = hashlib.sha256(json.dumps(around, sort_keys=True).encode())
    root = Path(str(files("simmim")))
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def verdict(results: Sequence[Mapping[str, Any]]) -> str:
    """How many checks came out how, in words."""
    of = Counter(str(result["status"]) for result in results)
    said = f"{of['passed']} of {count(len(results), 'check')} passed"
    if of["skipped"]:
        said += f", {of['skipped']} skipped"
    return f"{of['failed']} FAILED, {said}" if of["failed"] else said


def read(path: Path | None = None) -> Certificate | None:
    """The certificate of this user, where it is of this code on this machine."""
    try:
        document = json.loads((path or place()).read_text(encoding="utf-8"))
        if document["format"] != FORMAT or document["fingerprint"] != fingerprint(surroundings()):
            return None
        if any(row["status"] not in _SHOWN for row in document["checks"]):
            return None
        return Certificate(
            date=str(document["date"]),
            seconds=float(document["seconds"]),
            fingerprint=str(document["fingerprint"]),
            versions=dict(document["versions"]),
            machine=dict(document["machine"]),
            checks=[{key: str(row[key]) for key in _COLUMNS} for row in document["checks"]],
        )
    # Damaged, half written, or somebody else's; RuntimeError: there is no home folder.
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return None


def section(certificate: Certificate | None) -> Facts:
    """The report's part on it: one line where there is none."""
    if certificate is None:
        return Facts(title=TITLE, lead=NONE, facts=())
    versions = [f"{name} {certificate.versions.get(name)}" for name in ("simmim", "torch", "timm")]
    machine = [str(value) for value in certificate.machine.values() if value]
    took = f"took {duration(certificate.seconds)}, fingerprint {certificate.fingerprint}"
    facts = [
        ("verdict", verdict(certificate.checks), ""),
        ("date", certificate.date, took),
        ("versions", ", ".join(versions), ""),
        ("machine", ", ".join(machine), ""),
        *(
            (row["name"], _SHOWN[row["status"]], row["measured"])
            for status in ("failed", "skipped")
            for row in certificate.checks
            if row["status"] == status
        ),
    ]
    return Facts(
        title=TITLE,
        lead="What simmim verify found on this machine with this code: losses, targets, masks "
        "and steps against formulas written out a second time, masked pixels that must reach "
        "nothing, runs that must not depend on how they are cut, and what other libraries read of "
        "what simmim writes.",
        facts=facts,
        more=[
            (
                row["name"],
                f"{_SHOWN[row['status']]}: {row['measured']}. Compared: {row['compares']}.",
            )
            for row in certificate.checks
        ],
        more_title="All checks",
    )
