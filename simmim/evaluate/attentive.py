"""Attentive probing: one learned query looks at the patch tokens of a frozen encoder.

The form is AIM's (El-Nouby et al., 2024): tokens are normalised by channel without parameters, keys
and values are linear without bias, a single learned query, no projection of query or output, and a
linear layer on top. As in CAPI (Darcet et al., 2025) a head has 64 channels, and the rate is chosen
on a share of the training images that is left out for that. Where AIM normalises by each batch, the
mean and deviation here are those of all training tokens.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim.config.optim import OptimConfig
from simmim.data.loading.images import split_rows
from simmim.data.loading.order import Order
from simmim.evaluate.probe import LEAST_LOG, Score, score
from simmim.tensors.counter import Purpose, uniform
from simmim.training.schedule import Schedule

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Peak rates that are tried."""
DECAY = 0.05
STEPS = 1000
BATCH = 128
LEFT_OUT = 0.2
"""Share of the training images that the rate is chosen on."""
HEAD = 64
"""Channels of a head."""
EPS = 1e-6

Say = Callable[[float], None]
"""Told which share is done."""


class AttentiveHead(nn.Module):
    """One query over the tokens of an image, and a linear layer on what it sees.

    As the query is the same for all images, keys need not be computed: q·(K x) = (Kᵀ q)·x; and the
    values only of what was averaged: Σ aₙ V xₙ = V Σ aₙ xₙ. Nor need tokens be normalised one by
    one: what is taken off all of them moves no share.

    Args:
        width: D, of the tokens.
        classes: Number of classes.
        seed: Of the first weights.
    """

    def __init__(self, width: int, classes: int, seed: int) -> None:
        super().__init__()
        heads = next(n for n in range(max(1, width // HEAD), 0, -1) if width % n == 0)
        each = width // heads
        drawn = uniform(seed, Purpose.WEIGHTS, torch.arange(2 * width + 1), width)
        bound = width**-0.5  # as torch starts a linear layer
        keys, values = ((2 * drawn[:-1] - 1) * bound).reshape(2, heads, each, width)
        normal = math.sqrt(2) * torch.erfinv((2 * drawn[-1] - 1).clamp(-0.95, 0.95))
        self.query = nn.Parameter(0.02 * normal.reshape(heads, each))
        self.keys = nn.Parameter(keys.clone())
        self.values = nn.Parameter(values.clone())
        self.mean, self.deviation = nn.Buffer(torch.zeros(width)), nn.Buffer(torch.ones(width))
        self.top = nn.Linear(width, classes)
        nn.init.zeros_(self.top.weight)
        nn.init.zeros_(self.top.bias)

    def standardise(self, mean: Tensor, variance: Tensor) -> None:
        """Bring tokens of such a mean (D,) and variance (D,) to 0 and 1, from now on."""
        self.mean.copy_(mean)
        self.deviation.copy_((variance + EPS).sqrt())

    def pool(self, tokens: Tensor) -> Tensor:
        """What the query sees (B, D) in tokens (B, N, D)."""
        query = self.query * self.query.shape[1] ** -0.5
        asked = torch.einsum("hd,hdw->hw", query, self.keys) / self.deviation
        share = torch.einsum("bnw,hw->bhn", tokens, asked).softmax(-1)
        seen = (torch.einsum("bhn,bnw->bhw", share, tokens) - self.mean) / self.deviation
        return torch.einsum("bhw,hdw->bhd", seen, self.values).flatten(1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, classes) of tokens (B, N, D)."""
        return self.top(self.pool(tokens))


def attentive(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    classes: int,
    seed: int = 0,
    say: Say = lambda _: None,
) -> Score:
    """Train an attentive head for each rate, and the one of the best rate again, on all images.

    Args:
        train: (n, N, D) patch tokens of the images to learn from.
        train_labels: (n,) class indices.
        test: (m, N, D) patch tokens of the images that are asked about.
        test_labels: (m,) class indices.
        classes: Number of classes.
        seed: Of the first weights, of the order, and of what is left out.
        say: Told how far it is.
    """
    tokens = torch.from_numpy(train)
    mean, variance = tokens.mean((0, 1)), tokens.var((0, 1), correction=0)

    def begun() -> AttentiveHead:
        head = AttentiveHead(train.shape[2], classes, seed)
        head.standardise(mean, variance)
        return head

    def fit(rows: np.ndarray, rates: Sequence[float], told: Say) -> list[AttentiveHead]:
        return _train(
            lambda chosen: tokens[rows[chosen]],
            torch.from_numpy(train_labels[rows]),
            [begun() for _ in rates],
            rates,
            seed=seed,
            say=told,
        )

    def ask(head: AttentiveHead, asked: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [head(part) for part in asked.split(BATCH)]
        return torch.cat(parts).log_softmax(1)

    first, left = split_rows(train_labels, LEFT_OUT, seed)
    rate = RATES[len(RATES) // 2]
    if len(left):
        truth = torch.from_numpy(train_labels[left])
        heads = fit(first, RATES, lambda share: say(0.8 * share))
        said = [ask(head, tokens[left]) for head in heads]
        right = [int((each.argmax(1) == truth).sum()) for each in said]
        likely = [
            float(each[torch.arange(len(left)), truth].clamp(min=LEAST_LOG).sum()) for each in said
        ]
        rate = RATES[np.lexsort((likely, right))[-1]]
    everything = np.arange(len(train_labels))
    (head,) = fit(everything, [rate], lambda share: say(0.8 + 0.2 * share))
    return score(test_labels, ask(head, torch.from_numpy(test)).exp().numpy(), classes)


def _train(
    tokens: Callable[[np.ndarray], Tensor],
    labels: Tensor,
    heads: list[AttentiveHead],
    rates: Sequence[float],
    *,
    seed: int,
    say: Say,
) -> list[AttentiveHead]:
    """Train heads side by side on the same batches, each at a rate of its own."""
    groups = [
        {"params": [*head.parameters()], "lr": 0.0, "peak": rate}
        for head, rate in zip(heads, rates, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=DECAY)
    order = Order((len(labels),), seed)
    size = min(BATCH, len(labels))
    schedule = Schedule(OptimConfig(), peak=1.0, steps=STEPS, warmup=STEPS // 10)
    for step in range(STEPS):
        rows = np.array([order.index(t) for t in range(step * size, (step + 1) * size)])
        batch, truth = tokens(rows), labels[rows]
        loss = torch.stack([F.cross_entropy(head(batch), truth) for head in heads]).sum()
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule.rate(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        say((step + 1) / STEPS)
    return heads
