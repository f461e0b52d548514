"""torch.export: encoder.pt2, a program that runs where torch is, without simmim or timm."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from simmim.interop.export.check import at_each_size, difference
from simmim.interop.export.model import INPUT, Graph

FILE = "encoder.pt2"


def write_program(folder: Path, graph: Graph, *, facts: Mapping[str, str]) -> None:
    """Write the program, for any number of images in a batch, with ``facts`` as files inside."""
    with torch.no_grad():
        program = torch.export.export(
            graph, (graph.example,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}}
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths on this machine
    torch.export.save(program, folder / FILE, extra_files=dict(facts))


def compare_program(folder: Path, graph: Graph, images: Tensor) -> dict[str, float]:
    """Load what ``write_program`` wrote, and run it on 1, 3 and all images.

    ``images`` are as the graph takes them: (B, C, H, W) float32. Returns the largest relative
    difference of each output, and of the weights.
    """
    program = torch.export.load(folder / FILE)
    module = program.module()

    @torch.inference_mode()
    def theirs(some: Tensor) -> dict[str, Tensor]:
        return dict(zip(graph.outputs, module(some), strict=True))

    ours = graph.state_dict()
    weights = [difference(ours[name], value) for name, value in program.state_dict.items()]
    return at_each_size(graph, images, theirs) | {"weights": max(weights)}
