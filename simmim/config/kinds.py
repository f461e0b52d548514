"""The parts of a run that come in kinds, and how a part gets another kind."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from simmim.config.decoder import DECODERS
from simmim.config.extra import EXTRAS
from simmim.config.mask import MASKS
from simmim.config.nearest import did_you_mean
from simmim.config.run import PretrainConfig
from simmim.config.target import TARGETS
from simmim.errors import ConfigError

PARTS: dict[str, Mapping[str, type]] = {"mask": MASKS, "decoder": DECODERS, "target": TARGETS}
"""The parts that a run has one of, each with the config class of every kind; for extras, of which
it has any number, there is `EXTRAS`."""


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


def with_part(config: PretrainConfig, part: str, kind: str) -> PretrainConfig:
    """A config whose part is of another kind, with the values of the fields that both have."""
    before, cls = getattr(config, part), PARTS[part][pick(part, kind, PARTS[part])]
    if isinstance(before, cls):
        return config
    known = {field.name for field in fields(cls)} - {"kind"}
    kept = {f.name: getattr(before, f.name) for f in fields(before) if f.name in known}
    return replace(config, **{part: cls(**kept)})


def with_extras(config: PretrainConfig, kinds: Iterable[str]) -> PretrainConfig:
    """A config with these extras, those that it has already as they are."""
    extras: dict[str, Any] = {kind: EXTRAS[pick("extra", kind, EXTRAS)]() for kind in kinds}
    extras |= {extra.kind: extra for extra in config.extras if extra.kind in extras}
    return replace(config, extras=tuple(extras.values()))
