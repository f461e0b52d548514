"""How far features spread: whether they tell images apart, and in how many directions."""

import numpy as np
from torch import Tensor

BLANK = 0.05
"""Standard deviation of normalised pixels below which a patch is blank."""
_EPSILON = 1e-7


def effective_rank(features: np.ndarray) -> float:
    """RankMe (Garrido et al., 2023, eq. 1–2): exp of the entropy of the singular values' shares.

    Args:
        features: (n, D), not centred.

    Returns:
        From 1, where all rows lie on one line, to min(n, D); NaN of features that are not finite.
    """
    if not np.isfinite(features).all():
        return float("nan")
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    shares = values / max(values.sum(), _EPSILON) + _EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))


def deviation(features: np.ndarray) -> float:
    """Standard deviation over the images of features (n, D), as a share of their root mean square.

    Returns:
        0, where all images have the same features, to 1.
    """
    values = features.astype(np.float64)
    size = np.sqrt((values**2).mean())
    return float(np.sqrt(values.var(0).mean()) / max(size, _EPSILON))


def blank_patches(patches: Tensor, channels: int) -> Tensor:
    """Which patches (B, N, K), normalised and with the channels innermost, are all one colour.

    Returns:
        (B, N) boolean.
    """
    return patches.unflatten(2, (-1, channels)).std(2, correction=0).mean(2) < BLANK
