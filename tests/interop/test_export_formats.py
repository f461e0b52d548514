"""Each format by its own reader, on real photos."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

import simmim
from simmim.config.encoder import EncoderConfig
from simmim.config.resolved import PixelFormat
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import load_views
from simmim.data.sources.find import find_images
from simmim.errors import VerificationError
from simmim.interop.export.check import LIMIT, difference, judge
from simmim.interop.export.model import Graph, Subject, facts_of
from simmim.interop.export.onnx import OPSET, compare_onnx, write_onnx
from simmim.interop.export.plain import compare_plain, write_plain
from simmim.interop.export.program import compare_program, write_program
from simmim.interop.export.timm import compare_timm, takes_head, write_timm
from simmim.interop.load import to_input
from simmim.models.backbones import BeitEncoder
from simmim.models.build import build_encoder
from simmim.tasks.classifier import Classifier
from simmim.tensors.patches import clip, normalise

PIXELS = PixelFormat(
    channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5, 0.45, 0.4), std=(0.25, 0.22, 0.21)
)
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}
SWIN = {"embed_dim": 24, "window_size": 2, "depths": [2, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
FAMILIES: dict[str, dict] = {
    "vit": {"model": "vit_tiny_patch16_224", "arguments": SMALL},
    "registers": {"model": "vit_small_patch14_reg4_dinov2", "arguments": SMALL},
    "distilled": {"model": "deit_tiny_distilled_patch16_224", "arguments": SMALL},
    "eva": {"model": "eva02_tiny_patch14_224", "arguments": SMALL},
    "dinov3": {"model": "vit_small_patch16_dinov3", "arguments": SMALL},
    "mixed": {"model": "vit_small_patch16_rope_mixed_224", "arguments": SMALL},
    "beit": {"model": "beit_base_patch16_224", "arguments": SMALL | {"use_rel_pos_bias": True}},
    "shared": {"model": "beit_base_patch16_224", "arguments": SMALL},
    "swin": {"model": "swin_tiny_patch4_window7_224", "arguments": SWIN, "patch_size": 2},
}
CLASSES = ["Kleid & Bluse", "靴", "boots"]


def subject_of(
    family: str = "vit",
    size: tuple[int, int] = (32, 32),
    pixels: PixelFormat = PIXELS,
    *,
    head: bool = False,
) -> Subject:
    torch.manual_seed(5)
    config = EncoderConfig(**{"patch_size": 8, **FAMILIES[family]})
    encoder = build_encoder(config, image_size=size, channels=pixels.channels).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():  # as if trained: no table or scale is at its start
            parameter.add_(torch.randn_like(parameter) * 0.03)
    if not head:
        return Subject(encoder=encoder, pixels=pixels)
    classifier = Classifier(encoder, pixels, CLASSES).eval()
    nn.init.normal_(classifier.head.weight, std=0.1)
    return Subject(encoder=encoder, pixels=pixels, net=classifier, classes=CLASSES)


@pytest.fixture
def values(photos: Path) -> Tensor:
    """Five photos as decoded values of 32 × 32 pixels."""
    return views(photos, (32, 32), PIXELS)


def views(photos: Path, size: tuple[int, int], pixels: PixelFormat) -> Tensor:
    (_, batch), *_ = load_views(ImageSet(find_images(photos)[::20], pixels), size, bad={})
    return batch.images.contiguous()


def run_timm(net: nn.Module, images: Tensor) -> Tensor:
    """Patch tokens after the final norm."""
    with torch.inference_mode():
        tokens = net.forward_features(images)  # type: ignore[operator]
    return tokens.flatten(1, 2) if tokens.ndim == 4 else tokens[:, net.num_prefix_tokens :]  # type: ignore


@pytest.mark.parametrize("family", FAMILIES)
def test_timm_opens_the_folder_in_every_way(family: str, values: Tensor, tmp_path: Path):
    subject = subject_of(family)
    images = normalise(values, PIXELS)
    ours = Graph(subject).named(images)["tokens"]
    write_timm(tmp_path, subject, licence="mit", lineage={"recipe": "mae"})
    source = f"local-dir:{tmp_path}"

    plain = timm.create_model(source, pretrained=True).eval()
    seven = timm.create_model(source, pretrained=True, num_classes=7).eval()
    colour = timm.create_model(source, pretrained=True, in_chans=3).eval()
    config = json.loads((tmp_path / "config.json").read_text())
    file = timm.create_model(
        config["architecture"],
        checkpoint_path=tmp_path / "model.safetensors",
        **subject.encoder.arguments,
    ).eval()
    larger = timm.create_model(source, pretrained=True, img_size=224).eval()

    for net in (plain, seven, colour, file):
        assert difference(ours, run_timm(net, images)) < 1e-5
    assert seven(images).shape == (5, 7)
    state = load_file(tmp_path / "model.safetensors")
    own = subject.encoder.timm_state()
    assert state.keys() == own.keys() == plain.state_dict().keys()
    assert all(torch.equal(state[name], own[name]) for name in own)
    again = subject_of(family).encoder
    again.load_timm_state(state)
    assert all(torch.equal(value, own[name]) for name, value in again.timm_state().items())
    tokens = run_timm(larger, torch.randn(1, 3, 224, 224))
    side = 224 // subject.encoder.stride
    assert tokens.shape == (1, side**2, subject.encoder.width)
    assert torch.isfinite(tokens).all()
    assert config["pretrained_cfg"]["license"] == "mit"
    found = compare_timm(tmp_path, subject, images)
    assert found.keys() == {"features", "tokens", "weights"}
    judge("timm", found)


def test_timm_pools_the_mean_where_it_says_so(values: Tensor, tmp_path: Path):
    for family, pools in {"vit": True, "eva": True, "swin": True, "beit": False}.items():
        subject = subject_of(family)
        folder = tmp_path / family
        write_timm(folder, subject, licence="mit", lineage={})
        net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        images = normalise(values, PIXELS)
        with torch.inference_mode():
            apart = difference(Graph(subject).named(images)["features"], net(images))
        assert (apart < 1e-5) == pools == takes_head(subject.encoder)


@pytest.mark.parametrize("family", ["vit", "eva", "swin"])
def test_timm_gives_a_classifier_with_its_class_names(family: str, values: Tensor, tmp_path: Path):
    subject = subject_of(family, head=True)
    images = normalise(values, PIXELS)
    write_timm(tmp_path, subject, licence="mit", lineage={})
    net = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.inference_mode():
        assert difference(Graph(subject).named(images)["logits"], net(images)) < 1e-5
    assert net.pretrained_cfg["label_names"] == CLASSES  # type: ignore[index]
    assert compare_timm(tmp_path, subject, images)["logits"] < 1e-5


def test_timm_takes_colour_where_grey_was_trained(photos: Path, tmp_path: Path):
    grey = PixelFormat(channels=1, low=(0.0,), high=(255.0,), mean=(0.6,), std=(0.3,))
    subject = subject_of("vit", pixels=grey)
    images = normalise(views(photos, (32, 32), grey), grey)
    write_timm(tmp_path, subject, licence="mit", lineage={})
    judge("timm", compare_timm(tmp_path, subject, images))
    net = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=3).eval()
    # A grey photo, its channel repeated, gives what it gave.
    repeated = run_timm(net, images.expand(-1, 3, -1, -1))
    assert difference(Graph(subject).named(images)["tokens"], repeated) < 1e-5


def test_timm_reads_images_as_we_do(photos: Path, tmp_path: Path):
    subject = subject_of("vit", size=(32, 48))
    write_timm(tmp_path, subject, licence="mit", lineage={})
    net = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    transform = create_transform(**resolve_data_config({}, model=net), is_training=False)
    for path in sorted(photos.rglob("*.jpg"))[::25]:
        theirs = transform(Image.open(path).convert("RGB"))
        ours = to_input(path, PIXELS, (32, 48))
        assert theirs.shape == ours.shape == (3, 32, 48)
        assert (theirs - ours).abs().mean() < 0.05


@pytest.mark.parametrize("family", ["vit", "registers", "eva", "beit", "swin"])
def test_onnxruntime_gives_the_same_at_any_batch_size(family: str, values: Tensor, tmp_path: Path):
    subject = subject_of(family)
    graph = Graph(subject)
    images = normalise(values, PIXELS)
    write_onnx(tmp_path, graph, facts=facts_of(graph, licence="mit"))
    model = onnx.load(tmp_path / "encoder.onnx")
    onnx.checker.check_model(model)
    assert [(part.domain, part.version) for part in model.opset_import] == [("", OPSET)]
    session = onnxruntime.InferenceSession(str(tmp_path / "encoder.onnx"))
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    for count in (1, 2, 5):
        some = images[:count]
        features, tokens = session.run(["features", "tokens"], {"images": some.numpy()})
        ours = graph.named(some)
        assert difference(ours["tokens"], torch.from_numpy(tokens)) < 1e-5
        assert difference(ours["features"], torch.from_numpy(features)) < 1e-5
    assert json.loads(session.get_modelmeta().custom_metadata_map["mean"]) == list(PIXELS.mean)
    found = compare_onnx(tmp_path, graph, images)
    assert found.keys() == {"features", "tokens"}
    judge("onnx", found)


def test_the_normalisation_can_be_inside_the_graph(photos: Path, tmp_path: Path):
    deep = replace(PIXELS, low=(12.0, 0.0, 100.0), high=(243.0, 200.0, 140.0), depth="float")
    values = views(photos, (32, 32), deep)
    far = values.float()
    far[0, :, 5, 5] = 1e6  # clipped inside too
    for write, compare in ((write_onnx, compare_onnx), (write_program, compare_program)):
        graph = Graph(subject_of("vit", pixels=deep), normalised=False)
        write(tmp_path, graph, facts=facts_of(graph, licence="mit"))
        ours = Graph(subject_of("vit", pixels=deep)).named(normalise(clip(far, deep), deep))
        theirs = graph.named(far)
        assert difference(ours["tokens"], theirs["tokens"]) < 1e-6
        judge("graph", compare(tmp_path, graph, far))
    session = onnxruntime.InferenceSession(str(tmp_path / "encoder.onnx"))
    (tokens,) = session.run(["tokens"], {"images": far.numpy()})
    assert difference(ours["tokens"], torch.from_numpy(tokens)) < 1e-5
    assert session.get_modelmeta().custom_metadata_map["normalised_inside"] == "true"


def test_grey_images_of_any_number_are_normalised_inside_the_graph(tmp_path: Path):
    counts = PixelFormat(
        channels=1, low=(3.0,), high=(90.0,), mean=(0.4,), std=(0.2,), depth="12-bit"
    )
    images = torch.rand(5, 1, 32, 32) * 4095  # most of them are clipped
    graph = Graph(subject_of("vit", pixels=counts), normalised=False)
    for write, compare in ((write_onnx, compare_onnx), (write_program, compare_program)):
        write(tmp_path, graph, facts={})
        assert max(compare(tmp_path, graph, images).values()) < 1e-5


def test_a_classifier_in_onnx_knows_its_classes(values: Tensor, tmp_path: Path):
    subject = subject_of("beit", head=True)
    graph = Graph(subject)
    images = normalise(values, PIXELS)
    write_onnx(tmp_path, graph, facts=facts_of(graph, licence="mit"))
    session = onnxruntime.InferenceSession(str(tmp_path / "encoder.onnx"))
    logits, probabilities = session.run(["logits", "probabilities"], {"images": images.numpy()})
    assert np.allclose(probabilities.sum(1), 1, atol=1e-6)
    assert difference(graph.named(images)["logits"], torch.from_numpy(logits)) < 1e-5
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == CLASSES
    assert compare_onnx(tmp_path, graph, images).keys() == {"logits", "probabilities"}


@pytest.mark.parametrize("family", ["eva", "beit"])
def test_five_channels_and_rectangles(family: str, tmp_path: Path):
    pixels = PixelFormat(
        channels=5,
        low=(3.0,) * 5,
        high=(4095.0,) * 5,
        mean=(0.3,) * 5,
        std=(0.2,) * 5,
        depth="12-bit",
    )
    subject = subject_of(family, size=(32, 48), pixels=pixels)
    values = torch.randint(0, 4096, (4, 5, 32, 48)).float()
    images = normalise(values, pixels)
    inside = Graph(subject, normalised=False)
    write_timm(tmp_path / "timm", subject, licence="mit", lineage={})
    judge("timm", compare_timm(tmp_path / "timm", subject, images))
    write_plain(tmp_path, subject, licence="mit", lineage={})
    judge("safetensors", compare_plain(tmp_path, subject, images))
    if family == "beit":
        write_onnx(tmp_path, inside, facts={})
        judge("onnx", compare_onnx(tmp_path, inside, values))
    else:
        write_program(tmp_path, inside, facts={})
        judge("torch", compare_program(tmp_path, inside, values))


def test_the_program_needs_neither_simmim_nor_timm(values: Tensor, tmp_path: Path):
    subject = subject_of("eva")
    graph = Graph(subject)
    images = normalise(values, PIXELS)
    write_program(tmp_path, graph, facts=facts_of(graph, licence="mit"))
    judge("torch", compare_program(tmp_path, graph, images))
    save_file({"images": images}, tmp_path / "images.safetensors")
    code = f"""
import sys
sys.modules["simmim"] = sys.modules["timm"] = None
import torch
from safetensors.torch import load_file, save_file
images = load_file({str(tmp_path / "images.safetensors")!r})["images"]
facts = {{"licence": ""}}
model = torch.export.load({str(tmp_path / "encoder.pt2")!r}, extra_files=facts).module()
assert facts["licence"] == "mit"
with torch.no_grad():
    features, tokens = model(images)
save_file({{"tokens": tokens.contiguous()}}, {str(tmp_path / "tokens.safetensors")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    tokens = load_file(tmp_path / "tokens.safetensors")["tokens"]
    assert difference(graph.named(images)["tokens"], tokens) < 1e-5


def test_the_plain_pair_is_a_source_again(values: Tensor, tmp_path: Path):
    subject = subject_of("shared")
    images = normalise(values, PIXELS)
    write_plain(tmp_path, subject, licence="mit", lineage={"recipe": "mae"})
    card = json.loads((tmp_path / "encoder.json").read_text())
    assert card["licence"] == "mit"
    assert card["lineage"] == {"recipe": "mae"}
    encoder = simmim.load(tmp_path)
    with torch.inference_mode():
        tokens = encoder.tokens(images)  # type: ignore[operator]
    assert torch.equal(tokens, Graph(subject).named(images)["tokens"])
    assert isinstance(encoder.encoder, BeitEncoder)
    assert len(encoder.encoder.tables) == 1
    judge("safetensors", compare_plain(tmp_path, subject, images))


def test_no_file_tells_of_this_machine(tmp_path: Path):
    graph = Graph(subject_of("vit"))
    write_onnx(tmp_path, graph, facts={})
    write_program(tmp_path, graph, facts={})
    here = str(Path(simmim.__file__).parent).encode()
    for file in tmp_path.iterdir():
        assert here not in file.read_bytes(), file


def spoil(folder: Path, kind: str, name: str) -> None:
    """Change one weight in what was written."""
    if kind in ("timm", "safetensors"):
        file = next(folder.glob("*.safetensors"))
        state = load_file(file)
        state[name].view(-1)[3] += 0.5
        save_file(state, file)
    elif kind == "torch":
        program = torch.export.load(folder / "encoder.pt2")
        program.state_dict[f"encoder.net.{name}"].data.view(-1)[3] += 0.5
        torch.export.save(program, folder / "encoder.pt2")
    else:
        model = onnx.load(folder / "encoder.onnx")
        tensor = next(t for t in model.graph.initializer if t.name == f"encoder.net.{name}")
        values = numpy_helper.to_array(tensor).copy()
        values.flat[3] += 0.5
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save(model, folder / "encoder.onnx")


@pytest.mark.parametrize("kind", ["timm", "safetensors", "torch", "onnx"])
@pytest.mark.parametrize("name", ["blocks.1.norm2.weight", "patch_embed.proj.bias"])
def test_one_wrong_weight_is_found(kind: str, name: str, values: Tensor, tmp_path: Path):
    subject = subject_of("vit")
    graph, images = Graph(subject), normalise(values, PIXELS)
    if kind == "timm":
        write_timm(tmp_path, subject, licence="mit", lineage={})
        compare = lambda: compare_timm(tmp_path, subject, images)  # noqa: E731
    elif kind == "safetensors":
        write_plain(tmp_path, subject, licence="mit", lineage={})
        compare = lambda: compare_plain(tmp_path, subject, images)  # noqa: E731
    elif kind == "torch":
        write_program(tmp_path, graph, facts={})
        compare = lambda: compare_program(tmp_path, graph, images)  # noqa: E731
    else:
        write_onnx(tmp_path, graph, facts={})
        compare = lambda: compare_onnx(tmp_path, graph, images)  # noqa: E731
    assert max(compare().values()) < LIMIT / 10
    spoil(tmp_path, kind, name)
    found = compare()
    assert found["tokens"] > LIMIT
    with pytest.raises(VerificationError, match=rf"{kind}.*tokens differs by"):
        judge(kind, found)


def test_differences_are_relative_and_never_pass_by_being_strange():
    ours = torch.tensor([1.0, -4.0])
    assert difference(ours, torch.tensor([1.0, -4.4])) == pytest.approx(0.1)
    assert difference(ours, torch.tensor([1.0, float("nan")])) == float("inf")
    assert difference(ours, ours[None]) == float("inf")
    assert difference(torch.zeros(2), torch.tensor([0.0, 1e-9])) == float("inf")
    assert difference(torch.zeros(2), torch.zeros(2)) == 0
    judge("timm", {"tokens": LIMIT})
    for found in ({"tokens": LIMIT * 1.01}, {"tokens": float("nan")}, {"tokens": float("inf")}, {}):
        with pytest.raises(VerificationError):
            judge("timm", found)
