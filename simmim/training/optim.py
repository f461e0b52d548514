"""Parameter groups from roles, and the optimizer."""

from collections.abc import Mapping

import torch
from torch import nn

from simmim.config.optim import OptimConfig, Role


def parameter_groups(
    module: nn.Module, roles: Mapping[str, tuple[Role, int]], config: OptimConfig
) -> list[dict]:
    """Parameters by weight decay and by rate; each group's ``scale`` multiplies the rate.

    Args:
        module: Its parameters that want gradients are grouped.
        roles: Role and depth of each, by name.
        config: Says which roles are not decayed, and the layer decay.
    """
    top = max(depth for _, depth in roles.values())
    groups: dict[tuple[bool, int], dict] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        role, depth = roles[name]
        decays = role not in config.no_decay
        group = groups.setdefault(
            (decays, depth if config.layer_decay < 1 else top),
            {
                "params": [],
                "names": [],
                "weight_decay": config.weight_decay if decays else 0.0,
                "scale": config.layer_decay ** (top - depth),
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(
    module: nn.Module, roles: Mapping[str, tuple[Role, int]], config: OptimConfig
) -> torch.optim.AdamW:
    """AdamW in one kernel for all parameters (fused)."""
    groups = parameter_groups(module, roles, config)
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)
