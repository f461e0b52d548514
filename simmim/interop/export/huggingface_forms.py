"""Which class of Hugging Face transformers an encoder is, with its config and weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simmim.errors import ConfigError
from simmim.interop.export.huggingface_encoders import Base, base_of, named, vit
from simmim.interop.layouts.huggingface_names import PREFIXES, split_qkv
from simmim.interop.layouts.huggingface_places import (
    decoder_places,
    head_places,
)
from simmim.models.backbones import SwinEncoder, ViTEncoder
from simmim.models.decoders import Block, Linear, Transformer
from simmim.models.encoder import Encoder
from simmim.models.mim import MaskedImageModel
from simmim.targets.pixels import Pixels


@dataclass(frozen=True, kw_only=True)
class Form:
    """A model as transformers has it.

    Attributes:
        architecture: Its class.
        config: For config.json.
        weights: By the names of the file.
        notes: What could not be written, a line each.
    """

    architecture: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def form_of(
    encoder: Encoder,
    model: MaskedImageModel | None,
    head: nn.Linear | None,
    classes: Sequence[str] | None,
) -> Form:
    """The form of an encoder: with the head of a classifier, a decoder, or alone.

    Raises:
        ConfigError: transformers has no class for it.
    """
    if head is not None:
        return _classifier(encoder, head, list(classes or ()))
    base = base_of(encoder)
    if model is None:
        return _alone(base)
    if base.kind == "vit" and isinstance(model.decoder, Transformer):
        return _with_mae(base, model, model.decoder)
    if base.kind in ("vit", "swin") and isinstance(model.decoder, Linear):
        return _with_simmim(base, model, model.decoder)
    return _alone(base, f"transformers has no class for a {encoder.model} with this decoder")


def _alone(base: Base, why: str | None = None) -> Form:
    notes = () if why is None else (f"the decoder is not in it: {why}",)
    return Form(
        architecture=base.architecture,
        config=base.config,
        weights=base.named(prefixed=False),
        notes=notes,
    )


def _with_mae(base: Base, model: MaskedImageModel, decoder: Transformer) -> Form:
    """ViTMAEForPreTraining."""
    encoder, state = model.encoder, split_qkv(decoder.state_dict())
    width, first = decoder.embed.out_features, decoder.layers[0]
    assert isinstance(first, Block)
    hidden = first.mlp.fc1.out_features
    eps = {module.eps for module in decoder.modules() if isinstance(module, nn.LayerNorm)}
    why = None
    if encoder.grid[0] != encoder.grid[1]:
        why = "ViTMAEForPreTraining takes square images alone"
    elif not isinstance(model.target, Pixels):
        why = "ViTMAEForPreTraining predicts pixels alone"
    elif eps != {base.eps} or base.activation != "gelu" or not base.config["qkv_bias"]:
        why = (
            "ViTMAEForPreTraining has the same norms, activation and biases in encoder and decoder"
        )
    if why is not None:
        return _alone(base, why)
    assert isinstance(model.target, Pixels)
    position = decoder.position[None].float()
    state["position"] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    places = decoder_places(
        encoder.width,
        width,
        len(decoder.blocks),
        hidden,
        outputs=decoder.head.out_features,
        tokens=len(decoder.position),
    )
    target = model.target.config
    config = {
        "decoder_hidden_size": width,
        "decoder_num_hidden_layers": len(decoder.blocks),
        "decoder_num_attention_heads": first.attn.heads,
        "decoder_intermediate_size": hidden,
        "norm_pix_loss": target.norm_pix,
    }
    notes = (
        () if target.loss == "l2" else ("ViTMAEForPreTraining's loss is L2, and not this run's",)
    )
    return Form(
        architecture="ViTMAEForPreTraining",
        config=base.config | config,
        weights=base.named(prefixed=True) | named(places, state, encoder),
        notes=notes,
    )


def _with_simmim(base: Base, model: MaskedImageModel, decoder: Linear) -> Form:
    """ViTForMaskedImageModeling, SwinForMaskedImageModeling: a convolution and a pixel shuffle."""
    encoder = model.encoder
    if encoder.grid[0] != encoder.grid[1] or not isinstance(model.target, Pixels):
        return _alone(base, "transformers predicts the pixels of square images alone")
    assert model.mask_token is not None
    stride, channels = encoder.stride, encoder.channels
    outputs = decoder.head.out_features
    order = torch.arange(outputs).view(stride, stride, channels).permute(2, 0, 1).flatten()
    state = {
        "head.weight": decoder.head.weight[order][..., None, None],
        "head.bias": decoder.head.bias[order],
    }
    token = f"{PREFIXES[base.kind]}embeddings.mask_token"
    target = model.target.config
    exact = target.loss == "l1" and not target.norm_pix
    name = "ViT" if base.kind == "vit" else "Swin"
    return Form(
        architecture=f"{name}ForMaskedImageModeling",
        config=base.config | {"encoder_stride": stride},
        weights=base.named(prefixed=True)
        | named(head_places(outputs, encoder.width), state, encoder)
        | {token: model.mask_token},
        notes=() if exact else (f"{name}ForMaskedImageModeling's loss is L1, and not this run's",),
    )


def _classifier(encoder: Encoder, head: nn.Linear, classes: list[str]) -> Form:
    """A classifier on the mean of the patch tokens after the final norm.

    SwinForImageClassification has it so. ViTForImageClassification reads the class token, and
    BeitForImageClassification norms after the mean; Dinov2ForImageClassification reads the class
    token beside the mean, so a ViT is written as a DINOv2 whose scales are 1 and whose head has
    zeros for the class token.
    """
    if isinstance(encoder, SwinEncoder):
        base, architecture = base_of(encoder), "SwinForImageClassification"
        weight = head.weight
    elif type(encoder) is ViTEncoder:
        base, architecture = vit(encoder, as_dino=True), "Dinov2ForImageClassification"
        weight = torch.cat([torch.zeros_like(head.weight), head.weight], dim=1)
    else:
        raise ConfigError(
            f"Hugging Face transformers has no classifier on a {encoder.model} that reads the mean "
            "of its patch tokens after the final norm, as this one does. The formats timm and onnx "
            "can hold it: --format onnx."
        )
    names = dict(enumerate(classes))
    return Form(
        architecture=architecture,
        config=base.config
        | {"id2label": names, "label2id": {name: n for n, name in names.items()}},
        weights=base.named(prefixed=True)
        | {"classifier.weight": weight, "classifier.bias": head.bias},
    )
