"""Positions, the optimizer's step and the rate against the formulas."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from simmim.config.optim import OptimConfig, Role
from simmim.config.recipes import RECIPES
from simmim.models.mim import MaskedImageModel, build_model
from simmim.models.positions import sine_cosine
from simmim.tensors.batch import Batch
from simmim.training.optim import build_optimizer
from simmim.training.schedule import Schedule
from simmim.training.step import Stepper
from simmim.training.task import Task
from simmim.training.world import World
from simmim.verify.check import Figure, Ground
from simmim.verify.subjects import GRID, RGB, SIZE, VIT, build

ALONE = World(0, 1, torch.device("cpu"))
_ROWS = 12
_RATES = (1e-3, 2e-3, 5e-4)
_OPTIM = OptimConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, layer_decay=0.75, clip=2.0)


def positions(_: Ground) -> Figure:
    """The sine-cosine position embedding in two dimensions (MAE's pos_embed.py).

    The first half of the channels for the column, the second for the row; of each half first
    sin(x·10000^(-i/(D/4))), then cos. Grids that are not square; and the positions of a new
    encoder and decoder, zero for the class token. Absolute, 1e-6.
    """
    torch.manual_seed(0)
    model = build_model(VIT, RGB, SIZE)
    found = {
        (GRID, 48): model.encoder.net.pos_embed.detach()[0, 1:],
        (GRID, 32): model.decoder.position,
        ((14, 14), 32): sine_cosine((14, 14), 32),
        ((3, 1), 8): sine_cosine((3, 1), 8),
    }
    worst = float(model.encoder.net.pos_embed.detach()[0, 0].abs().max())
    for ((h, w), width), table in found.items():
        expected = np.zeros((h * w, width))
        quarter = width // 4
        for n in range(h * w):
            for half, place in enumerate((n % w, n // w)):
                for i in range(quarter):
                    angle = place / 10000 ** (i / quarter)
                    expected[n, 2 * half * quarter + i] = math.sin(angle)
                    expected[n, (2 * half + 1) * quarter + i] = math.cos(angle)
        worst = max(worst, float(np.abs(table.numpy() - expected).max()))
    return Figure(worst, 1e-6, "largest difference")


class KnownGradient(Task):
    """Its loss is linear in the weights, so that each image's gradient is known in advance.

    Image t of the step has the gradient weight(t) · direction; ``weight`` differs from image to
    image, so that each must count by one over the global batch; the direction's numbers move on by
    one place a step.
    """

    def __init__(self, model: MaskedImageModel, directions: dict[str, Tensor]) -> None:
        super().__init__(model)
        self.model = model
        self.directions = directions

    @staticmethod
    def weight(t: Tensor) -> Tensor:
        """Of the images at places ``t``: large in the first step, so that it is clipped."""
        return (1.0 + t % _ROWS).float() * torch.where(t < _ROWS, 1.0, 1e-3)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The mean over the images of the batch."""
        scale = self.weight(batch.t).mean()
        named = self.model.named_parameters()
        step = int(batch.t[0]) // _ROWS
        terms = [
            (p * self.directions[n].roll(step)).sum() for n, p in named if n in self.directions
        ]
        return {"loss": scale * torch.stack(terms).sum()}

    def roles(self) -> dict[str, tuple[Role, int]]:
        """The model's."""
        return self.model.roles()


def adamw_step(ground: Ground) -> Figure:
    """Three steps of AdamW as training makes them, against numpy in float64.

    Micro-batches of 5, 5 and 2 images, each image counted by 1/12; gradients clipped to norm 2;
    rates that fall by 0.75 a block; m and v with their corrections, ε beside the root, decay by
    rate · 0.05 · weight (Loshchilov and Hutter, 2019, algorithm 2) for matrices alone: not for
    biases, norms, tokens and positions. The largest difference of a weight, as a share of the
    summed rates, 1e-4; and the gradient norm, relative, 1e-4.
    """
    return _steps(ground, _OPTIM, 1e-4)


def muon_step(ground: Ground) -> Figure:
    """The same with Muon for the matrices of blocks: 0.2·√max(m, n) · U f(S) Vᵀ.

    U S Vᵀ is the momentum (Nesterov's) over its norm, from numpy's singular values, and f five
    times 3.4445 s - 4.775 s³ + 2.0315 s⁵ (Jordan et al., 2024), which training computes by products
    of matrices in bfloat16, with 8 bits: 5e-2.
    """
    return _steps(ground, replace(_OPTIM, kind="muon"), 5e-2)


def _steps(ground: Ground, optim: OptimConfig, limit: float) -> Figure:
    model = build(VIT)
    numbers = ground.numbers("gradients")
    start = {n: p.detach().double().numpy() for n, p in model.named_parameters()}
    directions = {
        n: torch.from_numpy(numbers.standard_normal(p.shape, np.float32))
        for n, p in model.named_parameters()
    }
    task = KnownGradient(model, directions)
    stepper = Stepper(
        task,
        build_optimizer(model, task.roles(), optim, ALONE),
        batch_size=_ROWS,
        precision="fp32",
        clip=optim.clip,
        seed=0,
        world=ALONE,
    )
    norms = []
    for step, rate in enumerate(_RATES):
        norms.append(stepper.step(_micro_batches(step), rate)["grad_norm"])
    expected, expected_norms = _by_hand(start, directions, optim)
    worst = max(
        float(np.abs(p.detach().double().numpy() - expected[n]).max()) / sum(_RATES)
        for n, p in model.named_parameters()
    )
    norm = np.abs(np.array(norms) / expected_norms - 1).max()
    return Figure(max(worst, float(norm)), limit, "largest difference, as a share of the rate")


def _micro_batches(step: int) -> Iterator[Batch]:
    first = step * _ROWS
    for begin, end in ((0, 5), (5, 10), (10, 12)):
        yield Batch(torch.empty(end - begin, 0), torch.arange(first + begin, first + end))


def _by_hand(
    start: dict[str, np.ndarray], directions: dict[str, Tensor], optim: OptimConfig
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Weights after the steps, and the gradient norms before clipping."""
    p = {name: value.copy() for name, value in start.items()}
    m = {name: np.zeros_like(value) for name, value in start.items()}
    v = {name: np.zeros_like(value) for name, value in start.items()}
    first, second = optim.betas
    norms = []
    for step, rate in enumerate(_RATES):
        scale = sum(1.0 + row for row in range(_ROWS)) / _ROWS * (1.0 if step == 0 else 1e-3)
        gradient = {n: scale * np.roll(d.double().numpy(), step) for n, d in directions.items()}
        norms.append(math.sqrt(sum(float((g * g).sum()) for g in gradient.values())))
        clip = min(1.0, (optim.clip or math.inf) / norms[-1])
        for name in p:
            g = clip * gradient[name]
            own = rate * 0.75 ** (3 - _depth(name))
            if _decays(name, p[name]):
                p[name] = p[name] - own * 0.05 * p[name]
            if optim.kind == "muon" and ".blocks." in name and p[name].ndim > 1:
                m[name] = optim.momentum * m[name] + (1 - optim.momentum) * g
                nesterov = (1 - optim.momentum) * g + optim.momentum * m[name]
                p[name] = p[name] - own * 0.2 * math.sqrt(max(g.shape)) * _orthogonal(nesterov)
                continue
            m[name] = first * m[name] + (1 - first) * g
            v[name] = second * v[name] + (1 - second) * g * g
            root = np.sqrt(v[name] / (1 - second ** (step + 1)))
            p[name] = p[name] - own * (m[name] / (1 - first ** (step + 1))) / (root + 1e-8)
    return p, norms


def _orthogonal(matrix: np.ndarray) -> np.ndarray:
    """Its singular values driven towards 1 by the quintic."""
    u, s, v = np.linalg.svd(matrix / np.linalg.norm(matrix), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return u * s @ v


def _depth(name: str) -> int:
    """0 before the blocks, 1 and 2 in them, 3 from the encoder's last norm on."""
    block = re.match(r"encoder\.net\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if re.match(r"encoder\.net\.(patch_embed|cls_token|pos_embed)", name) else 3


def _decays(name: str, value: np.ndarray) -> bool:
    return value.ndim > 1 and not name.endswith(("token", "pos_embed"))


def schedule(_: Ground) -> Figure:
    """The rate of every step of each recipe, at batches of 64 and 4,096.

    The peak is lr · B/256, and below 256 lr · √(B/256). Linear warm-up over min(40 or 10 epochs, 5
    or 10 %), whose last step has the peak; then ½(1 + cos πx) (Loshchilov and Hutter, 2017), x
    from 0 at the warm-up's end to 1 at the run's, or 1 − x, or a tenth from 7/8 of the run (SimMIM,
    ViT).
    Relative to the peak, 1e-9.
    """
    worst = 0.0
    for make in RECIPES.values():
        config = make().optim
        base = config.lr or 1.5e-4
        config = OptimConfig(**{**vars(config), "lr": base})
        for batch, steps, epoch in ((64, 1000, 20.0), (4096, 800, 2.0)):
            peak = base * (batch / 256 if batch >= 256 else math.sqrt(batch / 256))
            warm = round(min((config.warmup_epochs or 0) * epoch, config.warmup_share * steps))
            found = Schedule.plan(config, batch, steps, epoch)
            for step in range(steps):
                if step < warm:
                    share = config.initial + (1 - config.initial) * (step + 1) / warm
                elif config.schedule == "multistep":
                    share = 1.0 if step < 7 * steps / 8 else 0.1
                else:
                    left = 1 - (step - warm) / (steps - warm)
                    if config.schedule == "cosine":
                        left = (1 - math.cos(math.pi * left)) / 2
                    share = config.final + (1 - config.final) * left
                worst = max(worst, abs(found.rate(step) / peak - share))
    return Figure(worst, 1e-9, "largest difference")
