"""Weights brought to other images: against independent computations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import make_interp_spline
from torch import Tensor

from simmim.config.resolved import PixelFormat
from simmim.interop.checkpoint import IMAGENET, ModelCheckpoint
from simmim.interop.load import encoder_from, load_found, model_from
from simmim.interop.open import open_source
from simmim.interop.resize import resize
from simmim.models.resample import resample_positions, resample_state, resample_table

REFERENCE = Path(__file__).parent / "reference"


def of(channels: int) -> PixelFormat:
    return PixelFormat(
        channels=channels,
        low=(0.0,) * channels,
        high=(255.0,) * channels,
        mean=(0.5,) * channels,
        std=(0.2,) * channels,
    )


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.75, as torch's bicubic interpolation has it."""
    x = abs(x)
    if x <= 1:
        return (1.25 * x - 2.25) * x * x + 1
    return ((-0.75 * x + 3.75) * x - 6) * x + 3 if x < 2 else 0.0


def bicubic(old: int, new: int) -> np.ndarray:
    """Weights (new, old) of one axis: pixel centres, edges repeated."""
    weights = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[i, min(max(j, 0), old - 1)] += cubic(centre - j)
    return weights


@pytest.mark.parametrize(("old", "new"), [((4, 4), (12, 12)), ((4, 6), (3, 9)), ((5, 5), (5, 2))])
def test_positions_are_resampled_bicubically_as_mae_does(old, new):
    positions = torch.randn(1, 2 + old[0] * old[1], 5)
    ours = resample_positions(positions, old, new)
    grid = positions[0, 2:].reshape(*old, 5).double().numpy()
    wanted = np.einsum("ih,jw,hwd->ijd", bicubic(old[0], new[0]), bicubic(old[1], new[1]), grid)
    assert torch.equal(ours[:, :2], positions[:, :2])
    assert np.abs(ours[0, 2:].numpy() - wanted.reshape(-1, 5)).max() < 1e-5


def spread(old: int, new: int) -> np.ndarray:
    """Where old offsets lie: 0, 1, 1+q, 1+q+q², …, the last of them at the new edge."""
    count, edge = (old - 1), (new - 1)
    low, high = 1.01, 1.5
    for _ in range(60):
        ratio = (low + high) / 2
        reach = sum(ratio**k for k in range(count))
        low, high = (low, ratio) if reach > edge else (ratio, high)
    places = [sum(ratio**k for k in range(n)) for n in range(count + 1)]
    return np.array([-p for p in places[:0:-1]] + places)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 7)), ((7, 7), (6, 12)), ((3, 5), (3, 9))])
def test_tables_are_resampled_geometrically_as_simmim_does(old, new):
    """Its spline, as the tensor product of two one-dimensional ones."""
    torch.manual_seed(0)
    rows = (2 * old[0] - 1) * (2 * old[1] - 1)
    table = torch.randn(rows + 3, 2)
    ours = resample_table(table, old, new)
    assert torch.equal(ours[-3:], table[-3:])
    sides = [
        np.clip(np.arange(-(n - 1), n), *spread(o, n)[[0, -1]])
        for o, n in zip(old, new, strict=True)
    ]
    for head in range(2):
        values = table[:rows, head].double().numpy().reshape(2 * old[0] - 1, 2 * old[1] - 1)
        for axis in range(2):
            spline = make_interp_spline(spread(old[axis], new[axis]), values, k=3, axis=axis)
            values = spline(sides[axis])
        assert np.abs(ours[:-3, head].numpy() - values.ravel()).max() < 5e-4


def test_a_table_keeps_the_near_offsets():
    """Linear in the offset near the middle: what a block attends to nearby does not change."""
    table = torch.randn(49 + 3, 1)
    ours = resample_table(table, (4, 4), (14, 14))[:-3].reshape(27, 27)
    middle = table[:-3].reshape(7, 7)
    assert (ours[12:15, 12:15] - middle[2:5, 2:5]).abs().max() < 1e-5


def patched(encoder, images: Tensor) -> Tensor:
    """What the patch projection alone answers: (B, D, h, w)."""
    projection = encoder.net.patch_embed.proj
    return projection(images)


def reference(name: str = "mae") -> ModelCheckpoint:
    return open_source(REFERENCE / f"{name}.pth")


def test_a_smaller_patch_answers_alike_on_smooth_images():
    """FlexiViT: the resampled projection sees in a shrunk patch what the old one saw in a whole."""
    found = reference()
    torch.manual_seed(0)
    smooth = F.interpolate(torch.randn(2, 3, 4, 4), size=(64, 64), mode="bicubic")
    half = F.interpolate(smooth, size=(32, 32), mode="bicubic", antialias=True)
    fitted, rows = resize(found, (32, 32), 8, IMAGENET)
    old = patched(load_found(found).encoder, smooth)
    new = patched(load_found(fitted).encoder, half)
    assert F.cosine_similarity(old.flatten(1), new.flatten(1)).min() > 0.98
    assert [name for name, _ in rows] == ["patch", "decoder"]
    assert fitted.pretraining is None  # its patches had other values


def test_channels_from_three_to_one_and_many():
    found = reference()
    images = torch.rand(2, 1, 64, 64)
    grey = patched(encoder_from(resize(found, (64, 64), 16, of(1))[0]), images)
    colour = patched(encoder_from(found), images.expand(-1, 3, -1, -1))
    five = patched(
        encoder_from(resize(found, (64, 64), 16, of(5))[0]), images.expand(-1, 5, -1, -1)
    )
    assert (grey - colour).abs().max() < 1e-5
    bias = encoder_from(found).net.patch_embed.proj.bias[:, None, None]
    # Five alike repeat red, green, blue, red, green: of the size of the three, not five thirds.
    assert 0.5 < (five - bias).std() / (colour - bias).std() < 1.5
    back = resize(resize(found, (64, 64), 16, of(1))[0], (64, 64), 16, IMAGENET)[0]
    again = patched(encoder_from(back), images.expand(-1, 3, -1, -1))
    assert (again - colour).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["mae", "simmim_vit", "simmim_swin"])
@pytest.mark.parametrize("size", [(96, 96), (128, 64)])
@torch.no_grad()
def test_a_whole_model_of_another_size_reconstructs(name: str, size: tuple[int, int]):
    found = reference(name)
    fitted, rows = resize(found, size, found.patch, IMAGENET)
    kinds = [kind for kind, _ in rows]
    assert kinds == {"mae": ["positions"], "simmim_vit": ["relative"]}.get(name, kinds)
    model = model_from(fitted).eval()
    masked = torch.zeros(1, model.grid[0] * model.grid[1], dtype=torch.bool)
    masked[:, ::2] = True
    assert model.predict(torch.randn(1, 3, *size), masked).isfinite().all()


@pytest.mark.parametrize("name", ["mae", "simmim_vit", "simmim_swin"])
@torch.no_grad()
def test_an_encoder_as_loaded_is_at_another_size_what_it_is_brought_to_it(name: str):
    found = reference(name)
    loaded, brought = (
        load_found(found),
        load_found(resize(found, (96, 64), found.patch, IMAGENET)[0]),
    )
    old, new, state = loaded.encoder, brought.encoder, loaded.encoder.timm_state()
    if name != "simmim_swin":  # whose windows stay as they were
        state |= resample_state(state, old.places(), new.places(), "timm")
        new.load_timm_state(state)
    loaded.image_size = (96, 64)
    image = np.random.default_rng(0).integers(0, 256, (100, 70, 3), np.uint8)
    x = loaded.transform(image)
    assert x.shape == (3, 96, 64)
    assert (loaded.tokens(x[None]) - brought.tokens(x[None])).abs().max() < 1e-5


def test_the_same_images_change_nothing():
    found = reference("simmim_vit")
    fitted, rows = resize(found, (64, 64), 16, IMAGENET)
    assert rows == []
    assert all(torch.equal(fitted.encoder[name], found.encoder[name]) for name in found.encoder)
    turned = replace(found, image_size=(64, 64))
    assert resize(turned, (64, 64), 16, IMAGENET)[1] == []
