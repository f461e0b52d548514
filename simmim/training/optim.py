"""Parameter groups from roles, the optimizer, and the rate as a pure function of the step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from simmim.config.optim import OptimConfig, Role


@dataclass(frozen=True)
class Schedule:
    """The learning rate of a run.

    Args:
        config: Shape of the schedule.
        peak: The highest rate, for the run's global batch.
        steps: Steps of the run.
        warmup: Steps of linear warm-up.
    """

    config: OptimConfig
    peak: float
    steps: int
    warmup: int

    @classmethod
    def plan(cls, config: OptimConfig, batch_size: int, steps: int, epoch: float) -> "Schedule":
        """The schedule of ``steps`` steps, where an epoch has ``epoch`` of them."""
        warmup = min(config.warmup_epochs * epoch, config.warmup_share * steps)
        return cls(config, config.peak(batch_size), steps, round(warmup))

    def rate(self, step: int) -> float:
        """The rate of step ``step``, counted from 0."""
        initial, final = self.config.initial, self.config.final
        if step < self.warmup:
            return self.peak * (initial + (1 - initial) * (step + 1) / self.warmup)
        if self.config.schedule == "multistep":
            return self.peak * (0.1 if step >= self.steps * 7 / 8 else 1.0)
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


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
