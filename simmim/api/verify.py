"""``simmim verify``: make the checks, show them, and keep the certificate."""

import datetime
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status

from simmim.config.commands import VerifyConfig
from simmim.errors import ResourceError, VerificationError
from simmim.report import certificate, terminal
from simmim.runs.folder import write_json
from simmim.verify.check import Check, Result, run, to_json
from simmim.verify.table import CHECKS

_STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}
_SHOWN = {"passed": "passed", "failed": "FAILED", "skipped": "skipped"}


class Lines:
    """A line for each check as it ends, under the headings of the groups."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.group = ""
        self.running: Status | None = None

    def starts(self, group: str, check: Check) -> None:
        """Print the heading of a new group; on a terminal, say what runs."""
        if group != self.group:
            self.group = group
            terminal.line(self.console, f"\n{group}", "cyan")
        self.running = self.console.status(check.name)
        self.running.start()

    def ends(self, result: Result) -> None:
        """Print what came of a check, and below it what was compared."""
        if self.running is not None:
            self.running.stop()
        shown = f"{_SHOWN[result.status]:8} {result.name:35} {result.seconds:6.1f} s  "
        terminal.line(self.console, f"  {shown}{result.measured}", _STYLES[result.status])
        terminal.line(self.console, f"           {result.compares}", "dim")


def run_verify(config: VerifyConfig) -> Path:
    """Make all checks; returns where the certificate lies.

    Raises:
        VerificationError: A check failed; the certificate says so.
        ResourceError: The certificate cannot be written.
    """
    console = Console(highlight=False)
    began = time.monotonic()
    around = certificate.surroundings()
    fingerprint = certificate.fingerprint(around)  # of the code that is about to be checked
    terminal.line(console, "simmim verify: the code on this machine against the formulas", "bold")
    results = [to_json(r) for r in run(CHECKS, seed=config.seed, watcher=Lines(console))]
    document: dict[str, Any] = {
        "format": certificate.FORMAT,
        "date": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        **around,
        "seed": config.seed,
        "seconds": round(time.monotonic() - began, 1),
        "verdict": certificate.verdict(results),
        "fingerprint": fingerprint,
        "checks": results,
    }
    kept = _keep(document)
    if config.out is not None:
        _write(config.out, document)
    versions, machine = around["versions"], around["machine"]
    terminal.done(
        [
            f"certificate  {document['verdict']}",
            f"date         {document['date']}, took {document['seconds']:.0f} s",
            "versions     " + ", ".join(f"{name} {value}" for name, value in versions.items()),
            f"machine      {machine['cpu']}, {machine['gpu'] or 'no GPU'}",
            f"fingerprint  {fingerprint} (versions, hardware, and source files)",
            *kept,
            *([f"copy         {config.out}"] if config.out else []),
        ],
        console,
    )
    failed = [str(result["name"]) for result in results if result["status"] == "failed"]
    if failed:
        raise VerificationError(
            f"{len(failed)} of {len(results)} checks failed: {'; '.join(failed)}. Do not trust "
            "this installation: install simmim, torch and timm again, or report the lines above."
        )
    return config.out or certificate.place()


def _keep(document: dict[str, Any]) -> list[str]:
    """Put the certificate where reports look for it; where that is, or why it is not there."""
    try:
        path = certificate.place()
        _write(path, document)
    except (ResourceError, RuntimeError) as error:  # no home folder is a RuntimeError
        return [f"not kept     {error} Reports will not show it; set XDG_CACHE_HOME."]
    return [f"kept in      {path}"]


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, document)
    except OSError as error:
        raise ResourceError(
            f"the certificate cannot be written to {path}: {error.strerror}."
        ) from error
