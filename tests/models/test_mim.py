"""The model against formulas written out in numpy, and against what must never happen."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from simmim.config.decoder import LinearDecoder, TransformerDecoder
from simmim.config.encoder import EncoderConfig
from simmim.config.mask import RandomMask
from simmim.config.run import PretrainConfig
from simmim.config.target import PixelTarget
from simmim.errors import ConfigError
from simmim.evaluate.detail import HoldoutSums, interpolate, masked_map, mean_fill
from simmim.models.mim import MaskedImageModel, build_model
from simmim.targets.pixels import Pixels
from simmim.tensors.batch import Batch
from simmim.tensors.mask import Mask
from simmim.tensors.patches import denormalise, normalise, patchify, unpatchify

SWIN = EncoderConfig(
    model="swin_tiny_patch4_window7_224",
    position="none",
    arguments={
        "embed_dim": 12,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 2, 2),
        "window_size": 2,
    },
)


def make(config: PretrainConfig, pixels, size=(32, 32)) -> MaskedImageModel:
    torch.manual_seed(0)
    return build_model(config, pixels, size).eval()


def some(model: MaskedImageModel, b: int = 3):
    torch.manual_seed(1)
    height, width = model.encoder.image_size
    images = torch.randn(b, model.encoder.channels, height, width)
    batch = Batch(images=images, t=torch.arange(b))
    return images, model.draw(batch)


def sums_of(model: MaskedImageModel) -> HoldoutSums:
    pixels = model.target.within(Pixels)
    assert pixels is not None
    return HoldoutSums(model, *pixels)


@pytest.mark.parametrize("loss", ["l2", "l1"])
@pytest.mark.parametrize("norm_pix", [False, True])
def test_loss_is_the_formula(tiny: PretrainConfig, pixels, loss, norm_pix):
    config = replace(tiny, target=PixelTarget(loss=loss, norm_pix=norm_pix))
    model = make(config, pixels, (32, 48))
    images, mask = some(model)
    with torch.no_grad():
        found = model.loss(images, mask.masked).item()
        prediction = model.predict(images, mask.masked).double().numpy()
        raw = (denormalise(images, pixels) * 255)[..., :]
        both = model(Batch(images=raw, t=torch.arange(3)), mask)

    x, masked = images.double().numpy(), mask.masked.numpy()
    total = 0.0
    for b in range(3):
        row = 0
        for n in range(24):
            if not masked[b, n]:
                continue
            top, left = n // 6 * 8, n % 6 * 8
            patch = x[b, :, top : top + 8, left : left + 8].transpose(1, 2, 0).ravel()
            if norm_pix:
                patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
            error = prediction[b, row] - patch
            total += np.abs(error).sum() if loss == "l1" else (error**2).sum()
            row += 1
    count = mask.count * 3 * 64
    assert found == pytest.approx(total / (3 * count), rel=1e-5)
    assert both["loss"].item() == pytest.approx(total / (3 * count), rel=1e-4)
    assert both["loss_sum"].item() == pytest.approx(total / 3, rel=1e-4)


@pytest.mark.parametrize("kind", ["visible", "all", "swin"])
def test_masked_pixels_reach_neither_features_nor_gradients(tiny: PretrainConfig, pixels, kind):
    config, size = tiny, (32, 32)
    if kind != "visible":
        config = replace(tiny, decoder=LinearDecoder())
    if kind == "swin":
        config, size = replace(config, encoder=SWIN, mask=RandomMask(ratio=0.5, unit=32)), (64, 64)
    model = make(config, pixels, size)
    images, mask = some(model)
    hidden = masked_map(mask, model.encoder.stride).expand_as(images)
    outputs = []
    for fill in (float("nan"), 0.0):
        model.zero_grad()
        features = model.encode(images.masked_fill(hidden, fill), mask)
        features.patches.square().sum().backward()
        outputs.append(features.patches.detach())
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients
        assert all(g.isfinite().all() for g in gradients)
    assert outputs[0].isfinite().all()
    assert torch.equal(*outputs)


def test_the_last_block_may_skip_what_nothing_reads(tiny: PretrainConfig, pixels):
    model = make(tiny, pixels)
    images, mask = some(model)
    features = model.encode(images, mask)
    decoder = model.decoder
    found = decoder(features, mask)
    # All blocks on all tokens, put back into their places, as in the MAE paper.
    x = decoder.embed(torch.cat([features.prefix, features.patches], 1))
    n = mask.masked.shape[1]
    whole = decoder.mask_token.expand(3, n, -1).clone()
    for b in range(3):
        whole[b, mask.visible_index[b]] = x[b, 1:]
    x = torch.cat([x[:, :1], whole + decoder.position], 1)
    for block in decoder.blocks:
        x = block(x)
    expected = decoder.head(decoder.norm(x))[:, 1:]
    expected = torch.stack([expected[b, mask.masked_index[b]] for b in range(3)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_mask_tokens_replace_what_is_masked_inside_the_encoder(tiny: PretrainConfig, pixels):
    config = replace(tiny, decoder=LinearDecoder(), target=PixelTarget(loss="l1"))
    model = make(config, pixels)
    images, mask = some(model)
    tokens = model.encoder.project(patchify(images, 8))
    assert model.mask_token is not None
    tokens = torch.where(mask.masked[..., None], model.mask_token, tokens)
    expected = model.encoder(tokens, None, model.grid).patches
    torch.testing.assert_close(model.encode(images, mask).patches, expected)


def test_mask_token_starts_with_variance_one_over_width(tiny: PretrainConfig, pixels):
    draws = []
    for seed in range(200):
        torch.manual_seed(seed)
        draws.append(build_model(tiny, pixels, (32, 32)).decoder.mask_token.detach().flatten())
        if seed == 20:
            break
    values = torch.cat(draws)
    assert len(values) == 21 * 32
    assert values.var().item() == pytest.approx(1 / 32, rel=0.15)
    assert abs(values.mean().item()) < 3 * (1 / 32 / len(values)) ** 0.5


def test_an_encoder_that_needs_every_token_cannot_drop_any(tiny: PretrainConfig, pixels):
    with pytest.raises(ConfigError, match="simmim-paper-swin"):
        make(replace(tiny, encoder=SWIN), pixels, (64, 64))


def test_patches_go_there_and_back():
    images = torch.randn(2, 5, 24, 40)
    patches = patchify(images, 8)
    assert patches.shape == (2, 15, 320)
    assert torch.equal(unpatchify(patches, 8, (3, 5), 5), images)
    # (row, column, channel): value 1 of a patch is the second channel of its first pixel.
    assert patches[0, 6, 1] == images[0, 1, 8, 8]


def test_pixels_go_there_and_back(pixels):
    values = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(denormalise(normalise(values, pixels), pixels) * 255, values.float())


def test_explained_detail_is_the_formula(tiny: PretrainConfig, pixels):
    model = make(tiny, pixels)
    images, mask = some(model)
    sums = sums_of(model)
    with torch.no_grad():
        sums.add(Batch(images, torch.arange(3)), images, mask)
        prediction = model.predict(images, mask.masked).double().numpy()
    x = images.double().numpy()
    hidden = masked_map(mask, 8).expand_as(images).numpy()
    error, mean_error = 0.0, 0.0
    for b in range(3):
        for row, n in enumerate(mask.masked_index[b].tolist()):
            part = np.s_[b, :, n // 4 * 8 : n // 4 * 8 + 8, n % 4 * 8 : n % 4 * 8 + 8]
            error += ((prediction[b, row] - x[part].transpose(1, 2, 0).ravel()) ** 2).sum()
            for c in range(3):
                mean = x[b, c][~hidden[b, c]].mean()
                mean_error += ((x[part][c] - mean) ** 2).sum()
    assert sums.detail().explained == pytest.approx(1 - error / mean_error, abs=1e-5)


def test_a_perfect_prediction_explains_everything_and_the_baseline_nothing(tiny, pixels):
    model = make(tiny, pixels)
    images, mask = some(model)
    for baseline, value in (("truth", 1.0), ("mean", 0.0)):
        source = images if baseline == "truth" else mean_fill(images, masked_map(mask, 8))
        rows = torch.arange(3)[:, None]
        answer = patchify(source, 8)[rows, mask.masked_index]
        model.decoder.forward = lambda *_, answer=answer: answer
        sums = sums_of(model)
        sums.add(Batch(images, torch.arange(3)), images, mask)
        assert sums.detail().explained == pytest.approx(value, abs=1e-6)


def test_interpolation_is_the_blurred_visible_pixels():
    from scipy.ndimage import gaussian_filter

    torch.manual_seed(2)
    images = torch.randn(1, 1, 32, 32)
    masked = torch.zeros(1, 16, dtype=torch.bool)
    masked[0, [0, 5, 6, 10]] = True
    hidden = masked_map(Mask.given(masked, (4, 4)), 8)
    visible = (~hidden).double().numpy()[0, 0]
    x = images.double().numpy()[0, 0]
    blur = {"sigma": 4, "mode": "constant", "truncate": 6}
    expected = gaussian_filter(visible * x, **blur) / gaussian_filter(visible, **blur)
    found = interpolate(images, hidden, 8)[0, 0].double().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_decoder_width_follows_the_encoder(pixels):
    widths = {}
    for name in ("tiny", "small", "base"):
        config = PretrainConfig(
            encoder=EncoderConfig(model=f"vit_{name}_patch16_224", arguments={"depth": 1}),
            decoder=TransformerDecoder(depth=1),
        )
        decoder = build_model(config, pixels, (32, 32)).decoder
        widths[name] = (decoder.position.shape[1], decoder.blocks[0].attn.heads)
    assert widths == {"tiny": (64, 2), "small": (128, 4), "base": (256, 8)}


def test_masks_and_images_of_another_size_go_to_the_encoder_but_not_of_two_sizes(tiny, pixels):
    model = make(tiny, pixels)
    images, grid = torch.randn(2, 3, 48, 32), (48 // model.encoder.patch, 32 // model.encoder.patch)
    masked = torch.zeros(2, grid[0] * grid[1], dtype=torch.bool)
    masked[:, 1::2] = True
    mask = Mask.given(masked, grid)
    patches = patchify(images, model.encoder.patch)[:, ::2]
    tokens = model.encoder.project(patches)
    expected = model.encoder(tokens, mask.visible_index, grid).patches
    assert torch.equal(model.encode(images, mask).patches, expected)
    with pytest.raises(ConfigError, match=r"mask is of images of 48×32 pixels, .* images of 32×32"):
        model.encode(images[:, :, :32], mask)
