"""What can be told before torch is imported, so that a mistake is answered at once."""

import os
import re
from pathlib import Path

from simmim.config.commands import ExportConfig
from simmim.config.encoder import EncoderConfig
from simmim.config.models import TIMM, find, suggest
from simmim.config.run import PretrainConfig, check_grid
from simmim.errors import ConfigError
from simmim.runs.files import check_can_write


def check_pretrain(config: PretrainConfig) -> None:
    """Check the model, sizes, and files that a run names; the images are checked as it starts.

    Raises:
        ConfigError: Something is unknown, missing, or does not fit the rest.
    """
    if config.init_from is None:
        check_encoder(config)
    else:
        check_source("--from", config.init_from)  # which brings the encoder
    check_file("--labels", config.labels)


def check_encoder(config: PretrainConfig) -> None:
    """Check the model's name, and that mask, decoder, and image size fit it.

    Raises:
        ConfigError: Unknown name, an encoder that cannot leave patches out, or sizes that do not
            fit each other.
    """
    encoder = config.encoder
    check_model(encoder.model)
    model = find(encoder.model)
    if model is None:
        return
    if model.whole and config.decoder.reads == "visible":
        raise ConfigError(
            f"{encoder.model} needs all patches of an image, and the {config.decoder.kind} decoder "
            "hides the masked ones from the encoder. Use --recipe simmim-paper-swin, or "
            "--decoder linear."
        )
    patch = encoder.patch_size or model.patch
    stride = patch * model.stride // model.patch
    check_grid(_image_size(encoder, model.size), stride, config.mask.unit)


def check_model(name: str) -> None:
    """Raise ``ConfigError`` where the installed timm has no such encoder, naming the nearest."""
    from importlib.metadata import version

    # Another release of timm may know more names than the table; building asks timm itself.
    if find(name) is None and version("timm") == TIMM:
        near = suggest(name)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(
            f"{name!r} is not a timm model that simmim supports.{hint} All of them: simmim models"
        )


def check_source(flag: str, source: str) -> None:
    """Raise ``ConfigError`` unless ``source`` exists, or is ``timm:NAME`` or ``hf:REPO``."""
    if source.startswith("timm:"):
        check_model(source.removeprefix("timm:"))
    elif source.startswith("hf:"):
        if not re.fullmatch(r"hf:[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", source):
            raise ConfigError(f"{flag} {source}: write hf:OWNER/NAME, or hf:OWNER/NAME@REVISION.")
    elif not Path(source).exists():
        raise ConfigError(
            f"{flag} {source}: there is no such run or file. Give the folder of a run, a file of "
            "weights, timm:NAME or hf:REPO."
        )


EXTRAS = {"hf": ("transformers",), "onnx": ("onnx", "onnxruntime", "onnxscript")}
"""What a format of ``export`` needs beyond simmim's own dependencies; the extra has its name."""


def check_export(config: ExportConfig) -> None:
    """Check the source, the folder to write, the images, and that the other library is there.

    Raises:
        ConfigError: One of them is missing or taken.
    """
    from importlib.util import find_spec

    check_source("RUN", config.run)
    missing = [name for name in EXTRAS.get(config.format, ()) if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--format {config.format} needs {' and '.join(missing)}: "
            f"pip install 'simmim[{config.format}]'"
        )
    if config.compare_on is not None:
        check_images(config.compare_on)
    elif not (Path(config.run) / "images.json").is_file():
        raise ConfigError(
            f"{config.run} does not say which images to compare on, as the folder of a pretraining "
            "run does. Name a folder of real images by --images."
        )
    check_new_folder(config.out)


def check_images(data: str | Path) -> None:
    """Raise ``DataError`` unless ``data`` is a source of images; a folder must hold one.

    What is in an archive or behind a URL is told when it is listed.
    """
    from simmim.data.formats.endings import ARCHIVES, EXTENSIONS
    from simmim.data.sources.places import check_exists, is_elsewhere

    text = str(data)
    if is_elsewhere(text) or "{" in text:
        return
    check_exists(data)
    # Stops at the first image; only where there is none, all is searched to say what there is.
    for _, _, names in os.walk(data):
        for name in names:
            ending = Path(name).suffix.lower()
            if not name.startswith(".") and (ending in EXTENSIONS or ending in ARCHIVES):
                return
    if Path(data).is_dir():
        from simmim.data.sources.find import find_images

        find_images(data)


def check_file(flag: str, file: Path | None) -> None:
    """Raise ``ConfigError`` where a file was named that does not exist."""
    if file is not None and not file.is_file():
        raise ConfigError(f"{flag} {file}: there is no such file.")


def check_new_file(file: Path) -> None:
    """Raise ``ConfigError`` where ``file`` exists or cannot be made."""
    if file.exists():
        raise ConfigError(
            f"{file} exists and is not overwritten. Choose another --out, or delete it."
        )
    check_can_write(file)


def check_new_folder(folder: Path | None) -> None:
    """Raise ``ConfigError`` where ``folder`` holds a run or anything else."""
    from simmim.runs.folder import check_free
    from simmim.training.launch import leads

    # Another process of the same start may have made the folder already.
    if folder is not None and leads():
        check_free(folder)


def _image_size(encoder: EncoderConfig, side: int) -> tuple[int, int]:
    return encoder.image_size or (side, side)
