"""The leak test: what is masked reaches neither features nor predictions nor gradients."""

from dataclasses import replace

import numpy as np
import torch

from simmim.config.run import PretrainConfig
from simmim.tensors.batch import Batch
from simmim.verify.check import Figure, Ground, WrongError
from simmim.verify.subjects import SIZE, build, normals


def leak(ground: Ground, config: PretrainConfig, size: tuple[int, int] = SIZE) -> Figure:
    """Masked pixels are replaced by NaN, which would spread through any sum that they enter.

    Counted are the values of features and prediction that are not finite or not bit for bit those
    of the whole images; parameters whose gradient is not finite; and masked pixels on which the
    prediction has a derivative. Exact. Visible pixels must have one, so that a prediction that
    depends on nothing does not pass.
    """
    model = build(replace(config, seed=ground.seed), size)
    whole = normals(ground, "leak", 2, 3, *size)
    batch = Batch(whole, torch.arange(2))
    mask = model.draw(batch)
    cells = mask.masked.numpy().reshape(2, 1, *mask.grid)
    side = model.encoder.stride
    hidden = torch.from_numpy(np.kron(cells, np.ones((1, 1, side, side), bool))).expand_as(whole)
    torn = whole.masked_fill(hidden, torch.nan).requires_grad_()

    features = model.encode(torn, mask)
    prediction = model.predict(torn, mask.masked)
    parts = (features.prefix, features.patches, prediction)
    (sum(part.square().sum() for part in parts)).backward()  # type: ignore[union-attr]
    with torch.no_grad():
        clean = model.encode(whole, mask)
        expected = (clean.prefix, clean.patches, model.predict(whole, mask.masked))

    faults = sum(int((a != b).sum()) for a, b in zip(parts, expected, strict=True))  # NaN ≠ NaN
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients:
        raise WrongError("no parameter has a gradient.")
    faults += sum(not bool(g.isfinite().all()) for g in gradients)
    assert torn.grad is not None
    faults += int((torn.grad[hidden] != 0).sum())
    reached = (torn.grad != 0).flatten(1).sum(1) / (~hidden).flatten(1).sum(1)
    if float(reached.min()) < 0.99:
        raise WrongError(
            f"the prediction depends on {float(reached.min()):.0%} of the visible pixels alone."
        )
    return Figure(faults, 0, "values that leak")
