"""Parameter groups from roles, and the optimizer."""

from collections.abc import Mapping

import torch
from torch import nn

from simmim.config.optim import OptimConfig, Role
from simmim.runs.checkpoints import MOMENTS
from simmim.training.muon import Muon
from simmim.training.world import World


def parameter_groups(
    module: nn.Module, roles: Mapping[str, tuple[Role, int]], config: OptimConfig
) -> list[dict]:
    """Parameters by optimizer, weight decay and rate; each group's ``scale`` multiplies the rate.

    Args:
        module: Its parameters that want gradients are grouped.
        roles: Role and depth of each, by name.
        config: Says which roles are Muon's and which are not decayed, and the layer decay.
    """
    top = max(depth for _, depth in roles.values())
    groups: dict[tuple[str, bool, int], dict] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        role, depth = roles[name]
        decays = role not in config.no_decay
        kind = config.kind if role in config.matrices else "adamw"
        group = groups.setdefault(
            (kind, decays, depth if config.layer_decay < 1 else top),
            {
                "params": [],
                "names": [],
                "kind": kind,
                "weight_decay": config.weight_decay if decays else 0.0,
                "scale": config.layer_decay ** (top - depth),
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def moment_bytes(
    module: nn.Module, roles: Mapping[str, tuple[Role, int]], config: OptimConfig
) -> int:
    """Bytes of what the optimizer keeps of the parameters."""
    return sum(
        p.nbytes * sum(key != "step" for key in MOMENTS[group["kind"]])
        for group in parameter_groups(module, roles, config)
        for p in group["params"]
    )


def build_optimizer(
    module: nn.Module, roles: Mapping[str, tuple[Role, int]], config: OptimConfig, world: World
) -> Muon | torch.optim.AdamW:
    """AdamW in one kernel for all parameters (fused), with Muon for matrices or without."""
    groups = parameter_groups(module, roles, config)
    match config.kind:
        case "muon":
            return Muon(groups, config, world)
        case "adamw":
            return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)
