"""Where the weights of each family of models are: its names and shapes, from its sizes."""

from collections.abc import Sequence

from simmim.interop.layouts.huggingface_names import DINO, SWIN, VIT, Places


def vit_places(
    width: int,
    depth: int,
    hidden: int,
    *,
    patch: int,
    channels: int,
    tokens: int,
    qkv_bias: bool = True,
    scaled: bool = False,
) -> Places:
    """A ViT's encoder; ``scaled``: DINOv2's, with scales in its blocks."""
    places = Places()
    places.tensor("cls_token", (1, 1, width), "embeddings.cls_token")
    places.tensor("pos_embed", (1, tokens + 1, width), "embeddings.position_embeddings")
    places.layer(
        "patch_embed.proj",
        (width, channels, patch, patch),
        "embeddings.patch_embeddings.projection",
    )
    for n in range(depth):
        places.block(
            f"blocks.{n}.",
            [f"encoder.layer.{n}."] if scaled else [f"encoder.layer.{n}.", f"layers.{n}."],
            DINO if scaled else VIT,
            width=width,
            hidden=hidden,
            biases="qkv" if qkv_bias else "",
            scale="ls{}.gamma" if scaled else None,
        )
    places.layer("norm", (width,), "layernorm")
    return places


def decoder_places(
    encoder_width: int,
    width: int,
    depth: int,
    hidden: int,
    *,
    outputs: int,
    tokens: int,
    qkv_bias: bool = True,
) -> Places:
    """The decoder of ViTMAE, by the names of ``simmim.models.decoders``, with its positions."""
    places = Places()
    places.layer("embed", (width, encoder_width), "decoder.decoder_embed")
    places.tensor("mask_token", (1, 1, width), "decoder.mask_token")
    places.tensor("position", (1, tokens + 1, width), "decoder.decoder_pos_embed")
    for n in range(depth):
        places.block(
            f"blocks.{n}.",
            [f"decoder.decoder_layers.{n}.", f"decoder.decoder_encoder.layer.{n}."],
            VIT,
            width=width,
            hidden=hidden,
            biases="qkv" if qkv_bias else "",
        )
    places.layer("norm", (width,), "decoder.decoder_norm")
    places.layer("head", (outputs, width), "decoder.decoder_pred")
    return places


def beit_places(
    width: int,
    depth: int,
    hidden: int,
    *,
    patch: int,
    channels: int,
    positions: int,
    table: tuple[int, int],
    own: bool,
    shared: bool,
    scaled: bool,
) -> Places:
    """A BEiT's encoder without its final norm, which has several names.

    ``positions`` counts absolute ones, the class token's too. ``table`` is the shape of a table of
    relative positions, of which each block has its ``own``, or all of them have one ``shared``.
    """
    places = Places()
    places.tensor("cls_token", (1, 1, width), "embeddings.cls_token")
    if positions:
        places.tensor("pos_embed", (1, positions, width), "embeddings.position_embeddings")
    places.layer(
        "patch_embed.proj",
        (width, channels, patch, patch),
        "embeddings.patch_embeddings.projection",
    )
    if shared:
        places.tensor(
            "table",
            table,
            "encoder.relative_position_bias.relative_position_bias_table",
            "shared_position_bias.relative_position_bias_table",
        )
    for n in range(depth):
        places.block(
            f"blocks.{n}.",
            [f"encoder.layer.{n}.", f"layers.{n}."],
            VIT,
            width=width,
            hidden=hidden,
            biases="qv",
            scale="gamma_{}" if scaled else None,
            table=table if own else None,
        )
    return places


def swin_places(
    width: int,
    depths: Sequence[int],
    heads: Sequence[int],
    *,
    mlp_ratio: float,
    window: int,
    patch: int,
    channels: int,
    qkv_bias: bool = True,
) -> Places:
    """A Swin's encoder; a stage ends with the merging of patches, in timm it begins with it."""
    places = Places()
    places.layer(
        "patch_embed.proj",
        (width, channels, patch, patch),
        "embeddings.patch_embeddings.projection",
    )
    places.layer("patch_embed.norm", (width,), "embeddings.norm")
    for stage, (depth, head) in enumerate(zip(depths, heads, strict=True)):
        inner = width * 2**stage
        for n in range(depth):
            places.block(
                f"layers.{stage}.blocks.{n}.",
                [f"encoder.layers.{stage}.blocks.{n}."],
                SWIN,
                width=inner,
                hidden=int(mlp_ratio * inner),
                biases="qkv" if qkv_bias else "",
                table=((2 * window - 1) ** 2, head),
            )
        if stage < len(depths) - 1:
            ours, theirs = f"layers.{stage + 1}.downsample", f"encoder.layers.{stage}.downsample"
            places.layer(f"{ours}.norm", (4 * inner,), f"{theirs}.norm")
            places.layer(
                f"{ours}.reduction", (2 * inner, 4 * inner), f"{theirs}.reduction", bias=False
            )
    places.layer("norm", (width * 2 ** (len(depths) - 1),), "layernorm")
    return places


def head_places(outputs: int, width: int) -> Places:
    """SimMIM's linear head, a 1×1 convolution before a pixel shuffle."""
    places = Places()
    places.layer("head", (outputs, width, 1, 1), "decoder.0")
    return places
