"""Maps of several resolutions against their definition."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simmim.config.encoder import EncoderConfig
from simmim.models.build import build_encoder
from simmim.models.encoder import Encoder
from simmim.models.pyramid import Pyramid, SimplePyramid

SIZE = (64, 96)
TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def encoder_of(model: str, **arguments: object) -> Encoder:
    arguments = arguments or TINY
    config = EncoderConfig(model=model, patch_size=4 if "swin" in model else 8, arguments=arguments)
    torch.manual_seed(0)
    return build_encoder(config, image_size=SIZE, channels=3).eval()


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Over the channels of each place."""
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-6).sqrt() * weight[:, None, None] + bias[:, None, None]


def test_the_simple_pyramid_is_that_of_its_definition():
    """detectron2 modeling/backbone/vit.py, SimpleFeaturePyramid, scale factors 4, 2, 1, 0.5."""
    torch.manual_seed(0)
    pyramid, x = SimplePyramid(16, 32), torch.randn(2, 16, 4, 6)
    with torch.no_grad():
        for parameter in pyramid.parameters():
            parameter.copy_(torch.randn_like(parameter))
    state = pyramid.state_dict()

    def given(level: int, step: int) -> tuple[Tensor, Tensor]:
        return state[f"levels.{level}.{step}.weight"], state[f"levels.{level}.{step}.bias"]

    four = F.conv_transpose2d(x, *given(0, 0), stride=2)
    four = F.conv_transpose2d(F.gelu(norm(four, *given(0, 1))), *given(0, 3), stride=2)
    two = F.conv_transpose2d(x, *given(1, 0), stride=2)
    expected = []
    for level, (begin, each) in enumerate([(4, four), (1, two), (0, x), (1, F.max_pool2d(x, 2))]):
        each = norm(
            F.conv2d(each, state[f"levels.{level}.{begin}.weight"]), *given(level, begin + 1)
        )
        each = F.conv2d(each, state[f"levels.{level}.{begin + 2}.weight"], padding=1)
        expected.append(norm(each, *given(level, begin + 3)))
    found = pyramid(x)
    assert [each.shape for each in found] == [
        (2, 32, 16, 24),
        (2, 32, 8, 12),
        (2, 32, 4, 6),
        (2, 32, 2, 3),
    ]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("finest", [True, False])
def test_a_plain_encoder_gives_its_last_block_without_the_final_norm(finest: bool):
    encoder = encoder_of("vit_tiny_patch16_224")
    pyramid = Pyramid(encoder, 32, finest=finest)
    images = torch.randn(2, 3, *SIZE)
    maps = pyramid(images)
    assert pyramid.strides == ([2, 4, 8, 16, 32] if finest else [4, 8, 16, 32])
    names = [str(k) for k in range(len(pyramid.strides) - 1)]
    assert list(maps) == [*names, "pool"]
    for name, stride in zip(names, pyramid.strides[:-1], strict=True):
        assert maps[name].shape == (2, 32, SIZE[0] // stride, SIZE[1] // stride)
    assert maps["pool"].shape == (2, 32, 2, 3)
    last = encoder.net.forward_intermediates(images, indices=[1], norm=False)[1][0]
    torch.testing.assert_close(maps["0"], pyramid.neck(last)[0])
    sum(each.sum() for each in maps.values()).backward()
    trained = {name for name, p in pyramid.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in pyramid.named_parameters() if p.grad is not None}
    assert set(dict(pyramid.named_parameters())) - trained == {
        "encoder.net.norm.weight",
        "encoder.net.norm.bias",
    }
    assert set(pyramid.roles()) == set(dict(pyramid.named_parameters()))


@pytest.mark.parametrize("finest", [True, False])
def test_swin_gives_its_own_stages(finest: bool):
    encoder = encoder_of(
        "swin_tiny_patch4_window7_224", embed_dim=12, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2]
    )
    first = 0 if finest else 1
    pyramid = Pyramid(encoder, 32, finest=finest)
    assert pyramid.blocks.read == (0, 1, 3, 4)[first:]
    assert pyramid.strides == [4, 8, 16, 32, 64][first:]
    images = torch.randn(1, 3, 64, 64)
    maps = pyramid(images)
    assert [each.shape[2] for each in maps.values()] == [16, 8, 4, 2, 1][first:]
    stages = encoder.net.forward_intermediates(images, norm=False, intermediates_only=True)
    normed = {str(k): pyramid.norms[k](x) for k, x in enumerate(stages[first:])}
    torch.testing.assert_close(maps["0"], pyramid.neck(normed)["0"])
