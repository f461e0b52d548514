"""timm: config.json and model.safetensors, which ``timm.create_model("local-dir:…")`` opens."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import Tensor, nn

from simmim.config.resolved import PixelFormat
from simmim.interop.export.check import difference, differences, largest
from simmim.interop.export.model import Graph, Subject
from simmim.models.backbones import EvaEncoder, SwinEncoder, ViTEncoder
from simmim.models.encoder import Encoder
from simmim.runs.files import share

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
HEADS: dict[type[Encoder], str] = {ViTEncoder: "head", EvaEncoder: "head", SwinEncoder: "head.fc"}
"""What timm calls the head, where its own pooling is the mean of the patch tokens."""
KEPT = ("architecture", "num_classes", "input_size", "first_conv", "classifier", "fixed_input_size")
"""What our weights share with timm's of that name; licence and source they do not."""
FEW = 2
"""Images for the further ways to open the folder."""


def takes_head(encoder: Encoder) -> bool:
    """Whether timm's model pools as our classifier does, so that its head can hold ours."""
    return type(encoder) in HEADS


def write_timm(folder: Path, subject: Subject, *, licence: str, lineage: dict[str, Any]) -> None:
    """Write into a folder that exists; a head goes along where ``takes_head``."""
    encoder, pixels = subject.encoder, subject.pixels
    arguments, state = dict(encoder.arguments), encoder.timm_state()
    names = {}
    if subject.head is not None and takes_head(encoder):
        arguments["num_classes"] = len(subject.classes)
        state |= {
            f"{HEADS[type(encoder)]}.{name}": value
            for name, value in subject.head.state_dict().items()
        }
        names = {"label_names": list(subject.classes)}
    net: Any = timm.create_model(encoder.model, **arguments)
    net.load_state_dict(state)
    known = net.pretrained_cfg
    net.pretrained_cfg = net.default_cfg = {name: known[name] for name in KEPT if name in known}
    save_for_hf(
        net,
        str(folder),
        model_config={
            "pretrained_cfg": _preprocessing(pixels, encoder.image_size) | {"license": licence},
            "simmim": {"pixels": asdict(pixels), "lineage": lineage},
            **names,
        },
        model_args=arguments,
        safe_serialization=True,
    )
    share(folder / WEIGHTS)


def _preprocessing(pixels: PixelFormat, size: tuple[int, int]) -> dict[str, Any]:
    """What ``timm.data.create_transform`` reads: the plain view, in timm's terms."""
    return {
        "tag": "simmim",
        "input_size": [pixels.channels, *size],
        "mean": list(pixels.mean),
        "std": list(pixels.std),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "pool_size": None,
    }


def compare_timm(folder: Path, subject: Subject, images: Tensor) -> dict[str, float]:
    """Open what ``write_timm`` wrote with timm, in each way that it promises, and run it.

    ``images`` are normalised (B, C, H, W). Returns the largest relative difference of each output,
    and of the weights.
    """
    encoder = subject.encoder
    source = f"local-dir:{folder}"
    config = json.loads((folder / CONFIG).read_bytes())
    plain = Graph(Subject(encoder=encoder, pixels=subject.pixels))
    ours = plain.named(images)
    net = timm.create_model(source, pretrained=True).eval()
    found = differences(ours, timm_features(net, images))
    if subject.head is not None and takes_head(encoder):
        with torch.inference_mode():
            logits = {"logits": net(images)}
        found |= differences({"logits": Graph(subject).named(images)["logits"]}, logits)
    few = {name: value[:FEW] for name, value in ours.items()}
    others = [
        timm.create_model(source, pretrained=True, num_classes=7),
        timm.create_model(
            config["architecture"], checkpoint_path=folder / WEIGHTS, **config["model_args"]
        ),
    ]
    found = largest(
        found, *(differences(few, timm_features(other.eval(), images[:FEW])) for other in others)
    )
    return found | {"weights": compare_weights(subject, folder / WEIGHTS)}


def compare_weights(subject: Subject, file: Path) -> float:
    """The largest relative difference of the encoder's weights from those in a file."""
    written = load_file(file)
    own = subject.encoder.timm_state()
    return max(difference(value, written[name]) for name, value in own.items())


def timm_features(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Patch tokens after the final norm, and their mean."""
    model: Any = net
    with torch.inference_mode():
        tokens = model.forward_features(images)
    if tokens.ndim == 4:  # Swin: B h w D
        tokens = tokens.flatten(1, 2)
    tokens = tokens[:, getattr(model, "num_prefix_tokens", 0) :]
    return {"features": tokens.mean(1), "tokens": tokens}
