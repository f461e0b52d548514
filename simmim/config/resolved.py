"""What was chosen automatically, once, before step 0; a resume only reads it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """How decoded values become the encoder's input: ((value - low)/(high - low) - mean)/std."""

    channels: int
    """Channels that every image is brought to."""
    low: float
    """Decoded value that becomes 0 (0 for integers, the 0.1 percentile for floats)."""
    high: float
    """Decoded value that becomes 1: the largest of the bit depth in use over the data set."""
    mean: tuple[float, ...]
    """Mean of each channel, after scaling to 0 … 1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, after scaling to 0 … 1."""
    depth: str = "8-bit"
    """What was found, in words: 8-bit, 12-bit, 16-bit, float."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The numbers of a run that rules chose, and why."""

    images: int
    """Images trained on."""
    holdout: int
    """Images kept out."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    patch_size: int
    """Side of a patch of the mask's grid in pixels."""
    pixels: PixelFormat
    batch_size: int
    """Images per step over all processes."""
    micro_batch: int
    """Images per forward pass and process."""
    steps: int
    """Optimizer steps in all."""
    precision: Literal["fp32", "bf16", "fp16"]
    threads: int
    device: str
    cache: bool = False
    """Whether images are kept decoded, at 1.15 times the training size."""
    why: dict[str, str]
    """The rule behind each choice, in words."""
    asked: str = ""
    """Hash of the settings that this was resolved from, so that the same command is recognised."""
    licence: str | None = None
    """That of the weights that the run started from, which its own inherit."""
    lists: str = ""
    """The hash in images.json, so that another run's is not taken for it."""
