"""``export --format hf``, opened by transformers and read back by simmim."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from simmim.config.run import PretrainConfig
from simmim.interop.export.huggingface import quiet, write_huggingface
from simmim.interop.load import load
from simmim.models.mim import MaskedImageModel
from simmim.verify.check import Figure, Ground, WrongError
from simmim.verify.exports import need
from simmim.verify.subjects import RGB, build, normals, some_masked


def round_trip(ground: Ground, config: PretrainConfig, *, whole: bool, side: int = 32) -> Figure:
    """Tokens of ``AutoModel``, and every bit of every weight that ``simmim.load`` reads back.

    With ``whole`` the decoder too; for ViT the prediction of ``ViTMAEForPreTraining`` with its
    noise chosen such that it masks what we mask. Relative to the largest value, 1e-4.
    """
    need("hf", "transformers")
    import transformers

    model = build(config, (side, side))
    folder = ground.folder / "hf"
    write_huggingface(folder, model, model.encoder, RGB, config=config, card="# A model\n")
    _read_back(model, load(folder, whole=whole), whole=whole)
    images = normals(ground, "hf", 2, 3, side, side)
    with quiet(transformers), torch.no_grad():
        found = model.encoder.features(images)
        ours = torch.cat([found.prefix, found.patches], dim=1)
        theirs = transformers.AutoModel.from_pretrained(folder).eval()(images).last_hidden_state
        worst = _away(ours, theirs)
        if config.encoder.model.startswith("vit"):
            whole_model = transformers.ViTMAEForPreTraining.from_pretrained(folder).eval()
            worst = max(worst, _prediction(ground, model, whole_model, images, config.mask.ratio))
    return Figure(worst, 1e-4, "largest relative difference")


def _prediction(
    ground: Ground, model: MaskedImageModel, whole: Any, images: Tensor, ratio: float
) -> float:
    patches = model.grid[0] * model.grid[1]
    count = patches - int(patches * (1 - ratio))  # as ViTMAE counts
    masked = some_masked(ground, len(images), patches, count)
    # It masks the highest numbers.
    noise = torch.from_numpy(ground.numbers("noise").random(masked.shape, np.float32)) + masked
    theirs = whole(images, noise=noise)
    if not torch.equal(theirs.mask.bool(), masked):
        raise WrongError("ViTMAEForPreTraining masks another number of patches.")
    ours = model.predict(images, masked)
    return _away(ours.flatten(0, 1), theirs.logits[masked])


def _read_back(model: MaskedImageModel, again: Any, *, whole: bool) -> None:
    if whole:
        ours, theirs = model.state_dict(), again.state_dict()
    else:
        ours, theirs = model.encoder.timm_state(), again.encoder.timm_state()
    names = sorted(ours.keys() | theirs.keys())
    unlike = [n for n in names if n not in ours or n not in theirs or _differ(ours[n], theirs[n])]
    if unlike:
        raise WrongError(f"simmim.load reads other weights: {', '.join(unlike[:4])}.")


def _differ(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or not torch.equal(one, other)


def _away(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise WrongError(f"shapes differ: {tuple(ours.shape)} and {tuple(theirs.shape)}.")
    return float((ours - theirs).abs().max() / ours.abs().max())
