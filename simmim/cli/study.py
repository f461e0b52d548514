"""``simmim labels`` and ``simmim study``: parse, check, and train several times."""

from collections.abc import Sequence

from simmim.cli import checks
from simmim.cli.arguments import Words, parse, split, wants_help
from simmim.cli.finetune import TASK
from simmim.cli.flags import flags_of
from simmim.cli.parts import all_flags, check_parts
from simmim.cli.pretrain import CHOICES, parse_pretrain
from simmim.config.kinds import pick
from simmim.config.run import PretrainConfig
from simmim.config.studies import LABEL_STUDIES, LabelsConfig, StudyConfig
from simmim.errors import ConfigError

LABELS = """How many labels is pretraining worth? The same task from RUN and from scratch.
  simmim labels flowers/ --from runs/20261123-0712-simmim-vit_small_patch16_224
  simmim labels flowers/ --from RUN --against timm:vit_tiny_patch16_224 --counts 50,200,800
  simmim labels flowers/ --from RUN --protocol linear       frozen features: minutes, not hours
  simmim labels camvid/ --task segment --from RUN           labels are images with masks

DATA is as for simmim finetune: one folder per class, or a CSV named by --labels; masks; boxes. It
says beforehand how long it takes. What was stopped goes on with the same command and --out."""

STUDY = """Which value of a setting learns best on your images? Short runs of equal compute.
  simmim study photos/
  simmim study photos/ --over patch_size=8,16 --recipe simmim-fast --budget 2h
  simmim study photos/ --over recipe=simmim,simmim-fast,mae --labels labels.csv

All other flags are those of simmim pretrain. With labels it measures what the features are worth,
and recommends; without, only how hard the task was. What was stopped goes on with the same command
and --out."""

KEPT = ("epochs", "resume")
"""Flags of pretrain that have no place in a study, which counts the steps by their compute."""


def labels(words: Sequence[str]) -> None:
    """``simmim labels DATA --from RUN``."""
    config = parse_labels(words)
    for flag, source in (("--from", config.init_from), *(("--against", s) for s in config.against)):
        checks.check_source(flag, source)
    checks.check_images(config.data)
    if config.val is not None:
        checks.check_images(config.val)
    checks.check_file("--labels", config.labels)
    from simmim.api.labels import run_labels

    run_labels(config)


def parse_labels(words: Sequence[str]) -> LabelsConfig:
    """What the words after ``simmim labels`` ask for.

    Raises:
        ConfigError: They do not say one study.
    """
    ask_help = wants_help(words)
    words = [word for word in words if word not in ("-h", "--help")]
    found = split("labels", words, [TASK, *all_flags(LABEL_STUDIES.values())])
    kind = pick("task", found.flags.pop("task", "classify"), LABEL_STUDIES)
    study = LABEL_STUDIES[kind]
    check_parts(found, study, f"--task {kind}")
    return parse("labels", found, study, heading=LABELS, extra=[TASK], ask_help=ask_help)


def study(words: Sequence[str]) -> None:
    """``simmim study DATA --over FLAG=VALUES``."""
    config, runs = parse_study(words)
    for run in runs.values():
        checks.check_pretrain(run)
        for source in run.data:
            checks.check_images(source)
    from simmim.api.study import run_study

    run_study(config, runs)


def parse_study(words: Sequence[str]) -> tuple[StudyConfig, dict[str, PretrainConfig]]:
    """What the words after ``simmim study`` ask for: the study, and a run for each value.

    Raises:
        ConfigError: They do not say one study.
    """
    ask_help, own = wants_help(words), flags_of(StudyConfig)
    names = {flag.name for flag in own}
    others = [flag for flag in [*CHOICES, *all_flags([PretrainConfig()])] if flag.name not in names]
    found = split("study", [] if ask_help else words, [*own, *others])
    mine = {name: value for name, value in found.flags.items() if name in names}
    config = parse("study", Words(mine, []), StudyConfig, heading=STUDY, ask_help=ask_help)
    for name in KEPT:
        if name in found.flags or config.setting == name:
            raise ConfigError(
                f"--{name} has no place in a study, whose runs have equal compute; --steps or "
                "--budget say how long they are."
            )
    if not found.places and "data" not in found.flags:
        raise ConfigError("no images given: simmim study DATA, where DATA is a folder of images.")
    if config.setting in names or config.setting in found.flags:
        raise ConfigError(
            f"--over {config.setting} is what the study is over, or a flag of its own; give "
            f"--{config.setting} no other value, or study another flag."
        )
    rest = [f"--{name}={value}" for name, value in found.flags.items() if name not in names]
    runs = {}
    for value in config.values:
        run = parse_pretrain([*rest, f"--{config.setting}={value}", "--", *found.places], "study")
        assert isinstance(run, PretrainConfig)
        runs[value] = run
    return config, runs
