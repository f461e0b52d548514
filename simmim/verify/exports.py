"""Round trips: what is written, opened by the other library, gives the same features."""

import json
from importlib.util import find_spec
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from simmim.config.run import PretrainConfig
from simmim.interop.export.model import Graph, Subject
from simmim.interop.export.timm import write_timm
from simmim.interop.load import load_encoder
from simmim.models.encoder import Encoder
from simmim.runs.encoder import save_encoder
from simmim.verify.check import Figure, Ground, SkippedError, WrongError
from simmim.verify.subjects import RGB, SIZE, VIT, build, normals


def encoder_file(ground: Ground, config: PretrainConfig, size: tuple[int, int] = SIZE) -> Figure:
    """encoder.safetensors and encoder.json, opened by timm, and by ``simmim.load``.

    timm's patch features against ours on random images, relative to the largest, 1e-5; and every
    bit of every weight that ``simmim.load`` reads back.
    """
    encoder = build(config, size).encoder
    images = normals(ground, "export", 2, 3, *size)
    save_encoder(ground.folder, encoder, RGB, {"recipe": config.recipe})

    card = json.loads((ground.folder / "encoder.json").read_bytes())
    net = timm.create_model(card["model"], **card["arguments"]).eval()
    net.load_state_dict(load_file(ground.folder / "encoder.safetensors"), strict=True)
    written = encoder.timm_state()
    again = load_encoder(ground.folder).encoder.timm_state()
    unlike = [name for name in written if not torch.equal(written[name], again[name])]
    if unlike or written.keys() != again.keys():
        raise WrongError(f"simmim.load reads other weights: {', '.join(unlike[:4])}.")
    return _compare(encoder, images, _forward_features(net, images))


def timm_folder(ground: Ground, config: PretrainConfig, size: tuple[int, int] = SIZE) -> Figure:
    """``export --format timm``, opened by ``timm.create_model("local-dir:…", pretrained=True)``.

    Patch features of random images, relative to the largest, 1e-5; and every bit of every weight.
    """
    encoder = build(config, size).encoder
    images = normals(ground, "export", 2, 3, *size)
    write_timm(ground.folder, Subject(encoder=encoder, pixels=RGB), licence="yours", lineage={})
    net = timm.create_model(f"local-dir:{ground.folder}", pretrained=True).eval()
    written = encoder.timm_state()
    unlike = [name for name, value in net.state_dict().items() if not _same(value, written, name)]
    if unlike:
        raise WrongError(f"timm reads other weights: {', '.join(unlike[:4])}.")
    return _compare(encoder, images, _forward_features(net, images))


def onnx_graph(ground: Ground) -> Figure:
    """``export --format onnx`` with the normalisation inside, run by onnxruntime.

    Decoded images, one and three at a time, against the features of images normalised in numpy.
    Relative to the largest, 1e-4.
    """
    need("onnx", "onnx", "onnxruntime", "onnxscript")
    import onnxruntime

    from simmim.interop.export.onnx import FILE, write_onnx

    graph, decoded, expected = _pooled(ground)
    write_onnx(ground.folder, graph, facts={})
    session = onnxruntime.InferenceSession(
        str(ground.folder / FILE), providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    found = [session.run(["features"], {name: some.numpy()})[0] for some in (decoded[:1], decoded)]
    return _farthest([torch.from_numpy(value) for value in found], expected)


def program(ground: Ground) -> Figure:
    """``export --format torch``, loaded by ``torch.export.load``.

    As for ONNX. Relative to the largest, 1e-4.
    """
    from simmim.interop.export.program import FILE, write_program

    graph, decoded, expected = _pooled(ground)
    write_program(ground.folder, graph, facts={})
    module = torch.export.load(ground.folder / FILE).module()
    with torch.inference_mode():
        return _farthest([module(some)[0] for some in (decoded[:1], decoded)], expected)


def need(extra: str, *modules: str) -> None:
    """Skip the check unless all ``modules``, which the extra brings, are installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise SkippedError(f"{', '.join(missing)} not installed: pip install 'simmim[{extra}]'")


def _pooled(ground: Ground) -> tuple[Graph, Tensor, Tensor]:
    """The default model with the normalisation inside, decoded images, and their features."""
    encoder = build(VIT).encoder
    decoded = ground.numbers("decoded").integers(0, 256, (3, 3, *SIZE)).astype(np.float32)
    mean, std = (np.array(values)[:, None, None] for values in (RGB.mean, RGB.std))
    images = torch.from_numpy((decoded / 255.0 - mean) / std).float()
    with torch.no_grad():
        expected = encoder.features(images).patches.mean(1)
    graph = Graph(Subject(encoder=encoder, pixels=RGB), normalised=False).eval()
    return graph, torch.from_numpy(decoded), expected


def _farthest(found: list[Tensor], expected: Tensor) -> Figure:
    """The largest difference of features of the first images, as a share of the largest."""
    away = [(value - expected[: len(value)]).abs().max() for value in found]
    return Figure(float(max(away) / expected.abs().max()), 1e-4, "largest relative difference")


def _same(value: Tensor, written: dict[str, Tensor], name: str) -> bool:
    return name in written and torch.equal(value, written[name])


def _forward_features(net: Any, images: Tensor) -> Tensor:
    """Timm's tokens of whole images, prefix first: (B, R + N, D)."""
    with torch.no_grad():
        return net.forward_features(images).flatten(1, -2)


def _compare(encoder: Encoder, images: Tensor, theirs: Tensor) -> Figure:
    with torch.no_grad():
        ours = encoder.features(images)
    away = (torch.cat([ours.prefix, ours.patches], dim=1) - theirs).abs().max()
    return Figure(float(away / theirs.abs().max()), 1e-5, "largest relative difference")
