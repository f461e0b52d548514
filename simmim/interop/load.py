"""From a checkpoint to an encoder or a whole model."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simmim.config.encoder import EncoderConfig
from simmim.config.resolved import PixelFormat
from simmim.data.audit.survey import Survey, survey
from simmim.data.formats.decode import inspect
from simmim.data.formats.image_file import from_array
from simmim.data.loading.augment import plain_view
from simmim.data.loading.images import ImageSet
from simmim.data.sources.find import find_images
from simmim.data.sources.listing import Listing
from simmim.errors import CheckpointError, ConfigError, DataError
from simmim.interop.checkpoint import ModelCheckpoint
from simmim.interop.open import open_source
from simmim.masking.build import build_sampler
from simmim.models.build import build_encoder
from simmim.models.decoders import Transformer, build_decoder
from simmim.models.encoder import Encoder
from simmim.models.mim import MaskedImageModel, parts_for
from simmim.targets.build import build_target
from simmim.tensors.patches import normalise


def to_input(image: str | Path | np.ndarray, pixels: PixelFormat, size: tuple[int, int]) -> Tensor:
    """A file, or decoded values (h, w, C) or (h, w), as a normalised (C, H, W) float32."""
    if isinstance(image, np.ndarray):
        opened = from_array(image if image.ndim == 3 else image[..., None])
    else:
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise DataError(f"{image} cannot be read: {error.strerror}.") from error
        opened = inspect(data)
    view = plain_view(opened, pixels, size)
    return normalise(view[None], pixels)[0].contiguous()


def scaled_for(pixels: PixelFormat, images: Listing, *, adapt: bool = False) -> Survey:
    """Look at images for an encoder: how their values are scaled for it, and what else there is.

    Args:
        pixels: What the encoder was trained on.
        images: What it is for.
        adapt: Give other channels than the encoder's, where the images have them.

    Raises:
        DataError: They have, and ``adapt`` is false.
    """
    found = survey(images, channels=None, trained=pixels)
    have, want = found.pixels.channels, pixels.channels
    if have != want and not adapt:
        raise DataError(
            f"the images in {images.where} have {have} channels, where the encoder has {want}. "
            "`simmim finetune` and `simmim pretrain --from` adapt it to them."
        )
    return found


def images_for(pixels: PixelFormat, images: ImageSet | Listing | str | Path) -> ImageSet:
    """Images as an encoder reads them.

    Args:
        pixels: How its images are read.
        images: Read so, whatever their own format; or where they are, and how deep their values
            lie is looked at.
    """
    if isinstance(images, ImageSet):
        return replace(images, pixels=pixels)
    listing = images if isinstance(images, Listing) else find_images(images)
    return ImageSet(listing, scaled_for(pixels, listing).pixels)


class LoadedEncoder(nn.Module):
    """An encoder with what its images need.

    Attributes:
        encoder: The backbone.
        pixels: How decoded values are normalised.
        image_size: Height and width in pixels that ``transform`` brings images to. Any that the
            encoder's stride divides can be set.
        found: The checkpoint that it was read from; None: it was built.
    """

    def __init__(
        self, encoder: Encoder, pixels: PixelFormat, found: ModelCheckpoint | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pixels = pixels
        self.image_size = encoder.image_size
        self.found = found

    def transform(self, image: str | Path | np.ndarray) -> Tensor:
        """A path, or decoded values (h, w, C), as a normalised (C, H, W) float32.

        One image tells no bit depth: uint8 goes by 255, and uint16 by 65535 for an encoder of 8
        bits; for a deeper one it is taken as in training.
        """
        return to_input(image, self.pixels, self.image_size)

    def tokens(self, images: Tensor) -> Tensor:
        """Patch tokens after the final norm: normalised (B, C, H, W) → (B, N, D)."""
        return self.encoder.features(images).patches

    def forward(self, images: Tensor) -> Tensor:
        """The mean of the patch tokens: normalised (B, C, H, W) → (B, D)."""
        return self.tokens(images).mean(1)


def load(
    source: str | Path, *, whole: bool = False, **given: Any
) -> LoadedEncoder | MaskedImageModel:
    """Load a run or anybody's checkpoint, in evaluation mode, on the CPU; see ``simmim.load``."""
    found = open_source(source, given, whole=whole)
    for note in found.notes:
        warnings.warn(f"{source}: {note}", stacklevel=3)
    return model_from(found).eval() if whole else load_found(found)


def load_found(found: ModelCheckpoint) -> LoadedEncoder:
    """The encoder of a checkpoint, in evaluation mode."""
    return LoadedEncoder(encoder_from(found), found.pixels, found).eval()


def load_encoder(source: str | Path) -> LoadedEncoder:
    """The encoder of a source; see ``open_source``."""
    return load_found(open_source(source))


def load_frozen(source: str) -> tuple[Encoder, PixelFormat]:
    """The encoder of a source, for a part that learns from it, and how its images are read."""
    found = open_source(source)
    return encoder_from(found).eval().requires_grad_(requires_grad=False), found.pixels


def encoder_from(found: ModelCheckpoint) -> Encoder:
    """Build the encoder of a checkpoint and give it its weights.

    Raises:
        CheckpointError: A name is missing or unexpected, or a shape differs.
    """
    config = EncoderConfig(
        model=found.model, patch_size=found.patch, init="timm", arguments=found.arguments
    )
    try:
        encoder = build_encoder(config, image_size=found.image_size, channels=found.pixels.channels)
    except ConfigError as error:
        raise CheckpointError(f"the encoder of this checkpoint cannot be built: {error}") from error
    encoder.load_timm_state(dict(found.encoder))
    set_norm_eps(encoder, found.norm_eps)
    return encoder


def set_norm_eps(module: nn.Module, eps: float | None) -> None:
    """Give all layer norms another epsilon than timm's; None keeps theirs."""
    for part in module.modules():
        if eps is not None and isinstance(part, nn.LayerNorm):
            part.eps = eps


def model_from(found: ModelCheckpoint, seed: int = 0) -> MaskedImageModel:
    """Encoder and decoder of a whole pretraining checkpoint; ``seed`` is that of its masks.

    Raises:
        CheckpointError: It holds an encoder alone, or a name is missing or a shape differs.
    """
    rest = found.pretraining
    if rest is None:
        raise CheckpointError(
            f"this is an encoder alone ({found.layout}): without a decoder nothing can be "
            "reconstructed. Its features can be used, and `simmim pretrain DATA --from` it gives "
            "it a new decoder."
        )
    encoder = encoder_from(found)
    parts = parts_for(encoder, found.pixels, seed=seed, load=load_frozen)
    target = build_target(rest.target, parts)
    load_strictly(target, rest.target_state, "target")
    sampler = build_sampler(rest.mask, parts)
    load_strictly(sampler, rest.sampler_state, "mask sampler")
    decoder = build_decoder(rest.decoder, parts, target.outputs)
    load_strictly(decoder, rest.state, "decoder")
    set_norm_eps(decoder, found.norm_eps)
    if rest.position is not None and isinstance(decoder, Transformer):
        decoder.position.copy_(rest.position)
    model = MaskedImageModel(
        encoder, decoder, target, sampler, found.pixels, reads=rest.decoder.reads
    )
    load_mask_token(model, rest.mask_token)
    return model


def load_mask_token(model: MaskedImageModel, token: Tensor | None) -> None:
    """Give the encoder's mask token its value, where the model has one.

    Raises:
        CheckpointError: The checkpoint has none, or one of another width.
    """
    if model.mask_token is None:
        return
    if token is None or token.numel() != model.mask_token.numel():
        raise CheckpointError("the checkpoint has no mask token of the encoder's width.")
    with torch.no_grad():
        model.mask_token.copy_(token.reshape(model.mask_token.shape))


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load weights of which none may be missing, left over, or of another shape.

    Raises:
        CheckpointError: With the names.
    """
    own = module.state_dict()
    faults = [f"{name} is missing" for name in own.keys() - state.keys()]
    faults += [f"{name} is unexpected" for name in state.keys() - own.keys()]
    faults += [
        f"{name} is {tuple(state[name].shape)} and should be {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if faults:
        raise CheckpointError(
            f"the weights of the {what} do not fit: {'; '.join(sorted(faults)[:6])}"
            + (f"; and {len(faults) - 6} more." if len(faults) > 6 else ".")
        )
    module.load_state_dict(dict(state))
