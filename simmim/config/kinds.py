"""The parts of a run that come in kinds, and how a part gets another kind."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from simmim.config.decoder import DECODERS
from simmim.config.extra import EXTRAS
from simmim.config.mask import MASKS
from simmim.config.nearest import did_you_mean
from simmim.config.run import PretrainConfig, TrainingConfig
from simmim.config.target import TARGETS, CombinedTarget
from simmim.config.task import TASKS
from simmim.errors import ConfigError

C = TypeVar("C", bound=TrainingConfig)

PARTS: dict[str, Mapping[str, type]] = {
    "mask": MASKS,
    "decoder": DECODERS,
    "target": TARGETS,
    "task": TASKS,
}
"""The parts that a run has one of, each with the config class of every kind; for extras, of which
it has any number, there is `EXTRAS`."""
COMBINED = {"target": CombinedTarget}
"""The parts whose kinds can be combined, with the config class that holds several."""
KINDS = {
    part: {**kinds, **({"combined": COMBINED[part]} if part in COMBINED else {})}
    for part, kinds in PARTS.items()
}
"""`PARTS` with what config.yaml calls several kinds together."""
MEMBERS = frozenset({"extras", "parts"})
"""Fields that hold several configs, each known by its kind."""


def parts_of(config: Any) -> dict[str, Mapping[str, type]]:
    """Those of `PARTS` that a config, or a config class, has."""
    return {each.name: PARTS[each.name] for each in fields(config) if each.name in PARTS}


def typed(part: Any) -> str:
    """The kind of a part as a user names it: ``pixels``, or ``pixels,hog``."""
    return ",".join(_held(part))


def _held(part: Any) -> dict[str, Any]:
    return {each.kind: each for each in getattr(part, "parts", [part])}


def pick(flag: str, name: str, known: Mapping[str, Any], more: str = "") -> str:
    """``name``, once it is known.

    Raises:
        ConfigError: It is not; names the flag, the nearest, and all.
    """
    if name not in known:
        raise ConfigError(
            f"--{flag} {name}: there is no such {flag}.{did_you_mean(name, known)} "
            f"Known: {', '.join(known)}. {more}".rstrip()
        )
    return name


def with_part(config: C, part: str, kind: str) -> C:
    """A config whose part is of another kind, or of several.

    What it was of that kind before stays; a new kind gets the values of the fields that the one
    before has too, but beside others its own.
    """
    before, kinds = getattr(config, part), PARTS[part]
    held = _held(before)
    names = [name.strip() for name in kind.split(",")] if part in COMBINED else [kind]
    classes = {name: kinds[pick(part, name, kinds)] for name in names}
    if len(names) > 1:
        parts = tuple(held.get(name) or classes[name]() for name in names)
        after = COMBINED[part](parts=parts)
        if getattr(before, "weights", None):
            weights = tuple((after.weighed | before.weighed)[name] for name in names)
            after = replace(after, weights=weights)
    else:
        known = {field.name for field in fields(classes[kind])} - {"kind"}
        kept = {f.name: getattr(before, f.name) for f in fields(before) if f.name in known}
        after = held.get(kind) or classes[kind](**kept)
    return replace(config, **{part: after})


def with_extras(config: PretrainConfig, kinds: Iterable[str]) -> PretrainConfig:
    """A config with these extras, those that it has already as they are."""
    extras: dict[str, Any] = {kind: EXTRAS[pick("extra", kind, EXTRAS)]() for kind in kinds}
    extras |= {extra.kind: extra for extra in config.extras if extra.kind in extras}
    return replace(config, extras=tuple(extras.values()))
