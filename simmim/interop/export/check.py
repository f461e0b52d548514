"""Whether another library makes the same of what was written."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from simmim.errors import VerificationError
from simmim.interop.export.model import Graph

LIMIT = 1e-4
"""Largest difference that an export may show, relative to the largest value, in float32."""


def difference(ours: Tensor, theirs: Tensor) -> float:
    """max|theirs - ours| / max|ours|; infinite where a shape differs or a value is not finite."""
    if ours.shape != theirs.shape:
        return math.inf
    ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
    if not (torch.isfinite(ours).all() and torch.isfinite(theirs).all()):
        return math.inf
    largest, apart = ours.abs().max().item(), (theirs - ours).abs().max().item()
    if largest == 0:
        return 0.0 if apart == 0 else math.inf
    return apart / largest


def differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """``difference`` for each of ``ours`` by name; infinite for one that ``theirs`` lacks."""
    return {
        name: difference(value, theirs[name]) if name in theirs else math.inf
        for name, value in ours.items()
    }


def largest(*rounds: Mapping[str, float]) -> dict[str, float]:
    """The largest of each name over several rounds."""
    names = [name for found in rounds for name in found]
    return {name: max(found.get(name, 0.0) for found in rounds) for name in names}


def batches(images: Tensor) -> list[int]:
    """Batch sizes to compare at: 1, 3 where there are so many, and all."""
    return sorted({min(count, len(images)) for count in (1, 3, len(images))})


def at_each_size(
    graph: Graph, images: Tensor, theirs: Callable[[Tensor], Mapping[str, Tensor]]
) -> dict[str, float]:
    """The largest difference of each output of a graph, over ``batches``."""
    rounds = (images[:count] for count in batches(images))
    return largest(*(differences(graph.named(some), theirs(some)) for some in rounds))


def judge(kind: str, found: Mapping[str, float]) -> None:
    """Refuse an export whose outputs differ.

    Raises:
        VerificationError: One is above ``LIMIT``, or nothing was compared.
    """
    wrong = {name: value for name, value in found.items() if not value <= LIMIT}
    if found and not wrong:
        return
    listed = "; ".join(
        f"{name} differs by {value:.2g} of its largest value"
        if math.isfinite(value)
        else f"{name} has another shape, or values that are not finite"
        for name, value in wrong.items()
    )
    raise VerificationError(
        f"the {kind} export does not give what this model gives: "
        f"{listed or 'nothing was compared'}. The limit is {LIMIT:g}. What was written was "
        "removed, so that nobody uses it. Try again; if it comes back, please report it with the "
        "versions of both libraries."
    )
