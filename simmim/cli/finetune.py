"""``simmim finetune``: choose the task, then parse, check, and fine-tune or go on."""

from collections.abc import Sequence

from simmim.cli import checks
from simmim.cli.arguments import parse, split, wants_help
from simmim.cli.flags import Flag
from simmim.cli.parts import all_flags, check_parts, one_of
from simmim.cli.resume import RESUME, Resume, parse_resume
from simmim.config.finetune import FINETUNINGS, FinetuneConfig
from simmim.config.kinds import pick
from simmim.config.presets import NAMES, check_start, preset_named

HEADING = """Train an encoder and a new head on labelled images.
  simmim finetune flowers/ --from runs/20261123-0712-simmim-vit_small_patch16_224
  simmim finetune photos/ --labels labels.csv --from none --model vit_tiny_patch16_224
  simmim finetune instances_train.json --task detect --from RUN --val instances_val.json
  simmim finetune --resume runs/20261124-1340-finetune-vit_tiny_patch16_224

DATA holds one folder per class; or name a CSV by --labels. For --task multilabel a cell may hold
several names, a|b, and for --task regress a number. For --task segment DATA has masks: folders of
images and masks side by side, COCO's json, or a table. For --task detect it has boxes: COCO's json,
YOLO's data.yaml, or Pascal VOC's folder."""

TASK = Flag("task", ("task",), one_of(FINETUNINGS), "What the new head answers.", "classify")
CHOICES = [
    TASK,
    Flag(
        "preset",
        ("preset",),
        one_of(NAMES),
        "Published settings to begin with: of ImageNet, or by --task of ADE20K or COCO.",
        None,
    ),
    RESUME,
]
"""The flags that decide which other flags there are."""


def run(words: Sequence[str]) -> None:
    """Parse, check, and fine-tune or go on."""
    request = parse_finetune(words)
    from simmim.api.finetune import run_finetune, run_resume

    if isinstance(request, Resume):
        run_resume(request.run, request.changes)
        return
    check(request)
    run_finetune(request)


def parse_finetune(words: Sequence[str]) -> FinetuneConfig | Resume:
    """What the words after ``simmim finetune`` ask for.

    Raises:
        ConfigError: They do not say one run.
    """
    ask_help = wants_help(words)
    words = [word for word in words if word not in ("-h", "--help")]
    found = split("finetune", words, [*CHOICES, *all_flags(FINETUNINGS.values())])
    if "resume" in found.flags and not ask_help:
        return parse_resume("finetune", found)
    task = pick("task", found.flags.pop("task", "classify"), FINETUNINGS)
    found.flags.pop("resume", None)
    preset = found.flags.pop("preset", None)
    more = {"heading": HEADING, "extra": CHOICES, "ask_help": ask_help}
    if preset is None:
        check_parts(found, FINETUNINGS[task], f"--task {task}")
        return parse("finetune", found, FINETUNINGS[task], **more)
    begun = preset_named(preset, task)
    check_parts(found, begun, f"--preset {preset}")
    return check_start(parse("finetune", found, begun, **more))


def check(config: FinetuneConfig) -> None:
    """Check what a run names; the images themselves are checked as it starts.

    Raises:
        SimmimError: Something is unknown, missing or taken.
    """
    if config.init_from == "none":
        checks.check_model(config.encoder.model)
    else:
        checks.check_source("--from", config.init_from)
    for source in config.sources:
        checks.check_images(source)
    checks.check_file("--labels", config.labels)
