"""Decoders written out in numpy: every block on every token, nothing left out for speed."""

import math

import numpy as np
import torch

from simmim.models.mim import MaskedImageModel
from simmim.tensors.mask import Mask
from simmim.verify.check import Figure, Ground
from simmim.verify.subjects import BEIT, GRID, SIZE, VIT, build, normals, some_masked

_PATCHES = GRID[0] * GRID[1]
_erf = np.vectorize(math.erf)


def transformer(ground: Ground) -> Figure:
    """The decoder of MAE (sec. 3): mask tokens put in, positions added, pre-norm blocks.

    x + attention(norm x), then x + mlp(norm x) with GELU, for all tokens in their places on the
    grid, in float64 from the same weights; ours skips what nothing reads. Relative to the largest
    prediction, 1e-5.
    """
    model = build(VIT)
    w = {n: p.detach().double().numpy() for n, p in model.decoder.state_dict().items()}
    images, masked = _images(ground)
    prefix, patches = _features(model, images, masked)
    place = model.decoder.position.double().numpy()  # type: ignore[union-attr, operator]
    found = _predict(model, images, masked)
    expected = []
    for b, hidden in enumerate(masked.numpy()):
        grid = np.repeat(w["mask_token"][0], _PATCHES, axis=0)
        grid[~hidden] = _linear(patches[b], w, "embed")
        x = np.concatenate([_linear(prefix[b], w, "embed"), grid + place])
        for block in range(2):
            name = f"blocks.{block}"
            x = x + _attention(_norm(x, w, f"{name}.norm1"), w, f"{name}.attn", heads=2)
            h = _linear(_norm(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1")
            x = x + _linear(h * (1 + _erf(h / math.sqrt(2))) / 2, w, f"{name}.mlp.fc2")
        expected.append(_linear(_norm(x, w, "norm"), w, "head")[len(prefix[b]) :][hidden])
    return _compare(found, np.stack(expected))


def linear(ground: Ground) -> Figure:
    """The prediction head of SimMIM (sec. 3.3): one linear layer on the masked places' features.

    In float64 from the same weights. Relative to the largest prediction, 1e-5.
    """
    model = build(BEIT)
    w = {n: p.detach().double().numpy() for n, p in model.decoder.state_dict().items()}
    images, masked = _images(ground)
    _, patches = _features(model, images, masked)
    rows = [_linear(patches[b][hidden], w, "head") for b, hidden in enumerate(masked.numpy())]
    return _compare(_predict(model, images, masked), np.stack(rows))


def _images(ground: Ground) -> tuple[torch.Tensor, torch.Tensor]:
    return normals(ground, "decoder", 2, 3, *SIZE), some_masked(ground, 2, _PATCHES, 10)


@torch.no_grad()
def _features(
    model: MaskedImageModel, images: torch.Tensor, masked: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    found = model.encode(images, Mask.given(masked, GRID))
    return found.prefix.double().numpy(), found.patches.double().numpy()


@torch.no_grad()
def _predict(model: MaskedImageModel, images: torch.Tensor, masked: torch.Tensor) -> np.ndarray:
    return model.predict(images, masked).double().numpy()


def _compare(found: np.ndarray, expected: np.ndarray) -> Figure:
    worst = float(np.abs(found - expected).max() / np.abs(expected).max())
    return Figure(worst, 1e-5, "largest relative difference")


def _linear(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def _attention(x: np.ndarray, w: dict[str, np.ndarray], name: str, heads: int) -> np.ndarray:
    parts = _linear(x, w, f"{name}.qkv").reshape(len(x), 3, heads, -1).transpose(1, 2, 0, 3)
    q, k, v = parts  # heads, tokens, width of a head
    logits = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    share = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = (share / share.sum(-1, keepdims=True)) @ v
    return _linear(mixed.transpose(1, 0, 2).reshape(len(x), -1), w, f"{name}.proj")
