"""Low-rank updates of an encoder's matrices (LoRA; Hu et al., 2021, sec. 4.1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRank(nn.Module):
    """What is added to the output of a linear layer: x Aᵀ Bᵀ, zero at first.

    Args:
        layer: The linear layer.
        rank: Rows of A, columns of B.
    """

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        like = {"dtype": layer.weight.dtype, "device": layer.weight.device}
        self.down = nn.Parameter(torch.empty(rank, layer.in_features, **like))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return F.linear(F.linear(x, self.down), self.up)


def add_low_rank(blocks: list[nn.Module], rank: int) -> int:
    """Give each linear layer of the blocks an update of its own; returns their number of weights.

    A layer whose matrix is taken from it, rather than called, has none: the queries, keys and
    values of timm's models where their biases are kept apart (BEiT, EVA).
    """
    added = 0
    for block in blocks:
        apart = {
            module.qkv
            for module in block.modules()
            if getattr(module, "qkv", None) is not None
            and getattr(module, "q_bias", None) is not None
        }
        for layer in list(block.modules()):
            if isinstance(layer, nn.Linear) and layer not in apart:
                layer.low_rank = LowRank(layer, rank)
                layer.register_forward_hook(_add)
                added += layer.low_rank.down.numel() + layer.low_rank.up.numel()
    return added


def _add(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + layer.get_submodule("low_rank")(inputs[0])


def merged(net: nn.Module) -> dict[str, Tensor]:
    """The state of a model, low-rank updates added to the matrices that they are of."""
    state = dict(net.state_dict())
    for name, module in net.named_modules():
        if isinstance(module, LowRank):
            weight = name.removesuffix("low_rank") + "weight"
            down, up = state.pop(f"{name}.down"), state.pop(f"{name}.up")
            state[weight] = state[weight] + up @ down
    return state
