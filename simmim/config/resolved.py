"""What was chosen automatically, once, before step 0; a resume only reads it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """How decoded values become the encoder's input: ((value - low)/(high - low) - mean)/std."""

    channels: int
    """Channels that every image is brought to."""
    low: tuple[float, ...]
    """Decoded value of each channel that becomes 0."""
    high: tuple[float, ...]
    """Decoded value of each channel that becomes 1."""
    mean: tuple[float, ...]
    """Mean of each channel, after scaling to 0 … 1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, after scaling to 0 … 1."""
    depth: str = "8-bit"
    """What was found, in words: 8-bit, 12-bit, 16-bit, float; 8-bit values: in 16-bit files."""

    @cached_property
    def largest(self) -> float:
        """Largest value of the bit depth; of floats there is none, and they have 1."""
        return 1.0 if self.depth == "float" else 2.0 ** int(self.depth.partition("-")[0]) - 1

    @cached_property
    def limits(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What the values of each channel are clipped to, from below and from above.

        Half of the range beyond it, so that nothing ordinary is touched; integers within their
        bit depth.
        """
        half = [(high - low) / 2 for low, high in zip(self.low, self.high, strict=True)]
        least = tuple(low - h for low, h in zip(self.low, half, strict=True))
        most = tuple(high + h for high, h in zip(self.high, half, strict=True))
        if self.depth == "float":
            return least, most
        return tuple(max(0.0, v) for v in least), tuple(min(self.largest, v) for v in most)


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What a run followed up to a step at which the rest was planned anew."""

    until: int
    """Steps done by then."""
    steps: int
    """Steps in all, as they had been planned."""
    lr: float
    """Peak rate per 256 images."""
    why: str
    """What was changed, and why."""


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
    spent: float | None = None
    """Seconds of the budget that were spent at the end of ``earlier``, where the steps for it are
    still to be counted anew; None: the steps stand."""
    earlier: tuple[Earlier, ...] = ()
    """What the run followed before it was planned anew, in the order of steps."""
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
