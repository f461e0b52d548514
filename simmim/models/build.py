"""From a timm name and a config to an encoder, or to a message that says why not."""

import inspect
from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from torch import nn

from simmim.config import models
from simmim.config.encoder import EncoderConfig
from simmim.config.run import check_grid
from simmim.errors import ConfigError
from simmim.models.backbones import ADAPTERS
from simmim.models.encoder import Encoder

REFUSED = {
    "pretrained": "weights are loaded with --from",
    "checkpoint_path": "weights are loaded with --from",
    "features_only": "the encoder returns features as it is",
    "patch_drop_rate": "the mask leaves patches out, by --mask.ratio",
    "drop_path_rate": "its flag is --encoder.drop-path",
}
"""Arguments of timm that have their own flag, or no meaning here."""


def build_encoder(config: EncoderConfig, *, image_size: tuple[int, int], channels: int) -> Encoder:
    """Build the encoder that ``config`` names, started as it says.

    Weights are drawn from torch's global generator, which the caller seeds.

    Args:
        config: What to build; its own image size and channels are not looked at. Its arguments may
            repeat what follows from the rest, as those in encoder.json do, but not contradict it.
        image_size: Height and width in pixels; the patch side divides both.
        channels: Image channels.

    Raises:
        ConfigError: An unknown or unsupported name, sizes that do not fit, arguments that timm
            does not take, or positions that the model cannot have.
    """
    family, own_patch = _family(config.model)
    adapter = ADAPTERS[family]
    patch = config.patch_size or own_patch
    check_grid(image_size, patch * 2 ** (adapter.stages - 1), None)
    derived: dict[str, Any] = {
        "num_classes": 0,
        "img_size": image_size[0] if image_size[0] == image_size[1] else list(image_size),
        "patch_size": patch,
        "in_chans": channels,
    }
    known = _parameters(family)
    if config.position == "none" and "use_abs_pos_emb" in known:
        derived["use_abs_pos_emb"] = False
    given = _check_arguments(config, known, derived | adapter.pooling)
    if patch == own_patch:
        del derived["patch_size"]
    deployed, built = adapter.plan(given | derived)
    try:
        net = timm.create_model(config.model, drop_path_rate=config.drop_path or 0.0, **built)
    except (AssertionError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise ConfigError(f"timm could not build {config.model} with {built}: {e}") from e
    if getattr(net, "pool_include_prefix", False):
        deployed["pool_include_prefix"] = False
    encoder = adapter(
        net, model=config.model, arguments=deployed, image_size=image_size, channels=channels
    )
    _check_positions(encoder, config)
    encoder.start(config)
    return encoder


def _family(name: str) -> tuple[type[nn.Module], int]:
    """Class of a timm model and its patch side."""
    listed = models.find(name)
    if not timm.is_model(name):
        if listed:
            raise ConfigError(
                f"The installed timm {timm.__version__} has no {name}; timm {models.TIMM} has: "
                "pip install -U timm."
            )
        raise ConfigError(f"There is no timm model {name!r}. {_instead(name)}")
    if listed:
        return next(cls for cls in ADAPTERS if cls.__name__ == listed.family), listed.patch
    try:
        with torch.device("meta"):
            net: Any = timm.create_model(name, num_classes=0)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as e:
        raise ConfigError(f"{name} cannot be an encoder here. {_instead(name)}") from e
    if type(net) not in ADAPTERS:
        raise ConfigError(
            f"{name} cannot be an encoder here: it is a {type(net).__name__}, which cannot leave "
            f"out patches as a plain ViT can. {_instead(name)}"
        )
    if type(net.patch_embed) is not PatchEmbed:
        raise ConfigError(
            f"{name} cannot be an encoder here: its {type(net.patch_embed).__name__} mixes "
            f"neighbouring patches, so masked pixels would reach the encoder. {_instead(name)}"
        )
    return type(net), int(net.patch_embed.patch_size[0])


def _instead(name: str) -> str:
    near = models.suggest(name)
    nearest = f"The nearest names: {', '.join(near)}. " if near else ""
    return (
        f"{nearest}The ViT, DeiT, EVA and BEiT models with plain patches work with every recipe, "
        "Swin with --recipe simmim-paper-swin; `simmim models` lists them."
    )


def _parameters(family: type[nn.Module]) -> set[str]:
    """Arguments that the constructor of a timm class takes, those of its bases included."""
    bases = [cls for cls in family.__mro__ if issubclass(cls, nn.Module) and cls is not nn.Module]
    return {name for cls in bases for name in inspect.signature(cls.__init__).parameters}


def _check_arguments(
    config: EncoderConfig, known: set[str], derived: dict[str, Any]
) -> dict[str, Any]:
    """The config's own arguments as JSON holds them, once none is refused or contradicts."""
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in config.arguments.items()}
    for name, value in given.items():
        if name in REFUSED:
            raise ConfigError(f"The model argument {name} is not taken: {REFUSED[name]}.")
        if name not in known:
            near = get_close_matches(name, known, n=3)
            raise ConfigError(
                f"{config.model} takes no argument {name!r}"
                + (f"; the nearest: {', '.join(near)}." if near else ".")
            )
        if name in derived and value != derived[name]:
            raise ConfigError(
                f"The model argument {name}={value} contradicts {derived[name]}, which follows "
                "from the model, --image-size, --patch-size, --channels and --encoder.position. "
                f"Leave {name} out of the arguments."
            )
    return given


def _check_positions(encoder: Encoder, config: EncoderConfig) -> None:
    absolute = getattr(encoder.net, "pos_embed", None) is not None
    if not encoder.relates and (config.position == "none" or not absolute):
        raise ConfigError(
            f"{config.model} without absolute positions would not know where a patch lies. Use "
            "--encoder.position trained or fixed, or a model with rotary or relative positions, "
            "such as eva02_small_patch14_224 or beit_base_patch16_224."
        )


def describe_encoder(encoder: Encoder, drop_path: float | None) -> EncoderConfig:
    """The config that builds the same encoder, with stochastic depth; all positions are trained."""
    derived = ("img_size", "patch_size")
    return EncoderConfig(
        model=encoder.model,
        image_size=encoder.image_size,
        patch_size=encoder.patch,
        init="timm",
        drop_path=drop_path,
        arguments={name: v for name, v in encoder.arguments.items() if name not in derived},
    )
