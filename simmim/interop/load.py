"""From a run folder to an encoder or a whole model."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from simmim.config.encoder import EncoderConfig
from simmim.config.resolved import PixelFormat
from simmim.config.saved import load as load_config
from simmim.data.augment import plain_view
from simmim.data.decode import bring, decode
from simmim.data.patches import normalise
from simmim.errors import CheckpointError, DataError
from simmim.interop.deploy import WEIGHTS, read_card, read_pixels
from simmim.models.encoder import Encoder, build_encoder
from simmim.models.mim import MaskedImageModel, build_model
from simmim.training.checkpoint import Checkpoints


def to_input(image: str | Path | np.ndarray, pixels: PixelFormat, size: tuple[int, int]) -> Tensor:
    """A file, or decoded values (h, w, C) or (h, w), as a normalised (C, H, W) float32."""
    if isinstance(image, np.ndarray):
        array = image if image.ndim == 3 else image[..., None]
    else:
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise DataError(f"{image} cannot be read: {error.strerror}.") from error
        array = decode(data)
    view = plain_view(bring(array, pixels), size)
    return normalise(view[None], pixels)[0]


class LoadedEncoder(nn.Module):
    """An encoder with what its images need.

    Attributes:
        encoder: The backbone.
        pixels: How decoded values are normalised.
        image_size: Height and width in pixels.
    """

    def __init__(self, encoder: Encoder, pixels: PixelFormat) -> None:
        super().__init__()
        self.encoder = encoder
        self.pixels = pixels
        self.image_size = encoder.image_size

    def transform(self, image: str | Path | np.ndarray) -> Tensor:
        """A path, or decoded values (h, w, C), as a normalised (C, H, W) float32."""
        return to_input(image, self.pixels, self.image_size)

    def tokens(self, images: Tensor) -> Tensor:
        """Patch tokens after the final norm: normalised (B, C, H, W) → (B, N, D)."""
        return self.encoder.features(images).patches

    def forward(self, images: Tensor) -> Tensor:
        """The mean of the patch tokens: normalised (B, C, H, W) → (B, D)."""
        return self.tokens(images).mean(1)


def load(source: str | Path, *, whole: bool = False) -> LoadedEncoder | MaskedImageModel:
    """Load what a run made, in evaluation mode, on the CPU.

    Args:
        source: A run folder, or one that holds encoder.safetensors and encoder.json.
        whole: Encoder and decoder, to predict masked patches.

    Raises:
        CheckpointError: No such folder, nothing saved in it yet, or a damaged file.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise CheckpointError(f"{source} is not a run folder: there is no such directory.")
    return load_model(folder) if whole else load_encoder(folder)


def load_encoder(folder: Path) -> LoadedEncoder:
    """The deployed encoder of a folder; see ``load``."""
    card = read_card(folder)
    pixels = read_pixels(card)
    arguments = dict(card["arguments"])
    size = tuple(card["image_size"])
    encoder = build_encoder(
        EncoderConfig(
            model=card["model"],
            patch_size=arguments.pop("patch_size", None),
            init="timm",
            position="trained",
            arguments=arguments,
        ),
        image_size=(size[0], size[1]),
        channels=pixels.channels,
    )
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}.") from error
    encoder.load_timm_state(state)
    return LoadedEncoder(encoder, pixels).eval()


def load_model(folder: Path) -> MaskedImageModel:
    """Encoder and decoder of a run's newest whole checkpoint; see ``load``."""
    config, resolved = load_config(folder / "config.yaml")
    newest = Checkpoints(folder / "checkpoints", config.system.keep).newest(lambda _: None)
    if newest is None or resolved is None:
        raise CheckpointError(f"{folder} has no checkpoint yet; go on with --resume {folder}.")
    model = build_model(config, resolved.pixels, resolved.image_size)
    model.load_state_dict(newest.model())
    return model.eval()
