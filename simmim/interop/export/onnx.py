"""ONNX: encoder.onnx, for onnxruntime and what else runs such graphs."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from simmim.interop.export.check import at_each_size
from simmim.interop.export.model import INPUT, Graph

FILE = "encoder.onnx"
OPSET = 18
"""Operator set: the one that torch's exporter is written in, and that most runtimes have."""


def write_onnx(folder: Path, graph: Graph, *, facts: Mapping[str, str]) -> None:
    """Write the graph, for any number of images in a batch, with ``facts`` as its metadata."""
    with torch.no_grad(), _quiet("onnxscript", "torch.onnx"):
        program = torch.onnx.export(
            graph,
            (graph.example,),
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
    """Check what ``write_onnx`` wrote, and run it with onnxruntime on 1, 3 and all images.

    ``images`` are as the graph takes them: (B, C, H, W) float32. Returns the largest relative
    difference of each output.
    """
    import onnx
    import onnxruntime

    file = str(folder / FILE)
    onnx.checker.check_model(file, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def theirs(some: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {INPUT: some.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    return at_each_size(graph, images, theirs)


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
