"""``simmim plan``: parse what a run would be asked, and tell what it will take."""

from collections.abc import Sequence

from simmim.cli import finetune
from simmim.cli.arguments import Words, parse, split, wants_help
from simmim.cli.checks import check_pretrain
from simmim.cli.flags import Flag, flags_of
from simmim.cli.parts import all_flags
from simmim.cli.pretrain import CHOICES, parse_pretrain
from simmim.cli.resume import Resume
from simmim.config.commands import PlanConfig
from simmim.config.finetune import FINETUNINGS, FinetuneConfig
from simmim.config.run import PretrainConfig
from simmim.errors import ConfigError

HEADING = """What will a run take? Time, memory, disk, by training for some seconds.
  simmim plan photos/
  simmim plan photos/ --model vit_base_patch16_224 --epochs 400 --on h100
  simmim plan photos/ --budget 10h --json plan.json
  simmim plan flowers/ --task classify --from RUN          of simmim finetune

All other flags are those of simmim pretrain, or with --task those of simmim finetune. Nothing of
it is kept: the folder that it trains in is removed."""


def run(words: Sequence[str]) -> None:
    """``simmim plan DATA``."""
    asked, request, command = parse_plan(words)
    if isinstance(request, PretrainConfig):
        check_pretrain(request)
        from simmim.api.plan import run_plan
        from simmim.api.pretrain import Pretraining

        run_plan(Pretraining, request, asked, command)
    else:
        finetune.check(request)
        from simmim.api.finetune import Finetuning
        from simmim.api.plan import run_plan

        run_plan(Finetuning, request, asked, command)


def parse_plan(
    words: Sequence[str],
) -> tuple[PlanConfig, PretrainConfig | FinetuneConfig, list[str]]:
    """What the words after ``simmim plan`` ask for, the run, and the command that begins it.

    Raises:
        ConfigError: They do not say one run.
    """
    ask_help, own = wants_help(words), {flag.name for flag in flags_of(PlanConfig)}
    found = split("plan", [] if ask_help else words, _flags())
    mine = {name: value for name, value in found.flags.items() if name in own}
    asked = parse("plan", Words(mine, []), PlanConfig, heading=HEADING, ask_help=ask_help)
    if "resume" in found.flags:
        raise ConfigError("a run that has begun says itself how long it takes: leave --resume out.")
    flags = [f"--{name}={value}" for name, value in found.flags.items() if name not in own]
    rest = [*flags, "--", *found.places]
    request = (
        finetune.parse_finetune(rest) if "task" in found.flags else parse_pretrain(rest, "plan")
    )
    assert not isinstance(request, Resume)
    return asked, request, ["simmim", request.command, *found.places, *flags]


def _flags() -> list[Flag]:
    """All flags: its own, those of pretrain, and those of finetune."""
    flags = [*flags_of(PlanConfig), *CHOICES, *all_flags([PretrainConfig()])]
    flags += [*finetune.CHOICES, *all_flags(FINETUNINGS.values())]
    return list({flag.name: flag for flag in reversed(flags)}.values())
