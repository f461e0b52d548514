"""What a checkpoint holds, whatever its layout, in simmim's terms."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from simmim.config.decoder import DecoderConfig
from simmim.config.mask import MaskConfig
from simmim.config.resolved import PixelFormat
from simmim.config.target import TargetConfig

IMAGENET = PixelFormat(
    channels=3, low=0.0, high=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
"""How images are normalised for most public weights."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What a whole pretraining checkpoint has beside its encoder.

    Attributes:
        decoder: Its shape; every field is set, none left to a rule.
        state: Its weights, by the names of ``simmim.models.decoders``.
        mask_token: The encoder's (1, 1, D), where the decoder reads all tokens.
        mask: How patches were masked.
        target: What was predicted.
        position: The decoder's positions of the patches (N, w), where they are not the fixed
            sine-cosine; they replace the decoder's buffer ``position``, which is not saved.
    """

    decoder: DecoderConfig
    state: Mapping[str, Tensor]
    mask: MaskConfig
    target: TargetConfig
    mask_token: Tensor | None = None
    position: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
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
