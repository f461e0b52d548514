"""What an encoder returns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Features:
    """What an encoder returns.

    Attributes:
        prefix: Class, distillation and register tokens (B, R, D) after the final norm; R may be 0.
        patches: Patch tokens (B, L, D) after the final norm.
        layers: Patch tokens (B, L, D) after each requested block, not normalised.
    """

    prefix: Tensor
    patches: Tensor
    layers: tuple[Tensor, ...] = ()
