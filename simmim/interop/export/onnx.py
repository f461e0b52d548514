"""ONNX: encoder.onnx, for onnxruntime and what else runs such graphs."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from simmim.interop.export.check import batches, differences, largest
from simmim.interop.export.model import INPUT, Graph

FILE = "encoder.onnx"
OPSET = 18
"""Operator set: the one that torch's exporter is written in, and that most runtimes have."""


def write_onnx(folder: Path, graph: Graph, *, facts: Mapping[str, str]) -> None:
    """Write the graph with any number of images in a batch.

    Args:
        folder: It exists.
        graph: What to write.
        facts: The model's metadata, such as the names of its classes.
    """
    encoder = graph.encoder
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, encoder.channels, *encoder.image_size)
    with torch.no_grad(), _quiet("onnxscript", "torch.onnx"):
        program = torch.onnx.export(
            graph,
            (example,),
            input_names=[INPUT],
            output_names=list(graph.outputs),
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # paths on this machine, of the code that each came from
    program.model.metadata_props.update(facts)
    program.save(folder / FILE)


def compare_onnx(folder: Path, graph: Graph, images: Tensor) -> dict[str, float]:
    """Check the graph, and run it with onnxruntime on 1, 3 and all images.

    Args:
        folder: What ``write_onnx`` wrote.
        graph: What it wrote it from.
        images: As the graph takes them (B, C, H, W) float32.

    Returns:
        The largest relative difference of each output.
    """
    import onnx
    import onnxruntime

    file = str(folder / FILE)
    onnx.checker.check_model(file, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    rounds = []
    for count in batches(images):
        some = images[:count]
        theirs = session.run(names, {INPUT: some.numpy()})
        found = {name: torch.from_numpy(value) for name, value in zip(names, theirs, strict=True)}
        rounds.append(differences(graph.named(some), found))
    return largest(*rounds)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silence remarks of the exporter that are about its own optimisations."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
