"""README.md of an export: what the weights are, where they come from, and how to open them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simmim.interop.export.model import Subject

UNKNOWN = "not known"
IDENTIFIER = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
"""What a licence field may hold, such as apache-2.0; anything else is ``other`` with a name."""
LIBRARIES = {"timm": "timm", "hf": "transformers", "onnx": "onnx", "torch": "pytorch"}
METRICS = {
    "explained": ("explained detail", "of the masked pixels of held-out images; 0 is filling in"),
    "knn": ("k-NN accuracy", "of frozen features, during the run"),
    "accuracy": ("accuracy", "on images that it was not trained on"),
    "balanced_accuracy": ("balanced accuracy", "the mean over the classes"),
}
"""Columns of metrics.jsonl that the card tells the last value of."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where weights come from.

    Attributes:
        source: What was exported, as the user named it.
        licence: Of the weights.
        lineage: As in encoder.json.
        data: As in data.json of the run.
        metrics: The last value of each of ``METRICS`` that the run has.
    """

    source: str
    licence: str
    lineage: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


def read_origin(source: str, *, licence: str, lineage: Mapping[str, Any]) -> Origin:
    """Gather what the files of a folder tell; what is missing or torn is left out."""
    folder = Path(source)
    metrics: dict[str, float] = {}
    for line in _text(folder / "metrics.jsonl").splitlines():
        row = _mapping(line)
        metrics |= {n: row[n] for n in METRICS if isinstance(row.get(n), int | float)}
    return Origin(
        source=folder.name or source,
        licence=licence,
        lineage=lineage,
        data=_mapping(_text(folder / "data.json")),
        metrics=metrics,
    )


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace")
    except OSError:
        return ""


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def model_card(
    subject: Subject,
    origin: Origin,
    *,
    kind: str,
    usage: str,
    inside: bool = False,
    checked: Sequence[str] = (),
) -> str:
    """The text of README.md.

    Args:
        subject: What was exported.
        origin: Where it comes from.
        kind: The format, as ``simmim export --format`` names it.
        usage: Python that opens it.
        inside: Whether the normalisation is part of what was exported.
        checked: What was compared, a line each.
    """
    encoder = subject.encoder
    rows = [
        ("model", f"`{encoder.model}`, with {_arguments(encoder.arguments)}"),
        ("parameters", f"{sum(p.numel() for p in encoder.parameters()):,}"),
        *_training(origin),
        *_images(subject, origin),
        *_metrics(origin),
        ("licence of the weights", origin.licence),
    ]
    if subject.classes:
        rows.append(("classes", ", ".join(subject.classes)))
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)
    listed = "".join(f"- {line}\n" for line in checked)
    return (
        f"{_front(subject, origin, kind)}\n# {_title(subject, origin)}\n\n"
        f"{_opening(subject)}\n\n| | |\n|---|---|\n{table}\n\n"
        f"## Use\n\n```python\n{usage.strip()}\n```\n\n## Input\n\n"
        f"{_input(subject, inside=inside)}\n" + (f"\n## Checked\n\n{listed}" if listed else "")
    )


_PIPELINES = {
    "classify": "image-classification",
    "multilabel": "image-classification",
    "segment": "image-segmentation",
}
"""What model hubs call a task."""
_TELLS = {
    "classify": "the class of an image, of {}",
    "multilabel": "which of {} classes an image is of",
    "regress": "a number",
    "segment": "the class of each pixel, of {}",
}


def _front(subject: Subject, origin: Origin, kind: str) -> str:
    """The YAML that model hubs read."""
    licence = origin.licence
    lines = [f"license: {licence.lower()}"]
    if not IDENTIFIER.fullmatch(licence.lower()):
        lines = ["license: other", f"license_name: {json.dumps(licence, ensure_ascii=False)}"]
    if kind in LIBRARIES:
        lines.append(f"library_name: {LIBRARIES[kind]}")
    task = _PIPELINES.get(subject.kind or "", "image-feature-extraction")
    lines += [f"pipeline_tag: {task}", "tags:", "- masked-image-modeling", "- simmim"]
    return "\n".join(["---", *lines, "---", ""])


def _title(subject: Subject, origin: Origin) -> str:
    return f"{subject.encoder.model}, from {origin.source}"


def _opening(subject: Subject) -> str:
    what = "A vision encoder, pretrained by masked image modelling"
    if subject.kind is not None:
        return (
            f"{what}, with a head that tells {_TELLS[subject.kind].format(len(subject.classes))}."
        )
    return f"{what}. It turns an image into patch tokens, and their mean into one vector."


def _arguments(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value!r}`" for name, value in arguments.items())


def _training(origin: Origin) -> list[tuple[str, str]]:
    lineage = origin.lineage
    rows = []
    if "recipe" in lineage:
        rows.append(("recipe", f"`{lineage['recipe']}` of simmim"))
    if "step" in lineage:
        steps = f"{lineage['step']:,}"
        if lineage.get("steps", lineage["step"]) != lineage["step"]:
            steps += f" of {lineage['steps']:,} planned"
        rows.append(("steps", steps))
    told = {"recipe", "step", "steps", "images"}
    rows += [
        (name.replace("_", " "), str(value)) for name, value in lineage.items() if name not in told
    ]
    return rows


def _images(subject: Subject, origin: Origin) -> list[tuple[str, str]]:
    data, pixels = origin.data, subject.pixels
    height, width = subject.encoder.image_size
    count = data.get("train", origin.lineage.get("images"))
    rows = [
        ("trained on", f"{count:,} images" if isinstance(count, int) else UNKNOWN),
        ("image size", f"{height}×{width} pixels, {pixels.channels} channels, {pixels.depth}"),
    ]
    sizes = data.get("sizes")
    if isinstance(sizes, dict) and {"height", "width"} <= sizes.keys():
        (low_h, _, high_h), (low_w, _, high_w) = sizes["height"], sizes["width"]
        rows.append(("its images", f"{low_h} to {high_h} pixels high, {low_w} to {high_w} wide"))
    if isinstance(data.get("formats"), dict):
        rows.append(("file formats", ", ".join(data["formats"])))
    return rows


def _metrics(origin: Origin) -> list[tuple[str, str]]:
    return [
        (METRICS[name][0], f"{value:.1%}, {METRICS[name][1]}")
        for name, value in origin.metrics.items()
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _input(subject: Subject, *, inside: bool) -> str:
    pixels = subject.pixels
    height, width = subject.encoder.image_size
    who = " The graph does this itself: it takes decoded values as float." if inside else ""
    return (
        f"Images are scaled to cover {height}×{width} pixels (bilinear, antialiased), and what "
        "hangs over is cut off on both sides. Decoded values, channels first, then become "
        f"((value − low)/(high − low) − mean)/std, with low {_numbers(pixels.low)}, high "
        f"{_numbers(pixels.high)}, mean {_numbers(pixels.mean)} and std {_numbers(pixels.std)}; "
        f"before, values are clipped to {_numbers(pixels.limits[0])} from below and "
        f"{_numbers(pixels.limits[1])} from above.{who}"
    )


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
