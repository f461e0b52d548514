"""How each format is opened from the other side: the code in a card, and one line to begin with."""

import json
from dataclasses import dataclass
from pathlib import Path

from simmim.data.audit.scaling import range_in_words
from simmim.interop.export import onnx, program
from simmim.interop.export.model import Graph
from simmim.interop.export.timm import takes_head


@dataclass(frozen=True)
class Usage:
    """Python that opens an export.

    Attributes:
        line: The shortest that does.
        code: What a model card shows.
    """

    line: str
    code: str


def usage(kind: str, folder: Path, graph: Graph, *, architecture: str | None = None) -> Usage:
    """How to open what was written to ``folder``.

    ``architecture``, for hf, is the class of transformers that takes all the weights.
    """
    if kind == "hf":
        return _hf(folder, graph, architecture)
    return {"timm": _timm, "onnx": _onnx, "torch": _program, "safetensors": _plain}[kind](
        folder, graph
    )


def _timm(folder: Path, graph: Graph) -> Usage:
    place = json.dumps(f"local-dir:{folder}")
    line = f"timm.create_model({place}, pretrained=True)"
    encoder = graph.encoder
    pooled = "model(images)  # (B, D): the mean of the patch tokens"
    if graph.outputs[0] == "logits" and takes_head(encoder):
        pooled = "model(images)  # (B, classes): logits"
    elif not takes_head(encoder):
        pooled = "model.forward_features(images)[:, model.num_prefix_tokens :].mean(1)  # (B, D)"
    code = f"""import timm
import torch

model = {line}
model.eval()
images = {_zeros(graph)}  # normalised, see below
with torch.no_grad():
    outputs = {pooled}
    tokens = model.forward_features(images)  # after the final norm
classifier = timm.create_model({place}, pretrained=True, num_classes=7)
"""
    return Usage(f"import timm; model = {line}", code)


def _hf(folder: Path, graph: Graph, architecture: str | None) -> Usage:
    kind = "AutoModel" if graph.net is None else "AutoModelForImageClassification"
    result = "last_hidden_state" if graph.net is None else "logits"
    note = "  # (B, tokens, D), prefix tokens first" if graph.net is None else ""
    place = json.dumps(str(folder))
    code = f"""import torch
from PIL import Image
from transformers import AutoImageProcessor, {kind}

processor = AutoImageProcessor.from_pretrained({place})
model = {kind}.from_pretrained({place})
inputs = processor(images=Image.open("photo.jpg"), return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs).{result}{note}
"""
    if architecture is not None and architecture.endswith(("PreTraining", "Modeling")):
        code += f"""
from transformers import {architecture}

whole = {architecture}.from_pretrained({place})  # with the decoder
"""
    return Usage(f"from transformers import {kind}; model = {kind}.from_pretrained({place})", code)


def _onnx(folder: Path, graph: Graph) -> Usage:
    line = f"session = onnxruntime.InferenceSession({json.dumps(str(folder / onnx.FILE))})"
    first, second = graph.outputs
    code = f"""import numpy as np
import onnxruntime

{line}
images = np.zeros({_shape(graph)}, np.float32)  # {_input(graph)}
{first}, {second} = session.run(["{first}", "{second}"], {{"images": images}})
about = session.get_modelmeta().custom_metadata_map  # mean, std, licence, classes, ...
"""
    return Usage(f"import onnxruntime; {line}", code)


def _program(folder: Path, graph: Graph) -> Usage:
    line = f"model = torch.export.load({json.dumps(str(folder / program.FILE))}).module()"
    first, second = graph.outputs
    code = f"""import torch

{line}
images = {_zeros(graph)}  # {_input(graph)}
with torch.no_grad():
    {first}, {second} = model(images)
"""
    return Usage(f"import torch; {line}", code)


def _plain(folder: Path, graph: Graph) -> Usage:
    line = f"encoder = simmim.load({json.dumps(str(folder))})"
    code = f"""import simmim
import torch

{line}
images = {_zeros(graph)}  # normalised, see below
with torch.no_grad():
    features, tokens = encoder(images), encoder.tokens(images)
"""
    return Usage(f"import simmim; {line}", code)


def _input(graph: Graph) -> str:
    if graph.normalised:
        return "normalised, see below"
    return f"decoded values, {range_in_words(graph.pixels)}"


def _shape(graph: Graph) -> str:
    return f"(1, {graph.encoder.channels}, {', '.join(map(str, graph.encoder.image_size))})"


def _zeros(graph: Graph) -> str:
    return f"torch.zeros{_shape(graph)}"
