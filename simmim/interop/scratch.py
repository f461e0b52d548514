"""Encoders with random weights, to compare with."""

import torch

from simmim.config.encoder import EncoderConfig
from simmim.interop.load import LoadedEncoder
from simmim.models.build import build_encoder
from simmim.tensors.counter import Purpose, hash64


def scratch_encoder(
    config: EncoderConfig, like: LoadedEncoder, number: int, seed: int
) -> LoadedEncoder:
    """An encoder as pretraining starts one, with random weights of the draw's own."""
    torch.manual_seed(hash64(seed, Purpose.WEIGHTS, number) >> 1)
    encoder = build_encoder(config, image_size=like.image_size, channels=like.pixels.channels)
    return LoadedEncoder(encoder, like.pixels).eval()
