"""From the words after a command to its config.

Words are first brought to one dialect (``key=value`` and ``--key value`` mean the same, so do
``_`` and ``-``, and names that other tools use), and names are checked. Then the values are read.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from simmim.cli.flags import (
    FLAT,
    Flag,
    default_of,
    expected,
    flags_of,
    is_pair,
    read,
    without_none,
)
from simmim.cli.help import help_of, usage
from simmim.config.kinds import MEMBERS
from simmim.config.nearest import did_you_mean
from simmim.errors import ConfigError, ExitStatus

ALIASES = {
    "output-dir": "out",
    "imgsz": "image-size",
    "num-workers": "workers",
    "mask-ratio": "mask.ratio",
    "norm-pix-loss": "target.norm-pix",
    "lr": "optim.lr",
    "layer-decay": "optim.layer-decay",
    "smoothing": "task.smoothing",
    "task.classes": "classes",
    "task.ignore": "ignore",
    "weight-decay": "optim.weight-decay",
    "warmup-share": "optim.warmup-share",
    "clip": "optim.clip",
    "method": "recipe",
    "init-from": "from",
}
"""Other tools' names; each holds where a command has the flag that it stands for."""

TRUTH = ("true", "false", "yes", "no", "1", "0")

Config = TypeVar("Config")


@dataclass(frozen=True)
class Words:
    """What was given, each name checked, no value read yet."""

    flags: dict[str, str]
    """Value by flag name."""
    places: list[str]
    """What was given without a name."""

    def put(self, flag: Flag, value: str) -> None:
        """Take up a value: the last one of a flag holds, but of one that repeats, all."""
        before = self.flags.get(flag.name) if flag.repeats else None
        self.flags[flag.name] = value if before is None else f"{before},{value}"


def wants_help(words: Iterable[str]) -> bool:
    """Whether the help was asked for."""
    return any(word in ("-h", "--help") for word in words)


def split(command: str, words: Sequence[str], flags: Sequence[Flag]) -> Words:
    """Bring ``words`` to one dialect.

    Args:
        command: Its name, for messages.
        words: What followed the command.
        flags: All that the command may know, whatever parts are chosen.

    Raises:
        ConfigError: A flag is unknown or lacks its value.
    """
    known = {flag.name: flag for flag in flags}
    found = Words({}, [])
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            found.places.extend(rest)
            break
        if re.match(r"--?[A-Za-z]", word):
            written, equals, value = word.partition("=")
            name, positive = _find(written.lstrip("-"), known)
            if name is None:
                raise _unknown(command, written, known)
            if not equals:
                value = _value(known[name], rest, positive=positive)
            found.put(known[name], value)
            continue
        key, equals, value = word.partition("=")
        name = _find(key, known)[0] if equals else None
        if name is not None:
            found.put(known[name], value)
        elif equals and re.fullmatch(r"[A-Za-z][\w.-]*", key) and not Path(word).exists():
            raise _unknown(command, key, known)
        else:
            found.places.append(word)
    return found


def read_command(command: str, words: Sequence[str], config: type[Config], heading: str) -> Config:
    """The config that the words after a command ask for, or its help; see ``parse``."""
    ask_help = wants_help(words)
    found = split(command, [] if ask_help else words, flags_of(config))
    return parse(command, found, config, heading=heading, ask_help=ask_help)


def parse(
    command: str,
    words: Words,
    config: Config | type[Config],
    *,
    heading: str = "",
    extra: Sequence[Flag] = (),
    ask_help: bool = False,
) -> Config:
    """Read the values into a config.

    Args:
        command: Its name, for messages and the help.
        words: From `split`.
        config: The defaults; a class where some fields have none.
        heading: What the help says above the flags.
        extra: Flags that were taken out of ``words`` before, for the help.
        ask_help: Print the help and exit.

    Raises:
        ConfigError: A value is missing, wrong, or out of range, or there are too many.
    """
    flags = flags_of(config)
    if ask_help:
        print(help_of(command, heading, [*extra, *flags]))
        sys.exit(ExitStatus.DONE)
    return _build(config, _values(command, words, flags))


def _find(written: str, known: Mapping[str, Flag]) -> tuple[str | None, bool]:
    """The flag that a name stands for, and whether it was said without ``no-``."""
    name = written.replace("_", "-")
    head, _, tail = name.partition(".")
    if head in FLAT and tail:
        name = tail
    if tail == "kind" and name not in known:
        name = head
    for candidate in (name, ALIASES.get(name)):
        if candidate in known:
            return candidate, True
    head, dot, tail = name.rpartition(".")
    name = f"{head}{dot}{tail.removeprefix('no-')}"
    if tail.startswith("no-") and name in known and known[name].type is bool:
        return name, False
    return None, True


def _value(flag: Flag, rest: list[str], *, positive: bool) -> str:
    """Take the value of ``flag`` off the words that follow it."""
    if flag.type is bool:
        if not positive:
            return "false"
        return rest.pop(0) if rest and rest[0].lower() in TRUTH else "true"
    if not rest or re.match(r"--?[A-Za-z]", rest[0]):
        raise ConfigError(f"{flag.shown} needs a value: {expected(without_none(flag.type))}.")
    value = rest.pop(0)
    if is_pair(flag) and "," not in value and rest:
        value += "," + rest.pop(0)
    return value


def _unknown(command: str, written: str, known: Mapping[str, Flag]) -> ConfigError:
    dashes = "--" if written.startswith("-") else ""
    names = {name: f"{dashes}{name}" for name in (*known, *ALIASES)}
    plain = written.lstrip("-").replace("_", "-")
    # `--ratio` means `--mask.ratio`, however unlike the two words are.
    tails = [name for name in known if name.endswith(f".{plain}")]
    near = (
        f" Did you mean {' or '.join(names[name] for name in tails)}?"
        if tails
        else did_you_mean(f"{dashes}{plain}", names.values())
    )
    return ConfigError(
        f"simmim {command} has no {'flag' if dashes else 'setting'} {written}.{near} "
        f"All of them: simmim {command} --help"
    )


def _values(command: str, words: Words, flags: Sequence[Flag]) -> dict[tuple[str, ...], Any]:
    """What was given, by name or by place, each by the path of its flag."""
    rest = list(words.places)
    values: dict[tuple[str, ...], Any] = {}
    for flag in flags:
        several = flag.positional and get_origin(flag.type) is tuple
        if flag.name in words.flags:
            texts = [words.flags[flag.name]]
        elif flag.positional and rest:
            texts, rest = (rest, []) if several else (rest[:1], rest[1:])
        elif flag.default is MISSING:
            how = usage(command, flags)
            raise ConfigError(f"{flag.shown} is missing: {flag.help} Usage: {how}")
        else:
            continue
        one = replace(flag, type=get_args(flag.type)[0]) if several else flag
        read_values = tuple(read(one, text) for text in texts)
        values[flag.path] = read_values if several else read_values[0]
    if rest:
        raise ConfigError(f"{rest[0]!r} is one value too many. Usage: {usage(command, flags)}")
    return values


def _build(config: Any, values: Mapping[tuple[str, ...], Any], path: tuple[str, ...] = ()) -> Any:
    """``config`` with the values that were given, each by the path of its flag."""
    members = {}
    for field in fields(config):
        default, here = default_of(config, field), (*path, field.name)
        if field.name in MEMBERS:
            default = tuple(_build(each, values, (*path, each.kind)) for each in default)
        elif is_dataclass(default):
            default = _build(default, values, here)
        members[field.name] = values.get(here, default)
    return (config if isinstance(config, type) else type(config))(**members)
