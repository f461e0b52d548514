"""What a checkpoint holds, whatever its layout, in simmim's terms."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from simmim.config.decoder import DecoderConfig
from simmim.config.mask import MaskConfig
from simmim.config.resolved import PixelFormat
from simmim.config.target import TargetConfig
from simmim.errors import CheckpointError


def eight_bit(mean: tuple[float, ...], std: tuple[float, ...], channels: int = 3) -> PixelFormat:
    """How images of 0 … 255 are normalised; of other channels, by the averages over those given."""

    def spread(values: tuple[float, ...]) -> tuple[float, ...]:
        return values if len(values) == channels else (sum(values) / len(values),) * channels

    low, high = (0.0,) * channels, (255.0,) * channels
    return PixelFormat(channels=channels, low=low, high=high, mean=spread(mean), std=spread(std))


IMAGENET = eight_bit((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""How images are normalised for most public weights."""
HALVES = eight_bit((0.5,) * 3, (0.5,) * 3)
"""The same for the first ViTs and BEiTs."""
LARGEST = 10_000
"""Side of an image in pixels; a larger one is a mistake, or meant to fill the memory."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What a whole pretraining checkpoint has beside its encoder.

    Attributes:
        decoder: Its shape; every field is set, none left to a rule.
        state: Its weights, by the names of ``simmim.models.decoders``.
        mask_token: The encoder's (1, 1, D), where the decoder reads all tokens.
        mask: How patches were masked.
        target: What was predicted.
        target_state: Its weights, where it has some, by their names in the target.
        sampler_state: The mask sampler's, likewise.
        position: The decoder's positions of the patches (N, w), where they are not the fixed
            sine-cosine; they replace the decoder's buffer ``position``, which is not saved.
    """

    decoder: DecoderConfig
    state: Mapping[str, Tensor]
    mask: MaskConfig
    target: TargetConfig
    target_state: Mapping[str, Tensor] = field(default_factory=dict)
    sampler_state: Mapping[str, Tensor] = field(default_factory=dict)
    mask_token: Tensor | None = None
    position: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ModelCheckpoint:
    """A checkpoint.

    Attributes:
        layout: What it is, in words: "MAE, pretraining (original code)".
        model: timm name whose class and arguments fit.
        arguments: Those of ``timm.create_model`` that differ from the name's own, beside image
            size, patch size and channels.
        image_size: Height and width in pixels.
        patch: Side of a patch in pixels.
        pixels: How images are normalised for it.
        encoder: The deployed timm model's weights, by timm's names, as
            ``Encoder.load_timm_state`` takes them.
        pretraining: What predicts masked patches; None: an encoder alone.
        left_out: Names in the file that were not used, each with the reason in words.
        notes: What was guessed or changed, a line each.
        licence: Of the weights; None: not known.
        norm_eps: What all layer norms, the decoder's too, add to the variance; None: as timm's.
        own: True where simmim wrote it, so that ``pixels`` was measured and not assumed.
    """

    layout: str
    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int]
    patch: int
    pixels: PixelFormat = IMAGENET
    encoder: Mapping[str, Tensor]
    pretraining: Pretraining | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    licence: str | None = None
    norm_eps: float | None = None
    own: bool = False


class Settings:
    """What the weights do not say, from the checkpoint's own arguments, a JSON file, or a call.

    Names are those of the code that wrote the checkpoint (``num_heads``, ``norm_pix_loss``, …).
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = dict(given)

    def get(self, *names: str) -> Any:
        """The first of ``names`` that is given; None: none is."""
        return next((self.given[name] for name in names if self.given.get(name) is not None), None)

    def count(self, *names: str) -> int | None:
        """A whole number from 1.

        Raises:
            CheckpointError: It is something else.
        """
        value = self.get(*names)
        if value is None or (type(value) is int and value > 0):
            return value
        raise CheckpointError(f"{names[0]} is a whole number from 1, and {value!r} was given.")

    def share(self, *names: str) -> float | None:
        """A number strictly between 0 and 1; raises as ``count`` does."""
        value = self.get(*names)
        if value is None or (isinstance(value, float) and 0 < value < 1):
            return value
        raise CheckpointError(f"{names[0]} lies between 0 and 1, and {value!r} was given.")

    def flag(self, *names: str) -> bool | None:
        """True or false; raises as ``count`` does."""
        value = self.get(*names)
        if value is None or isinstance(value, bool):
            return value
        raise CheckpointError(f"{names[0]} is true or false, and {value!r} was given.")

    def size(self) -> tuple[int, int] | None:
        """Height and width of the images in pixels, from one side or both; raises as ``count``."""
        value = self.get("img_size", "image_size")
        sides = (value, value) if isinstance(value, int) else value
        if sides is None:
            return None
        if isinstance(sides, (list, tuple)) and len(sides) == 2:
            height, width = sides
            if all(type(side) is int and 0 < side <= LARGEST for side in (height, width)):
                return height, width
        raise CheckpointError(
            f"img_size is one side in pixels, or height and width, and {value!r} was given."
        )

    def channels(self, name: str) -> tuple[float, ...] | None:
        """A finite number for each channel; raises as ``count`` does."""
        value = self.get(name)
        if value is None:
            return None
        least = 0.0 if name == "std" else -math.inf
        if isinstance(value, (list, tuple)) and value:
            numbers = [v if isinstance(v, (int, float)) else math.nan for v in value]
            if all(least < v < math.inf for v in numbers):
                return tuple(map(float, numbers))
        raise CheckpointError(f"{name} is a number for each channel, and {value!r} was given.")
