"""Flags of the parts that come in kinds: of the kinds that are chosen, and of all others."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, Literal

from simmim.cli.arguments import Words
from simmim.cli.flags import Flag, default_of, flags_of
from simmim.config.extra import EXTRAS
from simmim.config.kinds import COMBINED, PARTS, parts_of, typed
from simmim.errors import ConfigError


def one_of(names: Iterable[str]) -> Any:
    """The type of a flag that takes one of these words."""
    return Literal[tuple(names)]


def names(flags: Sequence[Flag]) -> list[str]:
    """The names of flags."""
    return [flag.name for flag in flags]


def all_flags(configs: Iterable[Any]) -> list[Flag]:
    """The flags of a command, whatever kinds of parts are chosen.

    Args:
        configs: Its configs, or config classes.
    """
    every = [flag for each in configs for flag in [*flags_of(each), *_flags_of_parts(each)]]
    return list({flag.name: flag for flag in every}.values())


def check_parts(words: Words, config: Any, run: str) -> None:
    """Raise ``ConfigError`` where a flag is of a kind of part that was not chosen.

    Args:
        words: What was given.
        config: With the parts that were chosen; or a class of which they are the defaults.
        run: What the run is of, for the message.
    """
    known = names(flags_of(config))
    chosen = {field.name: default_of(config, field) for field in fields(config)}
    for name in words.flags:
        if name in known:
            continue
        having = [(part, kind) for part, kind, flags in _kinds(config) if name in names(flags)]
        if not having:
            raise ConfigError(f"--{name} has no meaning in this run ({run}).")
        part, others = having[0][0], [kind for _, kind in having]
        choose = " or ".join(f"--{part} {other}" for other in others)
        if part == "extra":
            has = " and ".join(extra.kind for extra in chosen["extras"]) or "no extras"
        else:
            own = [f"--{flag}" for flag in known if flag.startswith(f"{part}.")]
            has = (
                f"the {typed(chosen[part])} {part}, which has "
                f"{'the flags ' + ', '.join(own) if own else 'no flags'}"
            )
        raise ConfigError(
            f"--{name} is a flag of the {' and the '.join(others)} {part}, and this run "
            f"({run}) has {has}. Choose another: {choose}."
        )


def _flags_of_parts(config: Any) -> list[Flag]:
    return [flag for _, _, flags in _kinds(config) for flag in flags]


def _kinds(config: Any) -> list[tuple[str, str, list[Flag]]]:
    """Every kind of part that a config can have: the part, the kind, its flags."""
    parts = [
        (part, kind, flags_of(cls(), (part,)))
        for part, kinds in parts_of(config).items()
        for kind, cls in kinds.items()
    ]
    for part, combined in COMBINED.items():
        if part in parts_of(config):
            every = combined(parts=tuple(cls() for cls in PARTS[part].values()))
            parts.append((part, typed(every), flags_of(every, (part,))))
    if any(field.name == "extras" for field in fields(config)):
        parts += [("extra", kind, flags_of(cls(), (kind,))) for kind, cls in EXTRAS.items()]
    return parts
