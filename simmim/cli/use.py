"""The commands that use an encoder, and the demo: parse, check, call."""

from collections.abc import Sequence
from pathlib import Path

from simmim.cli import checks
from simmim.cli.arguments import read_command
from simmim.config.commands import (
    DemoConfig,
    DoctorConfig,
    EmbedConfig,
    ExportConfig,
    HealthConfig,
    PickConfig,
    PredictConfig,
    ProbeConfig,
    ReconstructConfig,
    ReportConfig,
    VerifyConfig,
)
from simmim.errors import CheckpointError

DEMO = """See the whole story in a few minutes, on photos that come with simmim.

It pretrains, shows what the model fills in, and measures what that was worth.
  simmim demo
  simmim demo --minutes 60        go on with the newest demo in runs/ for an hour
  simmim demo --shuffle-labels    a check: all accuracies must fall to chance

The recipe is mae with a small encoder and a light decoder, which learns faster than the default
recipe in runs this short."""

PROBE = """Measure what frozen features are worth for telling classes apart.
  simmim probe runs/20261123-0712-simmim-vit_small_patch16_224 flowers/
  simmim probe runs/20261123-0712-simmim-vit_small_patch16_224 train/ --val test/ --protocol all
  simmim probe runs/20261123-0712-simmim-vit_small_patch16_224 camvid/ --task segment

The encoder is not trained. DATA holds one folder per class, or name a CSV by --labels. k-NN and
linear understate what masked models know; attentive does less so. For --task segment DATA has
images and masks, and the patches tell the class of each pixel."""

EMBED = """Write one feature vector per image to a file, for search, clustering, or a classifier.
  simmim embed runs/20261123-0712-simmim-vit_small_patch16_224 photos/ --out photos.parquet
  simmim embed runs/20261123-0712-simmim-vit_small_patch16_224 photos/ --out vectors

A folder takes any number of images: it is written part by part, and the same command goes on where
it was stopped."""

PREDICT = """Write what a fine-tuned run says of images: classes and probabilities, masks, boxes.
  simmim predict runs/20261123-0712-finetune-from-mine photos/ --out photos.csv
  simmim predict runs/one photos/ --also runs/two --also runs/three --out photos.parquet
  simmim predict runs/one photos/ --out predictions
  simmim predict runs/segmenter photos/ --out segmented
  simmim predict runs/detector annotations/instances_test.json --out found.json

A folder takes any number of images: it is written part by part, and the same command goes on where
it was stopped. A segmenter writes masks/NAME.png and overlays/NAME.png there, a detector
predictions.json, COCO's results, and overlays/NAME.png; to a .json these results alone."""

PICK = """Choose the images to label next: a few that stand for all the others.
  simmim pick photos/ --from runs/20261123-0712-simmim-vit_small_patch16_224 --n 200
  simmim pick photos/ --from RUN --labels labels.csv --n 50      what is labelled is kept in mind
  simmim pick photos/ --from runs/finetuned --hardest --n 50

It writes a list with an empty column of labels, and a contact sheet. Filled in, the list is what
--labels takes."""

RECONSTRUCT = """Show images, what was masked in them, and what the model filled in.
  simmim reconstruct runs/20261123-0712-simmim-vit_small_patch16_224 photo.jpg other.png"""

EXPORT = """Write an encoder for another library, load it there, and compare on real images.
  simmim export runs/20261123-0712-simmim-vit_small_patch16_224 --format timm --out mine-timm
  simmim export runs/finetuned --format onnx --normalise true --images photos/ --out mine-onnx

Where an output differs by more than a ten-thousandth of its largest value, nothing is kept and
the exit status is 1."""

HEALTH = """Is a pretraining healthy? A verdict in a sentence, and the command to go on with.
  simmim health RUN
  simmim health RUN --json

It reads what the run's folder says, while the run is going on too: features that collapse, patches
that are blank, steps that were skipped, too little training, waiting for images."""

REPORT = """Write a run's report.html anew from what its folder holds.
  simmim report runs/20261123-0712-simmim-vit_small_patch16_224"""

DOCTOR = """Look at the machine and what is installed, and say what is wrong and the way out.
  simmim doctor
  simmim doctor photos/        times reading the images, too
  simmim doctor /disk/runs     times writing there, in place of runs/

The exit status is 1 where something is bad, 0 otherwise, warnings included."""

VERIFY = """Check this installation against the formulas, in about a minute.
  simmim verify

Losses, targets, masks, positions and steps are computed a second time, from the papers; masked
pixels must reach nothing; runs must not depend on how they are cut; other libraries must read what
simmim writes. The certificate goes into every report that is written on this machine. The exit
status is 1 where a check failed."""


def demo(words: Sequence[str]) -> None:
    """``simmim demo``."""
    config = read_command("demo", words, DemoConfig, DEMO)
    from simmim.api.demo import run_demo

    run_demo(config)


def probe(words: Sequence[str]) -> None:
    """``simmim probe RUN DATA``."""
    config = read_command("probe", words, ProbeConfig, PROBE)
    checks.check_source("RUN", config.run)
    checks.check_images(config.data)
    if config.val is not None:
        checks.check_images(config.val)
    checks.check_file("--labels", config.labels)
    checks.check_file("--classes", config.classes)
    from simmim.api.probe import run_probe

    run_probe(config)


def embed(words: Sequence[str]) -> None:
    """``simmim embed RUN DATA``."""
    config = read_command("embed", words, EmbedConfig, EMBED)
    checks.check_source("RUN", config.run)
    checks.check_images(config.data)
    _check_out(config.out)
    from simmim.api.embed import run_embed

    run_embed(config)


def predict(words: Sequence[str]) -> None:
    """``simmim predict RUN DATA``."""
    config = read_command("predict", words, PredictConfig, PREDICT)
    for run in (config.run, *config.also):
        checks.check_source("RUN", run)
    checks.check_images(config.data)
    _check_out(config.out)
    from simmim.api.predict import run_predict

    run_predict(config)


def _check_run(run: Path) -> None:
    """Raise ``CheckpointError`` where there is no run folder."""
    if not (run / "config.yaml").is_file():
        raise CheckpointError(f"{run} is not a run folder: it has no config.yaml.")


def _check_out(out: Path) -> None:
    """Raise ``ConfigError`` where a file to write exists; a folder may be gone on with."""
    if out.suffix:
        checks.check_new_file(out)


def pick(words: Sequence[str]) -> None:
    """``simmim pick DATA --from RUN``."""
    config = read_command("pick", words, PickConfig, PICK)
    checks.check_source("--from", config.init_from)
    checks.check_images(config.data)
    if config.labels is not None and not config.labels.is_dir():
        checks.check_file("--labels", config.labels)
    for file in (config.out, config.sheet):
        checks.check_new_file(file)
    from simmim.api.pick import run_pick

    run_pick(config)


def reconstruct(words: Sequence[str]) -> None:
    """``simmim reconstruct RUN IMAGES``."""
    config = read_command("reconstruct", words, ReconstructConfig, RECONSTRUCT)
    checks.check_source("RUN", config.run)
    for images in config.images:
        checks.check_images(images)
    checks.check_new_file(config.out)
    from simmim.api.reconstruct import run_reconstruct

    run_reconstruct(config)


def export(words: Sequence[str]) -> None:
    """``simmim export RUN --format F --out DIR``."""
    config = read_command("export", words, ExportConfig, EXPORT)
    checks.check_export(config)
    from simmim.api.export import run_export

    run_export(config)


def health(words: Sequence[str]) -> None:
    """``simmim health RUN``."""
    config = read_command("health", words, HealthConfig, HEALTH)
    _check_run(config.run)
    from simmim.api.health import run_health

    run_health(config)


def report(words: Sequence[str]) -> None:
    """``simmim report RUN``."""
    config = read_command("report", words, ReportConfig, REPORT)
    _check_run(config.run)
    from simmim.api.report import run_report

    run_report(config)


def doctor(words: Sequence[str]) -> None:
    """``simmim doctor``."""
    config = read_command("doctor", words, DoctorConfig, DOCTOR)
    from simmim.api.doctor import run_doctor

    run_doctor(config)


def verify(words: Sequence[str]) -> None:
    """``simmim verify``."""
    config = read_command("verify", words, VerifyConfig, VERIFY)
    if config.out is not None:
        checks.check_new_file(config.out)
    from simmim.api.verify import run_verify

    run_verify(config)
