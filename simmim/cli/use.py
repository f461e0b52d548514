"""The commands that use a pretrained encoder, and the demo: parse, check, call."""

from collections.abc import Sequence
from typing import TypeVar

from simmim.cli import checks
from simmim.cli.arguments import parse, split, wants_help
from simmim.cli.flags import flags_of
from simmim.config.commands import (
    DemoConfig,
    EmbedConfig,
    ExportConfig,
    FinetuneConfig,
    ProbeConfig,
    ReconstructConfig,
    ReportConfig,
    VerifyConfig,
)
from simmim.errors import CheckpointError

Config = TypeVar("Config")

DEMO = """See the whole story in a few minutes, on photos that come with simmim.

It pretrains, shows what the model fills in, and measures what that was worth.
  simmim demo
  simmim demo --minutes 60        go on with the newest demo in runs/ for an hour
  simmim demo --shuffle-labels    a check: all accuracies must fall to chance

The recipe is mae with a small encoder and a light decoder, which learns faster than the default
recipe in runs this short."""

FINETUNE = """Train an encoder and a new head on labelled images.
  simmim finetune flowers/ --from runs/20261123-0712-simmim-vit_small_patch16_224
  simmim finetune photos/ --labels labels.csv --from none --model vit_tiny_patch16_224

DATA holds one folder per class; or name a CSV by --labels."""

PROBE = """Measure what frozen features are worth for telling classes apart.
  simmim probe runs/20261123-0712-simmim-vit_small_patch16_224 flowers/
  simmim probe runs/20261123-0712-simmim-vit_small_patch16_224 train/ --val test/ --protocol linear

The encoder is not trained. DATA holds one folder per class, or name a CSV by --labels."""

EMBED = """Write one feature vector per image to a file, for search, clustering, or a classifier.
  simmim embed runs/20261123-0712-simmim-vit_small_patch16_224 photos/ --out photos.parquet"""

RECONSTRUCT = """Show images, what was masked in them, and what the model filled in.
  simmim reconstruct runs/20261123-0712-simmim-vit_small_patch16_224 photo.jpg other.png"""

EXPORT = """Write an encoder for another library, load it there, and compare on real images.
  simmim export runs/20261123-0712-simmim-vit_small_patch16_224 --format timm --out mine-timm
  simmim export runs/finetuned --format onnx --normalise true --images photos/ --out mine-onnx

Where an output differs by more than a ten-thousandth of its largest value, nothing is kept and
the exit status is 1."""

REPORT = """Write a run's report.html anew from what its folder holds.
  simmim report runs/20261123-0712-simmim-vit_small_patch16_224"""


VERIFY = """Check this installation against the formulas, in about a minute.
  simmim verify

Losses, targets, masks, positions and steps are computed a second time, from the papers; masked
pixels must reach nothing; runs must not depend on how they are cut; other libraries must read what
simmim writes. The certificate goes into every report that is written on this machine. The exit
status is 1 where a check failed."""


def demo(words: Sequence[str]) -> None:
    """``simmim demo``."""
    config = _read("demo", words, DemoConfig, DEMO)
    from simmim.api import run_demo

    run_demo(config)


def finetune(words: Sequence[str]) -> None:
    """``simmim finetune DATA --from X``."""
    config = _read("finetune", words, FinetuneConfig, FINETUNE)
    if config.init_from != "none":
        checks.check_source("--from", config.init_from)
    if config.model is not None:
        checks.check_model(config.model)
    checks.check_images(config.data)
    if config.val is not None:
        checks.check_images(config.val)
    checks.check_file("--labels", config.labels)
    from simmim.api.again import was_stopped

    if not was_stopped(config):
        checks.check_new_folder(config.out)
    from simmim.api import run_finetune

    run_finetune(config)


def probe(words: Sequence[str]) -> None:
    """``simmim probe RUN DATA``."""
    config = _read("probe", words, ProbeConfig, PROBE)
    checks.check_source("RUN", config.run)
    checks.check_images(config.data)
    if config.val is not None:
        checks.check_images(config.val)
    checks.check_file("--labels", config.labels)
    from simmim.api import run_probe

    run_probe(config)


def embed(words: Sequence[str]) -> None:
    """``simmim embed RUN DATA``."""
    config = _read("embed", words, EmbedConfig, EMBED)
    checks.check_source("RUN", config.run)
    checks.check_images(config.data)
    checks.check_new_file(config.out)
    from simmim.api import run_embed

    run_embed(config)


def reconstruct(words: Sequence[str]) -> None:
    """``simmim reconstruct RUN IMAGES``."""
    config = _read("reconstruct", words, ReconstructConfig, RECONSTRUCT)
    checks.check_source("RUN", config.run)
    for images in config.images:
        checks.check_images(images)
    checks.check_new_file(config.out)
    from simmim.api import run_reconstruct

    run_reconstruct(config)


def export(words: Sequence[str]) -> None:
    """``simmim export RUN --format F --out DIR``."""
    config = _read("export", words, ExportConfig, EXPORT)
    checks.check_export(config)
    from simmim.api import run_export

    run_export(config)


def report(words: Sequence[str]) -> None:
    """``simmim report RUN``."""
    config = _read("report", words, ReportConfig, REPORT)
    if not (config.run / "config.yaml").is_file():
        raise CheckpointError(f"{config.run} is not a run folder: it has no config.yaml.")
    from simmim.api import run_report

    run_report(config)


def verify(words: Sequence[str]) -> None:
    """``simmim verify``."""
    config = _read("verify", words, VerifyConfig, VERIFY)
    if config.out is not None:
        checks.check_new_file(config.out)
    from simmim.api import run_verify

    run_verify(config)


def _read(command: str, words: Sequence[str], config: type[Config], heading: str) -> Config:
    ask_help = wants_help(words)
    found = split(command, [] if ask_help else words, flags_of(config))
    return parse(command, found, config, heading=heading, ask_help=ask_help)
