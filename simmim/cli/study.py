"""``simmim labels``: parse, check, and train several times."""

from collections.abc import Sequence

from simmim.cli import checks
from simmim.cli.arguments import read_command
from simmim.config.studies import LabelsConfig

LABELS = """How many labels is pretraining worth? The same task from RUN and from scratch.
  simmim labels flowers/ --from runs/20261123-0712-simmim-vit_small_patch16_224
  simmim labels flowers/ --from RUN --against timm:vit_tiny_patch16_224 --counts 50,200,800
  simmim labels flowers/ --from RUN --protocol linear       frozen features: minutes, not hours

DATA holds one folder per class; or name a CSV by --labels. It says beforehand how long it takes.
What was stopped goes on with the same command and --out."""

def labels(words: Sequence[str]) -> None:
    """``simmim labels DATA --from RUN``."""
    config = read_command("labels", words, LabelsConfig, LABELS)
    for flag, source in (("--from", config.init_from), *(("--against", s) for s in config.against)):
        checks.check_source(flag, source)
    checks.check_images(config.data)
    if config.val is not None:
        checks.check_images(config.val)
    checks.check_file("--labels", config.labels)
    from simmim.api.labels import run_labels

    run_labels(config)
