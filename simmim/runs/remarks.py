"""Small files of a run folder, read so that what is missing or damaged becomes a remark; light."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim.config import saved
from simmim.config.seal import seal_holds
from simmim.errors import ConfigError
from simmim.runs.files import read_lines


def mapping(value: object) -> dict[str, Any]:
    """``value`` where it is a mapping, else an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def finite(value: object) -> bool:
    """Whether ``value`` is a number that can be drawn."""
    return isinstance(value, int | float) and -1e300 < value < 1e300


def config_of(file: Path, problems: list[str]) -> dict[str, Any]:
    """What a config.yaml says."""
    if not file.exists():
        problems.append("config.yaml is missing, so the settings are not known.")
        return {}
    try:
        config = saved.read(file)
        _check_seal(file, problems)
    except (ConfigError, OSError) as error:
        problems.append(f"config.yaml cannot be read, so the settings are not known: {error}")
        return {}
    return config


def json_of(file: Path, holds: str, problems: list[str]) -> dict[str, Any]:
    """What a JSON file says, without its hash."""
    if not file.exists():
        problems.append(f"{file.name} ({holds}) is missing.")
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8", errors="replace"))
        _check_seal(file, problems)
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        problems.append(f"{file.name} ({holds}) cannot be read: it is damaged or half written.")
    return {key: each for key, each in mapping(value).items() if key != "sha256"}


def lines_of(file: Path, problems: list[str], *, needed: bool) -> list[dict[str, Any]]:
    """The mappings in a file of JSON lines; others are counted in a remark."""
    if not file.exists():
        if needed:
            problems.append(f"{file.name} is missing: no step has been logged.")
        return []
    try:
        found, torn = read_lines(file)
    except OSError as error:
        problems.append(f"{file.name} cannot be read: {error.strerror}.")
        return []
    if torn:
        of = f"{torn} of {len(found) + torn} lines"
        problems.append(
            f"{file.name}: {of} left out, damaged or half written, as happens when a run is "
            "stopped in the middle of a line or is still writing."
        )
    return found


def _check_seal(file: Path, problems: list[str]) -> None:
    if not seal_holds(file.read_bytes(), file.suffix):
        problems.append(
            f"{file.name} is damaged or was changed by hand since the run wrote it, so what is "
            "said of it here may be wrong."
        )
