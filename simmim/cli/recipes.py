"""``simmim recipes`` and ``simmim models``: what there is to choose from."""

from collections.abc import Sequence

from simmim.cli.arguments import wants_help
from simmim.config.presets import NAMES, OF_TASK
from simmim.config.recipes import RECIPES
from simmim.config.run import PretrainConfig
from simmim.errors import ConfigError

RECIPES_HELP = """usage: simmim recipes
       simmim recipes show NAME [flags of simmim pretrain]

List the published settings that `simmim pretrain --recipe NAME` can begin with, and those of
`simmim finetune --preset NAME`, or print one of them whole; that of a recipe as a YAML file that
`--config FILE` reads.

  simmim recipes show mae
  simmim recipes show mae-vit-b --task segment
  simmim recipes show mae --mask.ratio 0.6 > mine.yaml"""

SHOW = """Print every setting of a recipe, changed by the flags given, as a YAML file.
  simmim recipes show mae
  simmim recipes show mae --mask.ratio 0.6 > mine.yaml"""

MODELS_HELP = """usage: simmim models [FILTER]

List the timm models that can be encoders: all, or those whose name holds FILTER.

  simmim models
  simmim models vit_small

Models marked "whole" need all patches of an image (`--recipe simmim-paper-swin`)."""


PUBLISHED = {
    "classify": "To fine-tune on ImageNet-1K, with the accuracy that the authors published:",
    "segment": "To segment ADE20K's scenes, with the mean IoU that the authors published:",
    "detect": "To find COCO's objects, with the average precision that the authors published:",
}
"""What is said of the presets of each task."""


def recipes(words: Sequence[str]) -> None:
    """``simmim recipes`` and ``simmim recipes show NAME``."""
    if words and words[0] == "show":
        _show(words[1:])
        return
    if wants_help(words):
        print(RECIPES_HELP)
        return
    if words:
        raise ConfigError(f"simmim recipes takes nothing, or `show NAME`, got {words[0]!r}.")
    width = max(map(len, [*RECIPES, *NAMES]))
    for name, make in RECIPES.items():
        print(f"{name:{width}}  {(make.__doc__ or '').splitlines()[0]}")
    for task, what in PUBLISHED.items():
        print(f"\n{what}\n")
        for name, preset in OF_TASK[task].items():
            print(f"{name:{width}}  {preset.expected}")
            print(f"{'':{width}}  {preset.command(name)}")
    print("\nAll settings of one: simmim recipes show NAME")


def models(words: Sequence[str]) -> None:
    """``simmim models [FILTER]``."""
    if wants_help(words):
        print(MODELS_HELP)
        return
    if len(words) > 1:
        raise ConfigError(f"simmim models takes one filter, got {' '.join(words)!r}.")
    from simmim.config.models import MODELS, suggest

    part = words[0].lower() if words else ""
    found = {name: model for name, model in MODELS.items() if part in name}
    if not found:
        near = suggest(part)
        hint = f" Near: {', '.join(near)}." if near else ""
        raise ConfigError(f"no supported timm model has {part!r} in its name.{hint}")
    width = max(map(len, found))
    print(f"{'model':{width}}  patch  pixels  width  blocks")
    for name, model in found.items():
        row = f"{name:{width}}  {model.patch:5}  {model.size:6}  {model.width:5}  {model.depth:6}"
        print(row + ("  whole" if model.whole else ""))
    print(f"\n{len(found)} of {len(MODELS)} models. Use one: simmim pretrain DATA --model NAME")


def _show(words: Sequence[str]) -> None:
    from simmim.cli.finetune import parse_finetune
    from simmim.cli.pretrain import parse_pretrain
    from simmim.config.saved import dump

    if words and words[0] in NAMES:
        given = ["--preset", *words, *([] if "--from" in words else ["--from", "WEIGHTS"])]
        tasks = [task for task, presets in OF_TASK.items() if words[0] in presets]
        if len(tasks) == 1 and "--task" not in words:
            given += ["--task", *tasks]
        print(dump(parse_finetune(given)), end="")  # type: ignore[arg-type]
        return
    if not words or (words[0].startswith("-") and not wants_help(words)):
        raise ConfigError(f"which recipe? One of {', '.join([*RECIPES, *NAMES])}.")
    flags = list(words) if wants_help(words) else ["--recipe", *words]
    config = parse_pretrain(flags, "recipes show NAME", SHOW)
    if not isinstance(config, PretrainConfig):
        raise ConfigError("--resume goes on with a run and has no place here.")
    print(dump(config), end="")
