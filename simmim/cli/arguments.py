"""From the words after a command to its config.

Words are first brought to one dialect (``key=value`` and ``--key value`` mean the same, so do
``_`` and ``-``, and names that other tools use), and names are checked. tyro then reads the values
and prints the help.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from simmim.cli.flags import (
    FLAT,
    Flag,
    default_of,
    expected,
    flags_of,
    is_pair,
    metavar,
    read,
    show,
    without_none,
)
from simmim.config.kinds import MEMBERS
from simmim.config.nearest import did_you_mean
from simmim.errors import ConfigError

ALIASES = {
    "output-dir": "out",
    "imgsz": "image-size",
    "num-workers": "workers",
    "mask-ratio": "mask.ratio",
    "norm-pix-loss": "target.norm-pix",
    "lr": "optim.lr",
    "layer-decay": "optim.layer-decay",
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
    import tyro

    flags = flags_of(config)
    arguments = ["--help"]
    if not ask_help:
        places = _place(command, words, flags)
        # What was not given keeps its default; leaving it out saves a tenth of a second.
        flags = [flag for flag in flags if flag.name in words.flags or flag.name in places]
        extra = ()
        arguments = [f"--{name}={text}" for name, text in words.flags.items() if name not in places]
        for flag in flags:
            arguments += places.get(flag.name, [])
    parsed = tyro.cli(
        _form(config, flags, extra),
        prog=f"simmim {command}",
        description=heading,
        args=arguments,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    return _build(config, parsed)


def _find(written: str, known: Mapping[str, Flag]) -> tuple[str | None, bool]:
    """The flag that a name stands for, and whether it was said without ``no-``."""
    name = written.replace("_", "-")
    head, _, tail = name.partition(".")
    if head in FLAT and tail:
        name = tail
    if tail == "kind":
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


def _place(command: str, words: Words, flags: Sequence[Flag]) -> dict[str, list[str]]:
    """The values of the positional flags, by name or by place."""
    rest = list(words.places)
    found: dict[str, list[str]] = {}
    usage = f"simmim {command} " + " ".join(
        flag.shown if flag.positional else f"{flag.shown} {metavar(flag)}"
        for flag in flags
        if flag.positional or flag.default is MISSING
    )
    for flag in flags:
        if flag.name in words.flags and flag.positional:
            found[flag.name] = [words.flags[flag.name]]
        elif flag.positional and rest:
            several = get_origin(flag.type) is tuple
            found[flag.name], rest = (rest, []) if several else (rest[:1], rest[1:])
        elif flag.name not in words.flags and flag.default is MISSING:
            raise ConfigError(f"{flag.shown} is missing: {flag.help} Usage: {usage}")
    if rest:
        raise ConfigError(f"{rest[0]!r} is one value too many. Usage: {usage}")
    return found


def _form(config: Any, flags: Sequence[Flag], extra: Sequence[Flag] = (), depth: int = 0) -> type:
    """A dataclass for tyro with exactly these flags, a nested one for each part."""
    owner = config if isinstance(config, type) else type(config)
    by_field: dict[str, list[Flag]] = {}
    for flag in flags:
        by_field.setdefault(flag.path[depth], []).append(flag)
    members: list[Any] = [(f"_{flag.name}", *_member(flag, flag.name)) for flag in extra]
    for name, group in by_field.items():
        if len(group[0].path) == depth + 1:
            members.append((name, *_member(group[0], group[0].name.rpartition(".")[2])))
        else:
            parts = {each.name: default_of(config, each) for each in fields(owner)}
            parts |= {each.kind: each for member in MEMBERS for each in parts.get(member, ())}
            part = parts[name]
            members.append((name, *_part(name, _form(part, group, depth=depth + 1))))
    form = make_dataclass(owner.__name__, members, frozen=True, kw_only=True)
    form.__doc__ = owner.__doc__
    return form


def _part(name: str, form: type) -> tuple[Any, Any]:
    import tyro

    kind: Any = Annotated[form, tyro.conf.OmitArgPrefixes] if name in FLAT else form
    return kind, field(default_factory=form)


def _member(flag: Flag, name: str) -> tuple[Any, Any]:
    """Annotation and default of one field of a form."""
    import tyro

    several = flag.positional and get_origin(flag.type) is tuple
    one = replace(flag, type=get_args(flag.type)[0]) if several else flag
    spec = tyro.constructors.PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar=metavar(flag),
        instance_from_str=lambda texts: (
            tuple(read(one, text) for text in texts) if several else read(one, texts[0])
        ),
        is_instance=lambda _: True,
        str_from_instance=lambda value: [show(value)],
    )
    argument = tyro.conf.arg(
        name=None if flag.positional else name, help=flag.help, help_behavior_hint=_hint(flag)
    )
    kind: Any = Annotated[flag.type, spec, argument]
    if flag.positional:
        kind = Annotated[kind, tyro.conf.Positional]
    return kind, field() if flag.default is MISSING else field(default_factory=lambda: flag.default)


def _hint(flag: Flag) -> str:
    """The default, unless the help has said it in words."""
    if flag.default is MISSING:
        return "(required)"
    told = "default" in flag.help.lower()
    if flag.default is None or flag.default == {}:
        return "" if told or flag.positional or flag.default == {} else "(default: none)"
    return f"({'here' if told else 'default'}: {show(flag.default)})"


def _build(config: Any, parsed: Any) -> Any:
    """The config that a filled form stands for."""
    owner = config if isinstance(config, type) else type(config)
    values = {}
    for member in fields(owner):
        default = default_of(config, member)
        value = getattr(parsed, member.name, default)
        if member.name in MEMBERS:
            value = tuple(_build(part, getattr(parsed, part.kind, part)) for part in default)
        values[member.name] = _build(default, value) if is_dataclass(default) else value
    return owner(**values)
