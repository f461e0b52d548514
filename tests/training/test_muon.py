"""Muon against torch's own, and what becomes of everything else."""

import torch
from torch import nn

from simmim.config.optim import OptimConfig
from simmim.training.muon import orthogonal
from simmim.training.optim import build_optimizer
from simmim.training.world import ALONE

SHAPES = {"wide": (24, 48), "tall": (48, 24), "again": (24, 48), "square": (24, 24)}
CONFIG = OptimConfig(kind="muon", momentum=0.9, weight_decay=0.1)


def numbers(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def module() -> nn.Module:
    module = nn.Module()
    for seed, (name, shape) in enumerate([*SHAPES.items(), ("head", (5, 24)), ("bias", (24,))]):
        module.register_parameter(name, nn.Parameter(numbers(shape, seed)))
    return module


def roles(module: nn.Module) -> dict:
    others = {"head": "weight", "bias": "vector"}
    return {name: (others.get(name, "block"), 1) for name, _ in module.named_parameters()}


def test_matrices_are_updated_as_torch_does_and_the_rest_by_adamw():
    ours, theirs = module(), module()
    optimizer = build_optimizer(ours, roles(ours), CONFIG, ALONE)
    muon = torch.optim.Muon(
        [theirs.get_parameter(name) for name in SHAPES],
        lr=0.01,
        weight_decay=0.1,
        momentum=0.9,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(
        [
            {"params": [theirs.get_parameter("head")], "weight_decay": 0.1},
            {"params": [theirs.get_parameter("bias")], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=CONFIG.betas,
        fused=True,
    )
    for step in range(4):
        for each in (ours, theirs):
            for seed, parameter in enumerate(each.parameters()):
                parameter.grad = numbers(parameter.shape, 100 * step + seed)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        for each in (optimizer, muon, adamw):
            each.step()
    before = module()
    for name, parameter in ours.named_parameters():
        moved = theirs.get_parameter(name) - before.get_parameter(name)
        apart = parameter - theirs.get_parameter(name)
        # torch's products are bfloat16 on every machine, and one by one.
        assert apart.norm() <= (0.01 * moved.norm() if name in SHAPES else 0.0), name


def test_singular_values_become_about_one_whatever_they_were():
    left, _ = torch.linalg.qr(numbers((40, 16, 16), 0))
    right, _ = torch.linalg.qr(numbers((40, 64, 16), 1))
    values = torch.logspace(0, -2, 16)
    given = left * values @ right.mT
    got = torch.linalg.svdvals(orthogonal(given))
    assert got.min() > 0.5
    assert got.max() < 1.3
    # The same directions: only the lengths have changed.
    assert (left.mT @ orthogonal(given) @ right).diagonal(dim1=1, dim2=2).min() > 0.5


def test_a_step_that_is_skipped_leaves_weights_and_moments():
    each = module()
    optimizer = build_optimizer(each, roles(each), CONFIG, ALONE)
    before = {name: value.clone() for name, value in each.state_dict().items()}
    for parameter in each.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in each.state_dict().items())
    moments = [state["momentum"] for state in optimizer.state.values() if "momentum" in state]
    assert len(moments) == len(SHAPES)
    assert not any(each.any() for each in moments)
