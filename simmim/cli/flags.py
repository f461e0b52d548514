"""The flags of a command: one per field of its config, with the field's docstring as help."""

import ast
import inspect
import math
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from simmim.config.kinds import MEMBERS
from simmim.errors import ConfigError

NAMES = {"init_from": "from", "compare_on": "images"}
"""Fields whose flag has another name."""
FLAT = frozenset({"encoder", "system"})
"""Parts whose flags carry no prefix."""
POSITIONAL = frozenset({"run", "other", "folder", "data", "images"})
"""Fields that are given by their place."""
HIDDEN = frozenset({"recipe"})
"""Fields that are chosen before all others."""
REPEATED = frozenset({"against", "also"})
"""Fields that may be given several times, for several values."""

METAVARS = {
    "model": "NAME",
    "budget": "TIME",
    "from": "SOURCE",
    "config": "FILE",
    "resume": "RUN",
    "freeze": "all|N",
}
"""What stands for the value in the help, where the type says too little."""


@dataclass(frozen=True)
class Flag:
    """One field of a config as the command line shows it."""

    name: str
    """Without the leading dashes, such as ``mask.ratio``."""
    path: tuple[str, ...]
    """Attributes that lead to the field, such as ``("mask", "ratio")``; to a member, its kind."""
    type: Any
    help: str
    default: Any = MISSING
    """``MISSING`` where the flag must be given."""
    repeats: bool = False
    """Whether it may be given several times, for several values."""
    part: str = ""
    """What it is a setting of, for the help; empty: the command itself."""

    @property
    def positional(self) -> bool:
        """Whether the value is given by its place: ``simmim probe RUN DATA``."""
        return len(self.path) == 1 and self.path[0] in POSITIONAL

    @property
    def shown(self) -> str:
        """How a user writes it: ``--mask.ratio`` or ``DATA``."""
        return self.name.upper() if self.positional else f"--{self.name}"


def flags_of(config: Any, path: tuple[str, ...] = ()) -> list[Flag]:
    """The flags of a config, or of a config class where some fields have no default."""
    owner = config if isinstance(config, type) else type(config)
    types, docs = get_type_hints(owner), field_docs(owner)
    found: list[Flag] = []
    part = f"{path[-1]}: {(owner.__doc__ or '').partition(chr(10))[0]}" if path else ""
    own = inspect.get_annotations(owner)  # before what all trainings share
    for field in sorted(fields(owner), key=lambda field: field.name not in own):
        if field.name in HIDDEN or (field.name == "kind" and len(get_args(types["kind"])) == 1):
            continue  # the kind of a part is chosen by `--mask`, `--decoder`, `--target`
        default = default_of(config, field)
        here = (*path, field.name)
        if field.name in MEMBERS:
            found += [flag for each in default for flag in flags_of(each, (*path, each.kind))]
            continue
        if is_dataclass(default):
            found += flags_of(default, here)
            continue
        name = ".".join(NAMES.get(step, step) for step in here if step not in FLAT)
        kind, doc = types[field.name], docs.get(field.name, "")
        repeats = field.name in REPEATED
        found.append(Flag(name.replace("_", "-"), here, kind, doc, default, repeats, part))
    return found


def default_of(config: Any, field: Field) -> Any:
    """What a config, or a config class, gives for a field; ``MISSING`` where it must be given."""
    if not isinstance(config, type):
        return getattr(config, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


@cache
def field_docs(owner: type) -> dict[str, str]:
    """The string below each field in the source of a dataclass, and of those that it extends."""
    if owner is object:
        return {}
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(body, ast.ClassDef)
    docs = {name: text for base in owner.__bases__ for name, text in field_docs(base).items()}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docs[name] = " ".join(text.split())
    return docs


def read(flag: Flag, text: str) -> Any:
    """The value that ``text`` means for ``flag``.

    Raises:
        ConfigError: It is none; names flag, text, and what was expected.
    """
    kind = flag.type
    if optional(kind):
        if text.lower() in ("auto", "none"):
            return None
        kind = without_none(kind)
    try:
        return _reader(kind)(text)
    except ValueError as error:
        raise ConfigError(f"{flag.shown} expects {expected(kind)}, got {text!r}.") from error


def show(value: Any) -> str:
    """A value as one would type it."""
    match value:
        case None | ():
            text = "none"
        case bool():
            text = str(value).lower()
        case float():
            text = f"{value:.6g}"
        case (int(height), int(width)):
            text = f"{height}x{width}"
        case tuple():
            text = ",".join(show(item) for item in value)
        case dict():
            text = ",".join(f"{key}={show(item)}" for key, item in value.items())
        case _:
            text = str(value)
    return text


def metavar(flag: Flag) -> str:
    """What stands for the value in the help."""
    if flag.positional:
        return flag.name.upper()
    if flag.name in METAVARS:
        return METAVARS[flag.name]
    kind = without_none(flag.type)
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    words = {int: "N", float: "X", bool: "true|false", str: "TEXT", Path: "PATH"}
    if kind in words:
        return words[kind]
    if get_origin(kind) is dict:
        return "KEY=VALUE,…"
    return {(int, int): "SIDE|HxW", (float, float): "A,B"}.get(get_args(kind), "A,B,…")


def expected(kind: Any) -> str:
    """What a value of this type looks like, in words."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        Path: "a path",
        tuple[int, int]: "a side or HEIGHTxWIDTH in pixels, such as 96 or 96x128",
        tuple[float, float]: "two numbers such as 0.2,1",
    }
    if kind in words:
        return words[kind]
    if get_origin(kind) is dict:
        return "settings such as depth=4,qkv_bias=true"
    return f"a list, separated by commas, each {expected(get_args(kind)[0])}"


def optional(kind: Any) -> bool:
    """Whether a type has ``None`` among its members."""
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)


def without_none(kind: Any) -> Any:
    """``X`` for ``X | None``; any other type as it is."""
    if not optional(kind):
        return kind
    (member,) = (member for member in get_args(kind) if member is not NoneType)
    return member


def is_pair(flag: Flag) -> bool:
    """Whether the value is two numbers, which may be two words on the command line."""
    return get_args(without_none(flag.type)) == (float, float)


def _reader(kind: Any) -> Callable[[str], Any]:
    simple: dict[Any, Callable[[str], Any]] = {
        int: int,
        float: _number,
        bool: _truth,
        str: _text,
        Path: lambda text: as_path(_text(text)),
    }
    if kind in simple:
        return simple[kind]
    if get_origin(kind) is Literal:
        return partial(_choice, get_args(kind))
    if get_origin(kind) is dict:
        return _settings
    if get_args(kind) == (int, int):
        return _size
    return partial(_sequence, get_args(kind))


def as_path(text: str) -> Path:
    """A path as given; one that would look like a flag where it is printed again is absolute."""
    path = Path(text)
    return path.absolute() if str(path).startswith("-") else path


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("empty")
    return text


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("not finite")
    return value


def _truth(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise ValueError("no truth value")
    return words[text.lower()]


def _choice(choices: tuple[str, ...], text: str) -> str:
    if text not in choices:
        raise ValueError("no such choice")
    return text


def _size(text: str) -> tuple[int, int]:
    sides = [int(side) for side in text.lower().replace("×", "x").replace(",", "x").split("x")]
    if len(sides) not in (1, 2):
        raise ValueError("neither one side nor two")
    return sides[0], sides[-1]


def _sequence(types: tuple[Any, ...], text: str) -> tuple[Any, ...]:
    items = [item.strip() for item in text.split(",")] if text.lower() not in ("", "none") else []
    if types[-1] is ...:
        types = (types[0],) * len(items)
    if len(items) != len(types):
        raise ValueError("another number of values")
    return tuple(_reader(kind)(item) for kind, item in zip(types, items, strict=True))


def _settings(text: str) -> dict[str, int | float | str | bool]:
    settings: dict[str, int | float | str | bool] = {}
    for item in text.split(",") if text.lower() not in ("", "none") else []:
        key, equals, value = item.partition("=")
        if not (key.strip() and equals and value.strip()):
            raise ValueError("no key=value")
        settings[key.strip().replace("-", "_")] = _plain(value.strip())
    return settings


def _plain(text: str) -> int | float | str | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, _number):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
