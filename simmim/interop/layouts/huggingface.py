"""Models of Hugging Face transformers: ViTMAE, ViT, Swin, BEiT and DINOv2, versions 4 and 5.

Names and shapes follow from config.json; which version wrote the weights is told from their names
alone, each by itself.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from simmim.config.mask import MASKS
from simmim.config.target import PixelTarget
from simmim.errors import CheckpointError, ConfigError
from simmim.interop.checkpoint import ModelCheckpoint
from simmim.interop.layouts.huggingface_config import HubConfig
from simmim.interop.layouts.huggingface_models import READERS
from simmim.interop.layouts.huggingface_names import PATCHES
from simmim.interop.layouts.huggingface_open import NamedWeights
from simmim.runs.encoder import read_pixels

State = Mapping[str, Tensor]

OWN = "simmim"
"""Where config.json holds what transformers has no place for, in the folders that we write."""


def is_huggingface(state: State) -> bool:
    """A model of these families, of whatever version."""
    return any(name.endswith(PATCHES) for name in state)


def read_huggingface(state: State, config: Mapping[str, Any]) -> ModelCheckpoint:
    """An encoder, and what predicts masked patches where it is there too.

    Args:
        state: Weights, as ``save_pretrained`` writes them or as ``state_dict()`` has them.
        config: The folder's config.json, and under ``_preprocessor`` its
            preprocessor_config.json.

    Raises:
        CheckpointError: No config, another kind of model, or weights that do not fit it.
    """
    if "model_type" not in config:
        raise CheckpointError(
            "these are weights of Hugging Face transformers, which do not show the number of "
            "attention heads and more: config.json is needed beside them. Give the folder that "
            "save_pretrained wrote."
        )
    hub = HubConfig(config)
    reader = READERS.get(hub.kind)
    if reader is None:
        raise CheckpointError(
            f"config.json says model_type {hub.kind!r}. Of Hugging Face's models, these can be "
            f"read: {', '.join(READERS)}."
        )
    try:
        found = reader(NamedWeights(state, hub))
    except ConfigError as error:  # a number that our own configs do not allow
        raise CheckpointError(f"config.json cannot be followed: {error}") from error
    return _as_written(found, config[OWN]) if OWN in config else found


def _as_written(found: ModelCheckpoint, own: Any) -> ModelCheckpoint:
    """With what our own export noted in config.json."""
    try:
        found = replace(found, pixels=read_pixels(own), own=True, licence=own.get("licence"))
        if found.pretraining is not None:
            rest = replace(found.pretraining, target=PixelTarget(**own["target"]))
            if "mask" in own:
                rest = replace(rest, mask=MASKS[own["mask"]["kind"]](**own["mask"]))
            found = replace(found, pretraining=rest)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"config.json has a part {OWN!r} that this version cannot read: {error}."
        ) from error
    return found
