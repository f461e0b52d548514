"""torch.export: encoder.pt2, a program that runs where torch is, without simmim or timm."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from simmim.interop.export.check import batches, difference, differences, largest
from simmim.interop.export.model import INPUT, Graph

FILE = "encoder.pt2"


def write_program(folder: Path, graph: Graph, *, facts: Mapping[str, str]) -> None:
    """Write the program with any number of images in a batch.

    Args:
        folder: It exists.
        graph: What to write.
        facts: Further files inside it, text by name.
    """
    encoder = graph.encoder
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, encoder.channels, *encoder.image_size)
    with torch.no_grad():
        program = torch.export.export(
            graph, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}}
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths on this machine
    torch.export.save(program, folder / FILE, extra_files=dict(facts))


def compare_program(folder: Path, graph: Graph, images: Tensor) -> dict[str, float]:
    """Load the program and run it on 1, 3 and all images.

    Args:
        folder: What ``write_program`` wrote.
        graph: What it wrote it from.
        images: As the graph takes them (B, C, H, W) float32.

    Returns:
        The largest relative difference of each output, and of the weights.
    """
    program = torch.export.load(folder / FILE)
    module = program.module()
    rounds = []
    for count in batches(images):
        some = images[:count]
        with torch.inference_mode():
            theirs = dict(zip(graph.outputs, module(some), strict=True))
        rounds.append(differences(graph.named(some), theirs))
    ours = graph.state_dict()
    weights = [difference(ours[name], value) for name, value in program.state_dict.items()]
    return {**largest(*rounds), "weights": max(weights)}
