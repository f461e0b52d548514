"""Low-rank updates: what is trained, and that what is deployed has them in its matrices."""

import pytest
import torch

from simmim.config.encoder import EncoderConfig
from simmim.models.build import build_encoder
from simmim.models.lora import LowRank, add_low_rank

NARROW = {"embed_dim": 48, "depth": 2, "num_heads": 3}
SWIN = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 2}


@pytest.mark.parametrize(
    ("model", "arguments", "side"),
    [
        ("vit_tiny_patch16_224", NARROW, 32),
        ("beit_base_patch16_224", NARROW, 32),
        ("eva02_tiny_patch14_224", NARROW, 32),
        ("swin_tiny_patch4_window7_224", SWIN, 64),
    ],
)
def test_updates_learn_and_are_merged_into_the_weights_that_are_deployed(model, arguments, side):
    torch.manual_seed(0)
    patch = None if "swin" in model else 16
    config = EncoderConfig(model=model, patch_size=patch, arguments=arguments)
    encoder, again = (build_encoder(config, image_size=(side, side), channels=3) for _ in "ab")
    images = torch.randn(2, 3, side, side)
    before = encoder.eval().features(images).patches
    names = dict(encoder.named_parameters())
    added = add_low_rank(encoder.layers, 2)
    new = {n: p for n, p in encoder.named_parameters() if n not in names}
    assert added == sum(p.numel() for p in new.values())
    assert torch.equal(encoder.features(images).patches, before)

    encoder.features(images).patches.square().sum().backward()

    assert all(p.grad.abs().sum() > 0 for n, p in new.items() if n.endswith(".up"))
    for module in encoder.modules():
        if isinstance(module, LowRank):
            torch.nn.init.normal_(module.up, std=0.1)
    changed = encoder.features(images).patches
    assert (changed - before).abs().max() > 0.01
    again.load_timm_state(encoder.timm_state())
    torch.testing.assert_close(again.eval().features(images).patches, changed, atol=1e-4, rtol=1e-4)
