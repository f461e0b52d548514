"""Decoders' configs: what predicts the masked patches."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from simmim.config.checks import check_positive
from simmim.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TransformerDecoder:
    """A light transformer that sees encoded visible tokens and mask tokens (MAE sec. 3)."""

    reads: ClassVar[Literal["visible", "all"]] = "visible"

    kind: Literal["transformer"] = "transformer"
    depth: int = 8
    """Number of transformer blocks."""
    width: int | None = None
    """Token width; default: `width-share` of the encoder's, in steps of 32."""
    width_share: float = 1 / 3
    """Token width over that of the encoder, where `width` is not given."""
    heads: int | None = None
    """Attention heads; default: one per 32 of width."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over its token width."""
    mask_token: Literal["width", "0.02"] = "width"
    """Variance of the mask token's normal start: 1/width, or 0.02² (MAE)."""

    def __post_init__(self) -> None:
        check_positive("decoder.depth", self.depth)
        check_positive("decoder.mlp_ratio", self.mlp_ratio)
        if self.width is not None and (self.width < 4 or self.width % 4):
            raise ConfigError(
                f"decoder.width must be a multiple of 4 (its sine-cosine positions need that), "
                f"got {self.width}."
            )
        check_positive("decoder.width_share", self.width_share)
        if self.heads is not None:
            check_positive("decoder.heads", self.heads)


@dataclass(frozen=True, kw_only=True)
class LinearDecoder:
    """One linear layer on every token; mask tokens go into the encoder (SimMIM sec. 3.3)."""

    reads: ClassVar[Literal["visible", "all"]] = "all"

    kind: Literal["linear"] = "linear"


DecoderConfig = TransformerDecoder | LinearDecoder
DECODERS = {"transformer": TransformerDecoder, "linear": LinearDecoder}
