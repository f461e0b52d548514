"""What every command that trains nothing is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simmim.config.checks import check_fraction, check_positive
from simmim.config.kinds import pick
from simmim.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Measure what frozen features are worth for telling classes apart."""

    run: str
    """A run, a file of weights, a folder of timm or transformers, timm:NAME or hf:REPO."""
    data: str
    """Images: a folder with one folder per class, shards or a table; or any with `--labels`."""
    task: Literal["classify", "segment"] = "classify"
    """What is told apart: images, by the class of each; or pixels, by masks."""
    protocol: Literal["knn", "linear", "attentive", "fewshot", "all"] = "knn"
    """Vote of the nearest neighbours, logistic regression, a learned query over the patches, or
    logistic regression on 1 to 25 labels of each class; of pixels, the first two alone."""
    layers: Literal["last", "all"] = "last"
    """Measure the encoder's output, or each of its blocks too, and say which is best."""
    labels: Path | None = None
    """CSV or JSONL with a path and a label column; default: the folder an image lies in."""
    classes: Path | None = None
    """Of pixels: JSON or CSV with the names of the classes; default: a list beside the folders."""
    ignore: int | None = None
    """Of pixels: a value of the masks that means no class, beside what the list says."""
    val: str | None = None
    """Images to measure on; default: a share of DATA."""
    train_share: float = 0.8
    """Share of DATA to learn from where `--val` is not given; between 0 and 1."""
    k: int = 20
    """Neighbours that vote."""
    seed: int = 0
    """Seed of the split, the draws, and the random encoder."""
    batch_size: int = 64
    """Images per forward pass."""
    workers: int | None = None
    """Loader processes; default: by the number of cores."""

    def __post_init__(self) -> None:
        _positive(self, "k", "batch_size")
        _positive(self, "workers", "seed", zero=True)
        check_fraction(
            "--train-share", self.train_share, "a share of the images", "The default: 0.8."
        )
        pixels = self.task == "segment"
        if pixels and self.protocol in ("attentive", "fewshot"):
            raise ConfigError(
                f"--protocol {self.protocol} tells whole images apart; for --task segment there "
                "are knn, linear and all, both of them."
            )
        if pixels and self.labels is not None:
            raise ConfigError(
                "--labels gives classes of whole images; --task segment takes masks (masks/ beside "
                "images/, COCO's json, a table), and --classes names the classes."
            )
        if not pixels and (self.classes is not None or self.ignore is not None):
            raise ConfigError("--classes and --ignore say what masks mean, for --task segment.")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Write one feature vector per image."""

    run: str
    """A run, a file of weights, a folder of timm or transformers, timm:NAME or hf:REPO."""
    data: str
    """Images: a folder, a zip or tar file, shards, a table, a URL."""
    out: Path = Path("embeddings.parquet")
    """File to write, .parquet or .npz, never overwritten; or a folder for Parquet parts, which are
    gone on with."""
    batch_size: int = 64
    """Images per forward pass."""
    workers: int | None = None
    """Loader processes; default: by the number of cores."""
    engine: Literal["local", "ray"] = "local"
    """What makes the parts of a folder: this process, or a Ray cluster."""

    def __post_init__(self) -> None:
        _positive(self, "batch_size")
        _positive(self, "workers", zero=True)
        _check_ending(self.out, ".parquet", ".npz")
        _check_engine(self.engine, self.out)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Use what a fine-tuning made."""

    run: str
    """Folder of a run of `simmim finetune`."""
    data: str
    """Images: a folder, a zip or tar file, shards, a table, a URL; COCO's json."""
    out: Path
    """File to write, .csv or .parquet, for boxes .json, never overwritten; or a folder, for Parquet
    parts or, of pixels or boxes, overlays too, which is gone on with."""
    also: tuple[str, ...] = ()
    """Further runs of the same classes: probabilities are averaged."""
    batch_size: int = 64
    """Images per forward pass."""
    workers: int | None = None
    """Loader processes; default: by the number of cores."""
    engine: Literal["local", "ray"] = "local"
    """What makes the parts of a folder: this process, or a Ray cluster."""

    def __post_init__(self) -> None:
        _positive(self, "batch_size")
        _positive(self, "workers", zero=True)
        _check_engine(self.engine, self.out)


@dataclass(frozen=True, kw_only=True)
class PickConfig:
    """Choose the images to label next."""

    data: str
    """Images: a folder, a zip or tar file, shards, a table, a URL."""
    init_from: str
    """A run, a file of weights, a folder of timm or transformers, timm:NAME or hf:REPO."""
    n: int = 100
    """Images to choose."""
    labels: Path | None = None
    """What has labels: CSV or JSONL of images of DATA, or a folder or archive of other images."""
    hardest: bool = False
    """Choose among those of which a classifier is least sure, or which RUN fills in worst."""
    out: Path = Path("pick.csv")
    """List to write, .csv or .jsonl, with a contact sheet, .png, beside. Never overwritten."""
    seed: int = 0
    """Seed of the choice."""
    batch_size: int = 64
    """Images per forward pass."""
    workers: int | None = None
    """Loader processes; default: by the number of cores."""

    def __post_init__(self) -> None:
        _positive(self, "n", "batch_size")
        _positive(self, "workers", "seed", zero=True)
        if self.out.suffix not in (".csv", ".jsonl"):
            raise ConfigError(f"--out must end in .csv or .jsonl, got {self.out}.")

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self.out.with_suffix(".png")


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """Show images, what was masked in them, and what the model filled in."""

    run: str
    """A run, a file of weights, a folder of timm or transformers, timm:NAME or hf:REPO."""
    images: tuple[str, ...]
    """Image files, or folders or archives of them."""
    out: Path = Path("reconstruction.png")
    """Picture to write. Never overwritten."""
    seed: int = 0
    """Seed of the masks."""

    def __post_init__(self) -> None:
        _positive(self, "seed", zero=True)
        if self.out.suffix != ".png":
            raise ConfigError(f"--out must end in .png, got {self.out}.")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write an encoder for another library, which then loads it and is compared."""

    run: str
    """A run, a file of weights, a folder of timm or transformers, timm:NAME or hf:REPO."""
    format: Literal["timm", "hf", "onnx", "safetensors", "torch"]
    """What to write: for timm, transformers, onnxruntime, any reader, or torch.export."""
    out: Path
    """Folder to write. Never overwritten."""
    compare_on: str | None = None
    """Images to compare on; default: those that the run held out."""
    normalise: bool = False
    """Put the normalisation inside (onnx, torch): it then takes decoded values as float."""
    licence: str | None = None
    """What the model card says of the weights' licence; default: as the weights tell."""

    def __post_init__(self) -> None:
        if self.normalise and self.format not in ("onnx", "torch"):
            raise ConfigError(
                f"--normalise puts the normalisation inside a graph, and --format {self.format} "
                "writes none: its files tell the reader how to normalise. Leave it out, or use "
                "--format onnx or torch."
            )


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Pretrain on photos that come with simmim, and measure what it was worth."""

    out: Path | None = None
    """Folder for the results; default: runs/DATE-demo. One with a demo in it is gone on with."""
    minutes: float | None = None
    """Minutes to pretrain for, further where there is a finished demo; default: a new demo, 3.5."""
    seed: int = 0
    """Seed of every random number."""
    draws: int = 3
    """How often the labelled photos are drawn anew, to show the spread."""
    shuffle_labels: bool = False
    """Shuffle the labels before measuring: a check, all accuracies must fall to chance."""

    def __post_init__(self) -> None:
        _positive(self, "draws", "minutes")
        _positive(self, "seed", zero=True)


HARDWARE = {
    "h200": 989,
    "h100": 989,
    "a100": 312,
    "l40s": 362,
    "l4": 121,
    "v100": 125,
    "t4": 65,
    "rtx4090": 165,
    "rtx3090": 71,
}
"""Peaks that NVIDIA states for dense matrix products in bfloat16, or float16, in TFLOP/s."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Tell what a run will take before it is begun."""

    json: Path | None = None
    """File for the same figures as JSON. An earlier one is replaced."""
    on: str | None = None
    """Other hardware to tell the time for too, by its stated peak: h100, a100, l4, t4, …"""
    seconds: float = 15.0
    """Seconds to train for, about."""

    def __post_init__(self) -> None:
        _positive(self, "seconds")
        if self.on is not None:
            pick("on", self.on, HARDWARE)
        if self.json is not None and self.json.suffix != ".json":
            raise ConfigError(f"--json must end in .json, got {self.json}.")


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """Judge a pretraining by what its folder says."""

    run: Path
    """Folder of a run."""
    json: bool = False
    """Print the verdict and its figures as JSON instead."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write a run's report.html anew from what its folder holds."""

    run: Path
    """Folder of a run."""


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """List the runs in a folder, and how each of them stands."""

    folder: Path = Path("runs")
    """Folder that holds runs, or folders of them."""
    json: bool = False
    """Print the same as JSON."""


@dataclass(frozen=True, kw_only=True)
class RunsBestConfig:
    """Name the best run in a folder, of each task and data set."""

    folder: Path = Path("runs")
    """Folder that holds runs, or folders of them."""
    by: str | None = None
    """Figure that decides, as named in metrics.jsonl; default: the main one of the task."""
    json: bool = False
    """Print the same as JSON."""


@dataclass(frozen=True, kw_only=True)
class RunsDiffConfig:
    """Show where two runs differ."""

    run: Path
    """Folder of a run."""
    other: Path
    """Folder of another run."""
    json: bool = False
    """Print the same as JSON."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Look at the machine and what is installed, and say what is wrong."""

    data: str | None = None
    """Images, to read some; or a folder of runs, or an empty one, to write to; default: runs."""
    json: bool = False
    """Print the same as JSON."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check this installation against the formulas, and keep the certificate."""

    out: Path | None = None
    """A further copy of the certificate, .json. Never overwritten."""
    seed: int = 0
    """Seed of the images, masks and weights that are checked on."""

    def __post_init__(self) -> None:
        _positive(self, "seed", zero=True)
        if self.out is not None and self.out.suffix != ".json":
            raise ConfigError(f"--out must end in .json, got {self.out}.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_engine(engine: str, out: Path) -> None:
    """Raise ``ConfigError`` where Ray is asked for, but nothing that it could make in parts."""
    if engine == "ray" and out.suffix:
        raise ConfigError(
            f"--engine ray makes the parts of a folder: give an --out without an ending, not {out}."
        )


def _check_ending(out: Path, *endings: str) -> None:
    """Raise ``ConfigError`` unless ``out`` has one of the endings, or none: then it is a folder."""
    if out.suffix not in ("", *endings):
        raise ConfigError(
            f"--out must end in {' or '.join(endings)}, or name a folder without an ending, got "
            f"{out}."
        )


def _positive(config: object, *names: str, zero: bool = False) -> None:
    """Raise ``ConfigError`` where a field is neither None nor above 0 (or 0, with ``zero``)."""
    for name in names:
        value = getattr(config, name)
        if value is not None:
            check_positive(_flag(name), value, zero=zero)
