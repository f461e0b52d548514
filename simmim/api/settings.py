"""From the keywords of ``simmim.pretrain`` and ``simmim.finetune`` to a config."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from simmim.config.encoder import EncoderConfig
from simmim.config.kinds import PARTS, with_part
from simmim.config.nearest import did_you_mean
from simmim.config.recipes import RECIPES
from simmim.config.run import PretrainConfig, SystemConfig, TrainingConfig
from simmim.errors import ConfigError

C = TypeVar("C", bound=TrainingConfig)


def recipe_named(recipe: str) -> PretrainConfig:
    """The settings of a recipe.

    Raises:
        ConfigError: There is none of that name.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!r}.{did_you_mean(recipe, RECIPES)}")
    return RECIPES[recipe]()


def configure(data: Any, config: C, settings: Mapping[str, Any]) -> C:
    """A config with ``settings`` changed.

    Args:
        data: A path or URL, a list of these, or Python data: a sequence or torch data set of
            images, or any iterable of them.
        config: A recipe, or the usual settings of another task.
        settings: By the names of the command line's flags with underscores (``image_size``,
            ``epochs``, ``workers``), and for the parts a config, or a dict of what changes in it
            (``mask={"ratio": 0.6}``); ``extras`` takes a list of configs.

    Raises:
        ConfigError: An unknown name, or a value out of range.
    """
    values = dict(settings)
    if "from_" in values:
        values["init_from"] = values.pop("from_")
    changes: dict[str, Any] = {"data": _sources(data)}
    encoder = _take(values, EncoderConfig)
    if isinstance(encoder.get("image_size"), int):
        encoder["image_size"] = (encoder["image_size"],) * 2
    changes["encoder"] = replace(config.encoder, **encoder)
    changes["system"] = replace(config.system, **_take(values, SystemConfig))
    for part in [field.name for field in fields(config) if field.name in values]:
        if is_dataclass(getattr(config, part)):
            changes[part] = _change(part, config, values.pop(part))
    if "extras" in values:
        changes["extras"] = tuple(values.pop("extras"))
    changes |= _take(values, type(config))
    if values:
        name = next(iter(values))
        known = [f.name for c in (config, EncoderConfig, SystemConfig) for f in fields(c)]
        raise ConfigError(
            f"simmim.{config.command} has no setting {name!r}.{did_you_mean(name, known)}"
        )
    for name in ("out", "labels"):
        if changes.get(name) is not None:
            changes[name] = Path(changes[name])
    return replace(config, **changes)


def _sources(data: Any) -> tuple[str, ...]:
    if isinstance(data, (str, Path)):
        return (str(data),)
    if isinstance(data, Sequence) and data and all(isinstance(d, (str, Path)) for d in data):
        from simmim.data.formats.endings import EXTENSIONS

        if not all(Path(each).suffix.lower() in EXTENSIONS for each in data):
            return tuple(map(str, data))  # sources; otherwise one source, a list of image files
    from simmim.data.sources.find import find_images

    return tuple(str(index.file) for index in find_images(data).indexes)


def _take(values: dict[str, Any], config: type) -> dict[str, Any]:
    return {f.name: values.pop(f.name) for f in fields(config) if f.name in values}


def _change(part: str, config: TrainingConfig, change: Any) -> Any:
    if is_dataclass(change):
        return change
    if not isinstance(change, Mapping):
        raise ConfigError(f"{part} takes a config or a dict of changes, got {change!r}.")
    if isinstance(config, PretrainConfig) and part in PARTS and "kind" in change:
        change = dict(change)
        config = with_part(config, part, change.pop("kind"))
    before = getattr(config, part)
    known = [field.name for field in fields(before)]
    for name in change:
        if name not in known:
            raise ConfigError(
                f"{part} ({before.kind if hasattr(before, 'kind') else part}) has no setting "
                f"{name!r}.{did_you_mean(name, known)}"
            )
    return replace(before, **change)
