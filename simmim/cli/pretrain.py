"""``simmim pretrain``: choose the parts, then read the rest of the flags into one config."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from simmim.cli.arguments import Words, parse, split, wants_help
from simmim.cli.checks import check_pretrain
from simmim.cli.flags import Flag, flags_of
from simmim.cli.resume import RESUME, Resume, parse_resume
from simmim.config.extra import EXTRAS
from simmim.config.kinds import COMBINED, PARTS, pick, typed, with_extras, with_part
from simmim.config.recipes import RECIPES
from simmim.config.run import PretrainConfig
from simmim.errors import ConfigError


def _one_of(names: Iterable[str]) -> Any:
    return Literal[tuple(names)]


SEVERAL = {part: f", or several, such as {','.join([*PARTS[part]][:2])}" for part in COMBINED}
CHOICES = [
    Flag(
        "recipe",
        ("recipe",),
        _one_of(RECIPES),
        "Published settings to begin with; all other flags change them (`simmim recipes`).",
        "simmim",
    ),
    *(
        Flag(
            part,
            (part,),
            _one_of(kinds) | None,
            f"Another kind of {part}{SEVERAL.get(part, '')}; default: the recipe's.",
            None,
        )
        for part, kinds in PARTS.items()
    ),
    *(
        [
            Flag(
                "extra",
                ("extra",),
                tuple[_one_of(EXTRAS), ...],
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
        [*CHOICES, *all_flags()],
    )
    if "resume" in found.flags and not ask_help:
        return parse_resume(command, found)
    chosen = {name: found.flags.pop(name) for name in _names(CHOICES) if name in found.flags}
    config = _choose(chosen)
    _check_parts(found, config)
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
    for part in PARTS:
        if part in chosen:
            config = with_part(config, part, chosen[part])
    if "extra" in chosen:
        names = [name.strip() for name in chosen["extra"].split(",")]
        config = with_extras(config, dict.fromkeys(name for name in names if name != "none"))
    return config


def _kinds() -> list[tuple[str, str, list[Flag]]]:
    """Every kind of part that the command can choose: the part, the kind, its flags."""
    parts = [
        (part, kind, flags_of(cls(), (part,)))
        for part, kinds in PARTS.items()
        for kind, cls in kinds.items()
    ]
    for part, combined in COMBINED.items():
        every = combined(parts=tuple(cls() for cls in PARTS[part].values()))
        parts.append((part, typed(every), flags_of(every, (part,))))
    extras = [("extra", kind, flags_of(cls(), (kind,))) for kind, cls in EXTRAS.items()]
    return [*parts, *extras]


def all_flags() -> list[Flag]:
    """The flags of a run, whatever kinds of parts it has."""
    parts = [flag for _, _, flags in _kinds() for flag in flags]
    return list({flag.name: flag for flag in [*flags_of(PretrainConfig()), *parts]}.values())


def _check_parts(words: Words, config: PretrainConfig) -> None:
    """Raise ``ConfigError`` where a flag is of a kind of part that was not chosen."""
    known = _names(flags_of(config))
    for name in words.flags:
        if name in known:
            continue
        part = next(part for part, _, flags in _kinds() if name in _names(flags))
        others = [kind for _, kind, flags in _kinds() if name in _names(flags)]
        choose = " or ".join(f"--{part} {other}" for other in others)
        if part == "extra":
            has = " and ".join(extra.kind for extra in config.extras) or "no extras"
        else:
            own = [f"--{flag}" for flag in known if flag.startswith(f"{part}.")]
            has = (
                f"the {typed(getattr(config, part))} {part}, which has "
                f"{'the flags ' + ', '.join(own) if own else 'no flags'}"
            )
        raise ConfigError(
            f"--{name} is a flag of the {' and the '.join(others)} {part}, and this run "
            f"({config.recipe}) has {has}. Choose another: {choose}."
        )


def _names(flags: Sequence[Flag]) -> list[str]:
    return [flag.name for flag in flags]
