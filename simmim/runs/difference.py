"""Where two runs differ: in their settings, their machines, and their curves."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from simmim.runs.overview import FIGURES
from simmim.runs.record import Record, column

CURVES = ("loss", *(name for names in FIGURES.values() for name in names))
"""Columns of metrics.jsonl that are compared."""

_FREE = ("out", "max_bad", "system.")
"""Settings, or beginnings of their names, that do not affect the result."""
_TOLD = ("asked", "spent", "why.")
"""What is resolved beside values: hashes of the settings, and reasons."""


@dataclass(frozen=True)
class Setting:
    """A setting that is not the same; None: not set, or not there."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Curve:
    """A column at the steps that have it in both runs."""

    name: str
    steps: int
    """How many they are."""
    step: int
    """The last of them."""
    a: float
    b: float
    largest: float
    """The largest difference, without its sign."""
    at: int
    """The first step with that."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """All in which two runs differ."""

    settings: list[Setting]
    """What was asked for and affects the result."""
    resolved: list[Setting]
    """What rules chose."""
    free: list[Setting]
    """What was asked for and does not affect the result."""
    environment: list[Setting]
    curves: list[Curve]
    apart: dict[str, str]
    """Columns that cannot be compared, and why."""


def difference(a: Record, b: Record) -> Difference:
    """Compare two runs."""
    asked = [
        each
        for each in _unlike(a.config, b.config)
        if each.name != "format" and not each.name.startswith("resolved")
    ]
    curves, apart = _curves(a, b)
    return Difference(
        settings=[each for each in asked if not each.name.startswith(_FREE)],
        resolved=[
            each for each in _unlike(a.resolved, b.resolved) if not each.name.startswith(_TOLD)
        ],
        free=[each for each in asked if each.name.startswith(_FREE)],
        environment=_unlike(a.environment, b.environment),
        curves=curves,
        apart=apart,
    )


def _curves(a: Record, b: Record) -> tuple[list[Curve], dict[str, str]]:
    curves, apart = [], {}
    for name in CURVES:
        (steps_a, values_a), (steps_b, values_b) = column(a.rows, name), column(b.rows, name)
        if not len(steps_a) or not len(steps_b):
            if len(steps_a) or len(steps_b):
                apart[name] = f"in {'A' if len(steps_a) else 'B'} alone"
            continue
        steps, in_a, in_b = np.intersect1d(steps_a, steps_b, return_indices=True)
        if not len(steps):
            apart[name] = "at no step in common"
            continue
        off = np.abs(values_a[in_a] - values_b[in_b])
        worst = int(off.argmax())
        last = float(values_a[in_a][-1]), float(values_b[in_b][-1])
        curves.append(
            Curve(name, len(steps), int(steps[-1]), *last, float(off[worst]), int(steps[worst]))
        )
    return curves, apart


def _unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Setting]:
    flat_a, flat_b = dict(_flat(a)), dict(_flat(b))
    names = dict.fromkeys([*flat_a, *flat_b])
    pairs = [Setting(name, flat_a.get(name), flat_b.get(name)) for name in names]
    return [each for each in pairs if each.a != each.b]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by dotted names; a list of plain values is one."""
    if isinstance(value, Mapping):
        inside = value.items()
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        inside = enumerate(value)
    else:
        yield name, value
        return
    for key, each in inside:
        yield from _flat(each, f"{name}.{key}" if name else str(key))
