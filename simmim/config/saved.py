"""config.yaml: what a run was asked to be, and what rules chose for it, as text and back.

The file is flat: ``format``, then the fields of the task's config in their order, then
``resolved``; one without ``task`` is of a pretraining. Reading is strict: an unknown key, a wrong
type or another format number is refused.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar

from simmim.config.extra import EXTRAS
from simmim.config.finetune import FINETUNINGS
from simmim.config.kinds import KINDS, MEMBERS, PARTS, parts_of, with_part
from simmim.config.nearest import did_you_mean
from simmim.config.resolved import Resolved
from simmim.config.run import FORMAT, PretrainConfig, SystemConfig, TrainingConfig
from simmim.errors import ConfigError

C = TypeVar("C", bound=TrainingConfig)

EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "string": "text",
    "path": "a path",
    "tuple": "a list",
    "dict": "key: value pairs",
    "dataclass": "key: value pairs",
}
"""What a value should have been, by the first word of pydantic's error type."""


def dump(config: TrainingConfig, resolved: Resolved | None = None) -> str:
    """The text of config.yaml."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    _add_exponents(Dumper)
    Dumper.add_representer(
        tuple,
        lambda dumper, values: dumper.represent_sequence(
            "tag:yaml.org,2002:seq", values, flow_style=True
        ),
    )
    Dumper.add_multi_representer(Path, lambda dumper, path: dumper.represent_str(str(path)))
    document = {"format": FORMAT, **asdict(config)}
    if resolved is not None:
        document["resolved"] = asdict(resolved)
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def settings_hash(config: TrainingConfig) -> str:
    """SHA-256 of what a run keeps: all settings but its folder and those that a resume may give."""
    kept = replace(config, out=None, max_bad=TrainingConfig.max_bad, system=SystemConfig())
    text = json.dumps(asdict(kept), sort_keys=True, default=str)
    same = json.loads(text, parse_float=_number)  # 3 and 3.0 are one setting
    return hashlib.sha256(json.dumps(same).encode()).hexdigest()


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


def load(file: Path) -> tuple[TrainingConfig, Resolved | None]:
    """Read a config.yaml.

    Raises:
        ConfigError: No such file, broken YAML, another format, an unknown key, a wrong value.
    """
    document = read(file)
    if "format" not in document:
        raise ConfigError(f"{file} has no line `format: {FORMAT}`, so it is no run's config.yaml.")
    return _validate(file, document, task_of(document))


def task_of(document: Mapping[str, Any]) -> type[TrainingConfig]:
    """The config class of what ``read`` gave."""
    if "task" not in document:
        return PretrainConfig
    return FINETUNINGS[document["task"].get("kind", next(iter(FINETUNINGS)))]


def overlay(file: Path, base: C) -> C:
    """``base`` with the settings that ``file`` names: a config.yaml or any part of one.

    Where the file saves a whole run, its output folder and what was resolved are left out: they
    belong to that run.

    Raises:
        ConfigError: As `load` does.
    """
    given = {key: value for key, value in read(file).items() if key not in ("out", "resolved")}
    for name in parts_of(base):
        part = given.get(name, {})
        kinds = [each["kind"] for each in part.get("parts", [part] if "kind" in part else [])]
        try:
            base = with_part(base, name, ",".join(kinds)) if kinds else base
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error
    plain = json.loads(json.dumps(asdict(base), default=str))
    return _validate(file, _merge(plain, given), type(base))[0]


def read(file: Path) -> dict[str, Any]:
    """The settings that a YAML file holds, before they are checked against the dataclasses.

    Raises:
        ConfigError: No such file, not YAML, another format, or a part's kind is unknown.
    """
    import yaml

    try:
        document = _parsed(file.read_text(encoding="utf-8"))
        document = json.loads(json.dumps(document))  # plain values only: no sets, dates, cycles
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not text in UTF-8.") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{file} holds no `key: value` lines.")
    if isinstance(document.get("data"), str):
        document["data"] = [document["data"]]  # one source may stand without brackets
    found = document.get("format", FORMAT)
    if found != FORMAT:
        raise ConfigError(
            f"{file} has format {found}; this version of simmim reads format {FORMAT}. "
            f"Use the version of simmim that wrote it (environment.json names it)."
        )
    _check_kinds(file, document)
    return document


def _check_kinds(file: Path, document: Mapping[str, Any]) -> None:
    for name, kinds in KINDS.items():
        part = document.get(name, {})
        _check_kind(file, name, part, kinds)
        if "parts" in part or part.get("kind") not in {None, *PARTS[name]}:
            _check_members(file, f"{name}.parts", part.get("parts"), PARTS[name])
    _check_members(file, "extras", document.get("extras", []), EXTRAS)


def _check_members(file: Path, name: str, members: Any, kinds: Mapping[str, type]) -> None:
    if not isinstance(members, list):
        raise ConfigError(f"{file}: {name}: expected a list, got {members!r}.")
    for number, member in enumerate(members):
        _check_kind(file, f"{name}.{number}", member, kinds)
        if "kind" not in member:
            raise ConfigError(
                f"{file}: {name}.{number}.kind is missing, known: {', '.join(kinds)}."
            )


def _check_kind(file: Path, name: str, part: Any, kinds: Mapping[str, type]) -> None:
    if not isinstance(part, dict):
        raise ConfigError(f"{file}: {name}: expected key: value pairs, got {part!r}.")
    kind = part.get("kind")
    if kind is not None and str(kind) not in kinds:
        raise ConfigError(
            f"{file}: {name}.kind is {kind!r}, known: {', '.join(kinds)}."
            f"{did_you_mean(str(kind), kinds)}"
        )


def _parsed(text: str) -> Any:
    """What YAML says, by libyaml, which is nine times as fast; what it refuses, by PyYAML."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader(yaml.CSafeLoader))
    except (yaml.YAMLError, AttributeError):  # bytes of file names that are no UTF-8; no libyaml
        return yaml.load(text, Loader=_loader(yaml.SafeLoader))


def _loader(safe: Any) -> Any:
    """A safe loader of PyYAML, except that 1e-3 is a number and 2026-01-02 is text."""

    class Loader(safe):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if not tag.endswith("timestamp")]
        for first, rules in safe.yaml_implicit_resolvers.items()
    }
    _add_exponents(Loader)
    return Loader


def _add_exponents(resolver: Any) -> None:
    """Let a loader read 1e-3 as a number, and a dumper put quotes around a text like it."""
    import re

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    resolver.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))


def _validate(file: Path, document: dict[str, Any], kind: type[C]) -> tuple[C, Resolved | None]:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    document = {key: value for key, value in document.items() if key != "format"}
    resolved = document.pop("resolved", None)
    for name, kinds in PARTS.items():
        if name in document:
            document[name].setdefault("kind", next(iter(kinds)))
    rules = ConfigDict(extra="forbid", allow_inf_nan=False)
    form: Any = GenericAlias(tuple, (_form(document, kind), Resolved | None))
    text = json.dumps([document, resolved], ensure_ascii=False)
    try:
        # JSON's strict mode takes lists for tuples and text for paths, but no text for numbers.
        checked, chosen = TypeAdapter(form, config=rules).validate_json(
            text.translate(_STAND_INS), strict=True
        )
    except ValidationError as error:
        raise ConfigError(f"{file}: {_first(error.errors()[0], document, kind)}") from error
    except (ConfigError, UnicodeEncodeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    return _config(checked), chosen


def _form(document: Mapping[str, Any], kind: type, members: Mapping[str, type] = EXTRAS) -> type:
    """A config with parts of the kinds that a file says, so that errors concern them alone."""
    parts: list[Any] = []
    for name in _keys(kind):
        if name in MEMBERS:
            classes = tuple(members[each["kind"]] for each in document.get(name, []))
            parts.append((name, GenericAlias(tuple, classes), ()))
        elif name in KINDS and name in document:
            part = document[name]
            parts.append((name, _form(part, KINDS[name][part["kind"]], PARTS[name])))
    options: Any = {"bases": (kind,), "frozen": True, "kw_only": True}
    return make_dataclass(kind.__name__, parts, namespace={"form_of": kind}, **options)


_STAND_INS = {0xDC80 + i: 0x10FC80 + i for i in range(128)}
"""Private characters for the bytes of file names that are no UTF-8, which pydantic refuses."""


def _config(value: Any) -> Any:
    """The config that a form stands for, with those bytes put back."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: _config(getattr(value, field.name)) for field in fields(value)}
        return getattr(value, "form_of", type(value))(**own)
    if isinstance(value, tuple):
        return tuple(map(_config, value))
    if isinstance(value, (str, Path)):
        return type(value)(str(value).translate({new: old for old, new in _STAND_INS.items()}))
    return value


def _first(error: Any, document: dict[str, Any], kind: type) -> str:
    """What an error of pydantic says, in words of the file."""
    place, *steps = error["loc"]
    owner: Any = Resolved if place == 1 else kind
    keys = [step for step in steps if not _is_type(str(step))]
    path = ".".join(map(str, ["resolved", *keys] if owner is Resolved else keys))
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        inside: Any = document
        for key in keys[:-1]:
            inside = inside[key] if place == 0 else {}
            own = inside.get("kind") if isinstance(inside, dict) else None
            owner = {**EXTRAS, **KINDS.get(keys[0], {})}[own] if own else _field_type(owner, key)
        return f"unknown key {path}.{did_you_mean(str(keys[-1]), _keys(owner))}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{path} is missing."
    expected = EXPECTED.get(error["type"].split("_")[0]) or error.get("ctx", {}).get("expected")
    if expected is None:
        return f"{path}: {error['msg']}, got {error['input']!r}."
    return f"{path}: expected {expected}, got {error['input']!r}."


def _field_type(owner: type, key: str) -> Any:
    from typing import get_type_hints

    return get_type_hints(owner).get(key)


def _is_type(step: str) -> bool:
    """Whether a step of pydantic's path names a member of a union rather than a key."""
    return step in EXPECTED or step == "str" or "[" in step


def _keys(owner: Any) -> list[str]:
    return [field.name for field in fields(owner)] if is_dataclass(owner) else []


def _merge(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in given.items():
        old = merged.get(key)
        # `arguments` is one value: those of one model mean nothing to another.
        if isinstance(old, dict) and isinstance(value, dict) and key != "arguments":
            value = _merge(old, value)
        elif key == "parts" and isinstance(old, list):
            value = [_merge(*pair) for pair in zip(old, value, strict=True)]  # of the same kinds
        merged[key] = value
    return merged
