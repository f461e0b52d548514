"""Muon for the matrices of blocks, AdamW for the rest."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from simmim.config.optim import OptimConfig
from simmim.machine import has_bfloat16
from simmim.training.parallel import full, part
from simmim.training.world import World

_A, _B, _C = 3.4445, -4.7750, 2.0315  # of the quintic iteration, those of torch.optim.Muon
_ITERATIONS = 5
_EPSILON = 1e-7
_AT_ONCE = 2**26
"""Numbers in the matrices of one batched product, which bounds the memory that it takes."""


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal for matrices (Jordan et al., 2024), AdamW for all else.

    A matrix (rows, columns) is updated as by ``torch.optim.Muon`` with Nesterov momentum and
    ``adjust_lr_fn="match_rms_adamw"``: 0.2·√max(rows, columns) times the orthogonal factor, which
    is as large as an update of AdamW, so that one rate serves both (Liu et al., 2025, sec. 2.2).
    Matrices of one shape share batched products, and each of several processes does a part of
    them; torch's class takes them one by one, in every process.

    Args:
        groups: Those of ``parameter_groups``; ``kind`` says which are Muon's.
        config: The momentum of Muon, the moments of AdamW.
        world: The processes, which hold the same gradients.

    Attributes:
        found_inf: Other than 0 where the step is to leave weights and moments as they are.
    """

    def __init__(self, groups: list[dict], config: OptimConfig, world: World) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.momentum = config.momentum
        self.world = world
        self.found_inf: Tensor | None = None
        # Its groups and its state are those of this optimizer, not copies.
        self.adamw = torch.optim.AdamW(
            [group for group in self.param_groups if group["kind"] == "adamw"],
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )
        self.adamw.state = self.state
        self._step_supports_amp_scaling = True  # torch's scaler leaves it to ``found_inf``

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # noqa: ARG002  # type: ignore[override]
        """One step along the gradients as they are."""
        self.adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
        self.adamw.grad_scale = None  # type: ignore[attr-defined]
        self.adamw.step()
        made = None if self.found_inf is None else self.found_inf == 0
        for matrices in self._by_shape():
            directions = [
                full(self._direction(p, made), self.world).flatten(1) for p, _ in matrices
            ]
            directions = self._orthogonal(directions)
            for (parameter, group), direction in zip(matrices, directions, strict=True):
                size = 0.2 * math.sqrt(max(direction.shape))
                kept = 1 - group["lr"] * group["weight_decay"]
                if made is not None:  # told on the device, which nothing waits for
                    kept = torch.where(made, kept, 1.0)
                    direction = torch.where(made, direction, 0.0)
                direction = part(direction.reshape(parameter.shape), parameter, self.world)
                parameter.mul_(kept).add_(direction, alpha=-group["lr"] * size)

    def _by_shape(self) -> Iterator[Sequence[tuple[nn.Parameter, dict]]]:
        """The matrices that have a gradient with their groups, those of one shape together."""
        shapes: dict[tuple[int, ...], list[tuple[nn.Parameter, dict]]] = {}
        for group in self.param_groups:
            for parameter in group["params"] if group["kind"] == "muon" else []:
                if parameter.grad is not None:
                    shape = tuple(sorted(parameter.flatten(1).shape))
                    shapes.setdefault(shape, []).append((parameter, group))
        for (rows, columns), matrices in shapes.items():
            count = max(self.world.ranks, _AT_ONCE // (rows * columns))
            yield from (matrices[n : n + count] for n in range(0, len(matrices), count))

    def _direction(self, parameter: nn.Parameter, made: Tensor | None) -> Tensor:
        """The gradient with Nesterov momentum, which stays as it is where no step is made."""
        grad = parameter.grad
        assert grad is not None
        moments = self.state[parameter]
        if not moments:
            moments["momentum"] = torch.zeros_like(grad)
        if made is not None:
            grad = torch.where(made, grad, moments["momentum"])
        moments["momentum"].lerp_(grad, 1 - self.momentum)
        return grad.lerp(moments["momentum"], self.momentum)

    def _orthogonal(self, matrices: list[Tensor]) -> list[Tensor]:
        """The orthogonal factor of each; (m, n) and (n, m) go together."""
        lying = [each if each.shape[0] <= each.shape[1] else each.mT for each in matrices]
        ranks = self.world.ranks
        share = math.ceil(len(lying) / ranks)
        lying += [lying[0]] * (share * ranks - len(lying))
        mine = lying[self.world.rank * share :][:share]
        factors = self.world.concatenate(orthogonal(torch.stack(mine)))
        return [
            factor if each.shape[0] <= each.shape[1] else factor.mT
            for each, factor in zip(matrices, factors, strict=False)
        ]


def orthogonal(matrices: Tensor) -> Tensor:
    """Roughly U Vᵀ of each matrix U S Vᵀ: the Newton–Schulz iteration of Jordan et al. (2024).

    In bfloat16 where the device has it, as published; singular values end within 0.5 … 1.5.

    Args:
        matrices: (n, rows, columns), float32, with no more rows than columns.
    """
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=_EPSILON)
    x = x.bfloat16() if has_bfloat16(x.device) else x
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.float()
