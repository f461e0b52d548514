"""Which way attention is computed."""

import torch
from torch import Tensor

LONGEST = 640
"""Tokens up to which plain attention is worth the memory of its weights (B, heads, L, L)."""


def prefers_plain(tokens: Tensor, *, bias: bool = False) -> bool:
    """Whether two products and a softmax are faster than torch's fused attention.

    They are on the CPU in bfloat16, where the fused backward takes 2 to 5 times as long, and with
    a trained bias, which the fused kernel cannot differentiate.

    Args:
        tokens: What attends (B, L, D).
        bias: Whether a trained bias is added to the logits.
    """
    if tokens.device.type != "cpu" or tokens.shape[1] > LONGEST:
        return False
    cast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if cast else tokens.dtype
    return bias or dtype == torch.bfloat16
