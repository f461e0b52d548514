"""A checkpoint of Hugging Face transformers while it is being read."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from simmim.interop.checkpoint import ModelCheckpoint
from simmim.interop.layouts.huggingface_config import HubConfig
from simmim.interop.layouts.huggingface_names import PREFIXES, Places, gather

State = Mapping[str, Tensor]

TIMM_EPS = 1e-6
REASONS = {
    "pooler.": "pools the class token for a head",
    "classifier.": "a classifier's head",
    "lm_head.": "BEiT's head for visual tokens",
    "layernorm.": "a norm before BEiT's head for visual tokens",
    "decode_head.": "a head for segmentation",
    "auxiliary_head.": "a head for segmentation",
    "fpn": "a head for segmentation",
    "embeddings.mask_token": "used in pretraining alone",
    "embeddings.position_ids": "follows from the sizes",
    "decoder.decoder_pos_embed": "follows from the sizes",
}
"""What an encoder does not have, by the start of its name."""


class NamedWeights:
    """A checkpoint that is being read: what is taken, and what remains."""

    def __init__(self, state: State, config: HubConfig) -> None:
        self.state = state
        self.config = config
        mark = PREFIXES[config.kind]
        self.prefix = mark if any(name.startswith(mark) for name in state) else ""
        self.used: set[str] = set()
        self.patch = config.patch(4 if config.kind == "swin" else 16)
        self.channels = config.count("num_channels", 3)
        self.grid = config.grid(self.patch)
        self.tokens = self.grid[0] * self.grid[1]

    def take(self, encoder: Places, *more: Places) -> list[dict[str, Tensor]]:
        """The encoder's weights, and others whose names have no prefix; all faults at once."""
        every = Places()  # with a number before our names, which may be the same in two parts
        for n, part in enumerate((encoder, *more)):
            prefix = "" if n else self.prefix
            for ours, (shape, theirs) in part.items():
                every.tensor(f"{n} {ours}", shape, *(prefix + name for name in theirs))
        weights, used = gather(self.state, every)
        self.used |= used
        parts = enumerate((encoder, *more))
        return [{ours: weights[f"{n} {ours}"] for ours in part} for n, part in parts]

    def found(
        self,
        *,
        layout: str,
        model: str,
        arguments: dict[str, Any],
        encoder: Mapping[str, Tensor],
        usual_eps: float = 1e-12,
        timm_eps: float = TIMM_EPS,
        notes: Iterable[str] = (),
    ) -> ModelCheckpoint:
        """The encoder, with what all kinds have in common."""
        pixels, assumed = self.config.pixels(self.channels)
        eps = self.config.number("layer_norm_eps", usual_eps)
        if eps != timm_eps:
            assumed = [
                *assumed,
                f"layer norms add {eps:g} to the variance; timm's add {timm_eps:g}",
            ]
        return ModelCheckpoint(
            layout=f"Hugging Face {layout}",
            model=model,
            arguments=arguments,
            image_size=self.config.image_size(),
            patch=self.patch,
            pixels=pixels,
            encoder=encoder,
            left_out={n: self._reason(n) for n in sorted(self.state.keys() - self.used)},
            notes=(*notes, *assumed),
            norm_eps=None if eps == timm_eps else eps,
        )

    def _reason(self, name: str) -> str:
        name = name.removeprefix(self.prefix)
        if name.endswith("relative_position_index"):
            return "follows from the sizes"
        return next((why for start, why in REASONS.items() if name.startswith(start)), "not known")


def ratio_of(hidden: int, width: int) -> float:
    """What times ``width`` gives ``hidden``, once what is behind the point is cut off."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
