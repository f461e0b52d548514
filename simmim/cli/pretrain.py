"""``simmim pretrain``: choose the parts, then read the rest of the flags into one config."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from simmim.cli.arguments import parse, split, wants_help
from simmim.cli.checks import check_pretrain
from simmim.cli.flags import Flag
from simmim.cli.parts import all_flags, check_parts, names, one_of
from simmim.cli.resume import RESUME, Resume, parse_resume
from simmim.config.extra import EXTRAS
from simmim.config.kinds import COMBINED, PARTS, parts_of, pick, with_extras, with_part
from simmim.config.recipes import RECIPES
from simmim.config.run import PretrainConfig

SEVERAL = {part: f", or several, such as {','.join([*PARTS[part]][:2])}" for part in COMBINED}
CHOICES = [
    Flag(
        "recipe",
        ("recipe",),
        one_of(RECIPES),
        "Published settings to begin with; all other flags change them (`simmim recipes`).",
        "simmim",
    ),
    *(
        Flag(
            part,
            (part,),
            one_of(kinds) | None,
            f"Another kind of {part}{SEVERAL.get(part, '')}; default: the recipe's.",
            None,
        )
        for part, kinds in parts_of(PretrainConfig).items()
    ),
    *(
        [
            Flag(
                "extra",
                ("extra",),
                tuple[one_of(EXTRAS), ...],
                "Further losses on the same features, given once for each; default: the recipe's.",
                (),
                repeats=True,
            )
        ]
        if EXTRAS
        else []
    ),
    Flag(
        "config",
        ("config",),
        Path | None,
        "A saved config.yaml, or a part of one, to begin with.",
        None,
    ),
    RESUME,
]
"""The flags that decide which other flags there are."""

HEADING = """Pretrain an encoder on your own images, without labels.
  simmim pretrain photos/
  simmim pretrain photos/ --recipe simmim-fast --model vit_tiny_patch16_224 --budget 1h
  simmim pretrain photos/ --from timm:vit_base_patch16_224.mae
  simmim pretrain data=photos/ mask.ratio=0.6 epochs=100 batch_size=256
  simmim pretrain --resume runs/20261123-0712-simmim-vit_small_patch16_224

Both --key value and key=value will do. A switch takes true or false.

Where no value is given, simmim chooses, and says what it chose and why."""


def run(words: Sequence[str]) -> None:
    """Parse, check, and pretrain or go on."""
    request = parse_pretrain(words)
    from simmim.api.pretrain import run_pretrain, run_resume

    if isinstance(request, Resume):
        run_resume(request.run, request.changes)
        return
    check_pretrain(request)
    run_pretrain(request)


def parse_pretrain(
    words: Sequence[str], command: str = "pretrain", heading: str = HEADING
) -> PretrainConfig | Resume:
    """What the words after ``simmim pretrain`` ask for.

    Raises:
        ConfigError: They do not say one run.
    """
    ask_help = wants_help(words)
    found = split(
        command,
        [word for word in words if word not in ("-h", "--help")],
        [*CHOICES, *all_flags([PretrainConfig()])],
    )
    if "resume" in found.flags and not ask_help:
        return parse_resume(command, found)
    chosen = {name: found.flags.pop(name) for name in names(CHOICES) if name in found.flags}
    config = _choose(chosen)
    check_parts(found, config, config.recipe)
    return parse(command, found, config, heading=heading, extra=CHOICES, ask_help=ask_help)


def _choose(chosen: Mapping[str, str]) -> PretrainConfig:
    """The defaults: a recipe, changed by a file, with some parts swapped."""
    from simmim.config.saved import overlay, read

    file = Path(chosen["config"]) if "config" in chosen else None
    named = chosen.get("recipe") or (read(file).get("recipe") if file else None) or "simmim"
    recipe = pick("recipe", named, RECIPES, "`simmim recipes` lists them.")
    config = RECIPES[recipe]()
    if file:
        config = replace(overlay(file, config), recipe=recipe)
    for part in parts_of(config):
        if part in chosen:
            config = with_part(config, part, chosen[part])
    if "extra" in chosen:
        names = [name.strip() for name in chosen["extra"].split(",")]
        config = with_extras(config, dict.fromkeys(name for name in names if name != "none"))
    return config
