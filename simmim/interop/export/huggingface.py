"""Hugging Face transformers: a folder that ``AutoModel`` and its pretraining class both open.

A plain ViT with MAE's decoder is written with ``model_type`` "vit" and weights named as
``ViTMAEForPreTraining`` has them; config.json has the decoder's fields beside the encoder's. With
transformers 4.57 and 5.24 alike, ``AutoModel`` then gives a ``ViTModel``: the features of the whole
image, always the same, the class token first. It misses no weight and reports the decoder's as
unused. ``ViTMAEForPreTraining.from_pretrained`` takes encoder and decoder from the same folder,
remarks that it is of type "vit", and misses none. With ``model_type`` "vit_mae" instead,
``AutoModel`` gives a ``ViTMAEModel``, which leaves out a random 75 % of the patches and shuffles
the rest: not what anyone wants who asks for features.

``ViTModel`` has a pooler, which would start from random weights. An identity is written for it, so
that ``pooler_output`` is the class token; ``ViTMAEForPreTraining`` reports that one as unused.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.data.audit.scaling import range_in_words
from simmim.data.formats.decode import is_eight_bit
from simmim.errors import ConfigError
from simmim.interop.export.check import difference
from simmim.interop.export.huggingface_forms import form_of
from simmim.interop.layouts.huggingface import OWN
from simmim.models.encoder import Encoder
from simmim.models.mim import MaskedImageModel
from simmim.runs.files import share, write_text
from simmim.targets.pixels import Pixels, Target
from simmim.tensors.mask import Mask
from simmim.tensors.patches import patchify

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
CARD = "README.md"


def write_huggingface(
    folder: Path,
    model: MaskedImageModel | None,
    encoder: Encoder,
    pixels: PixelFormat,
    *,
    config: PretrainConfig | None,
    card: str,
    classes: Sequence[str] | None = None,
    head: nn.Linear | None = None,
    licence: str | None = None,
) -> list[str]:
    """Write what ``save_pretrained`` of a model and of its image processor would.

    Args:
        folder: It need not exist.
        model: Encoder and decoder; None: the encoder alone.
        encoder: That of ``model``.
        pixels: How decoded values are normalised.
        config: Of the run, for its mask.
        card: Text of README.md.
        classes: Names of the outputs of ``head``.
        head: Of a classifier, on the mean of the patch tokens.
        licence: Of the weights, for who reads the folder back.

    Returns:
        What could not be written as it is, a line each: such as a decoder that transformers has
        no class for.

    Raises:
        ConfigError: transformers has no class for the encoder, or none that classifies as ours.
    """
    form = form_of(encoder, model, head, classes)
    own: dict[str, Any] = {"pixels": asdict(pixels)}
    own |= {} if licence is None else {"licence": licence}
    extra: dict[str, Any] = {}
    if model is not None and isinstance(model.target, Pixels):
        own["target"] = asdict(model.target.config)
        if config is not None:
            own["mask"] = asdict(config.mask)
    if form.architecture == "ViTMAEForPreTraining":
        extra["mask_ratio"] = 0.75 if config is None else config.mask.ratio
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().cpu().contiguous().clone() for name, value in form.weights.items()
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    share(folder / WEIGHTS)
    settings = {"architectures": [form.architecture], **form.config, **extra, OWN: own}
    write_text(folder / CONFIG, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
    processor = json.dumps(_processor(encoder, pixels), indent=1)
    write_text(folder / PREPROCESSOR, processor + "\n")
    write_text(folder / CARD, card)
    return [*form.notes, *_limits(encoder, pixels)]


def _limits(encoder: Encoder, pixels: PixelFormat) -> list[str]:
    """What the image processor does otherwise than we do."""
    height, width = encoder.image_size
    told = []
    if height != width:
        told.append(
            f"its image processor distorts images to {height}×{width} pixels: transformers has "
            "none that cuts them to a rectangle"
        )
    if encoder.channels not in (1, 3, 4):
        told.append(
            f"its image processor must be told where {encoder.channels} channels are: "
            "input_data_format='channels_last'"
        )
    if not is_eight_bit(pixels):
        told.append(
            "its image processor does not clip values that lie far outside "
            f"{range_in_words(pixels)}"
        )
    return told


def _processor(encoder: Encoder, pixels: PixelFormat) -> dict[str, Any]:
    """Scale so that the image covers the size, and cut off the rest, as we do.

    For images that are not square, transformers has no processor that does so; it distorts them.
    """
    height, width = encoder.image_size
    scale = 1 / max(high - low for low, high in zip(pixels.low, pixels.high, strict=True))
    # The processor has one scale; what a channel has of its own goes into its mean and deviation.
    spans = [scale * (high - low) for low, high in zip(pixels.low, pixels.high, strict=True)]
    own: dict[str, Any] = {
        "do_resize": True,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": scale,
        "do_normalize": True,
        "image_mean": [
            mean * span + low * scale
            for mean, span, low in zip(pixels.mean, spans, pixels.low, strict=True)
        ],
        "image_std": [std * span for std, span in zip(pixels.std, spans, strict=True)],
    }
    if height != width:
        return {
            "image_processor_type": "ViTImageProcessorFast",
            "size": {"height": height, "width": width},
            **own,
        }
    return {
        "image_processor_type": "BitImageProcessorFast",
        "size": {"shortest_edge": height},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_convert_rgb": pixels.channels == 3,
        **own,
    }


def compare_huggingface(
    folder: Path,
    model: MaskedImageModel | None,
    encoder: Encoder,
    images: Tensor,
    *,
    head: nn.Linear | None = None,
) -> dict[str, float]:
    """Load what ``write_huggingface`` wrote with transformers, and compare.

    ``images`` are normalised (B, C, H, W). Returns the largest difference, relative to the largest
    value, of the tokens (``features``); of the pooled ones' ``logits``; of ``prediction`` and
    ``loss`` with the same mask.

    Raises:
        ConfigError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "the format hf needs Hugging Face transformers: pip install 'simmim[hf]'."
        ) from error
    device = next(encoder.parameters()).device
    images = images.to(device)
    architecture = json.loads((folder / CONFIG).read_bytes())["architectures"][0]
    training = encoder.training
    with quiet(transformers), torch.inference_mode():
        encoder.eval()
        auto = transformers.AutoModel.from_pretrained(folder).to(device).eval()
        ours = encoder.features(images)
        tokens = torch.cat([ours.prefix, ours.patches], dim=1)
        found = {"features": difference(tokens, auto(images).last_hidden_state)}
        if head is not None or architecture.endswith(("PreTraining", "MaskedImageModeling")):
            whole = getattr(transformers, architecture).from_pretrained(folder).to(device).eval()
            if head is not None:
                logits = head(ours.patches.mean(1))
                found["logits"] = difference(logits, whole(images).logits)
            elif model is not None:
                found |= _compare_whole(whole, model, images)
        encoder.train(training)
    return found


def _compare_whole(whole: Any, model: MaskedImageModel, images: Tensor) -> dict[str, float]:
    count = model.grid[0] * model.grid[1]
    noise = torch.rand(len(images), count, generator=torch.Generator().manual_seed(0))
    noise = noise.to(images.device)
    rank = noise.argsort(dim=1).argsort(dim=1)
    training = model.training
    model.eval()
    if type(whole).__name__ == "ViTMAEForPreTraining":
        visible = min(max(int(count * (1 - whole.config.mask_ratio)), 1), count - 1)
        whole.config.mask_ratio = 1 - (visible + 0.5) / count
        masked = rank >= visible
        theirs = whole(images, noise=noise)
        patches = theirs.logits
    else:
        masked = rank >= max(count - round(0.6 * count), 1)
        factor = model.encoder.stride // model.encoder.patch
        fine = Mask.given(masked, model.grid).refine(factor).masked
        theirs = whole(images, bool_masked_pos=fine)
        patches = patchify(theirs.reconstruction, model.encoder.stride)
    prediction = model.predict(images, masked)
    found = {"prediction": difference(prediction, patches[masked].view(prediction.shape))}
    if _same_loss(type(whole).__name__, model.target):
        found["loss"] = difference(model.loss(images, masked), theirs.loss)
    model.train(training)
    return found


def _same_loss(architecture: str, target: Target) -> bool:
    if not isinstance(target, Pixels):
        return False
    if architecture == "ViTMAEForPreTraining":
        return target.config.loss == "l2"
    return target.config.loss == "l1" and not target.config.norm_pix


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without the list of weights that a class does not take, and without progress bars."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
