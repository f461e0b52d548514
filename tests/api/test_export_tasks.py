"""`simmim export` of what other tasks than classes end in."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from api.test_export_command import PIXELS
from torch import Tensor

import simmim
from simmim.cli.main import main
from simmim.config.encoder import EncoderConfig
from simmim.config.task import Segmentation
from simmim.data.map_classes import MapClasses
from simmim.evaluate.attentive import AttentiveHead
from simmim.models.build import build_encoder
from simmim.models.encoder import Encoder
from simmim.tasks.classifier import Classifier
from simmim.tasks.detector import Detector
from simmim.tasks.load import save_head_of
from simmim.tasks.regressor import Regressor
from simmim.tasks.segmenter import Segmenter
from simmim.tasks.tagger import Tagger


def encoder() -> Encoder:
    torch.manual_seed(0)
    arguments = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=8, arguments=arguments)
    return build_encoder(config, image_size=(32, 48), channels=3)


@pytest.fixture
def exported(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Write a model as a run does, and export it; the exit status, and all that is printed."""

    def export(model, form: str) -> tuple[int, str]:
        run = tmp_path / "run"
        if not run.exists():
            run.mkdir()
            save_head_of(run, model.eval(), {})
        words = ("export", run, "--images", photos, "--format", form, "--out", tmp_path / form)
        status = main([str(word) for word in words])
        told = capsys.readouterr()
        return status, " ".join((told.out + told.err).split())

    return export


def test_a_segmenter_is_a_graph_of_each_pixel(exported, tmp_path: Path):
    classes = MapClasses(["sky", "road"], [0, 1], {0: 0, 1: 1}, [(9, 9, 9), (200, 0, 0)])
    segmenter = Segmenter(encoder(), PIXELS, classes, Segmentation())
    status, text = exported(segmenter, "onnx")
    assert status == 0, text
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "encoder.onnx"))
    images = torch.randn(3, 3, 32, 48)
    (shares,) = session.run(["probabilities"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(shares, segmenter(images).softmax(1).numpy(), atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["sky", "road"]
    assert "pipeline_tag: image-segmentation" in (tmp_path / "onnx" / "README.md").read_text()
    status, text = exported(segmenter, "timm")
    assert (status, "the head is not in it" in text) == (0, True)


def attentive() -> Classifier:
    model = Classifier(encoder(), PIXELS, ["a", "b"], pool="attentive")
    assert isinstance(model.head, AttentiveHead)
    model.head.standardise(torch.randn(48), torch.rand(48) + 0.5)
    torch.nn.init.normal_(model.top.weight)
    return model


@pytest.mark.parametrize("kind", ["tags", "number", "attentive"])
def test_several_classes_and_numbers_are_graphs_that_say_so(kind: str, exported, tmp_path: Path):
    model = Tagger(encoder(), PIXELS, ["a", "b"])
    names, read = ("logits", "probabilities"), torch.sigmoid
    if kind == "attentive":
        model, read = attentive(), partial(torch.softmax, dim=1)
    if kind == "number":
        model = Regressor(encoder(), PIXELS, 30.0, 4.0)
        names = ("deviations", "numbers")

        def read(given: Tensor) -> Tensor:
            return given * 4 + 30

    torch.nn.init.normal_(model.top.weight)
    status, text = exported(model, "torch")
    assert status == 0, text
    assert all(name in text for name in names)
    program = torch.export.load(tmp_path / "torch" / "encoder.pt2").module()
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        given, said = program(images)
        torch.testing.assert_close(given, model(images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(said, read(given))


def test_an_attentive_head_is_in_the_graph_and_timm_has_no_place_for_it(exported, tmp_path: Path):
    model = attentive()
    status, text = exported(model, "onnx")
    assert status == 0, text
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "encoder.onnx"))
    images = torch.randn(3, 3, 32, 48)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(images).numpy(), atol=1e-4)
    status, text = exported(model, "timm")
    assert (status, "the head is not in it" in text) == (0, True)


def test_a_detector_is_no_graph_which_is_told_but_goes_out_whole(exported, tmp_path: Path):
    detector = Detector(encoder(), PIXELS, ["square"], "fcos")
    for form in ("onnx", "torch"):
        status, text = exported(detector, form)
        assert (status, "a detector is no graph" in text) == (2, True)
        assert not (tmp_path / form).exists()
    status, text = exported(detector, "safetensors")
    assert status == 0, text
    again = simmim.load(tmp_path / "safetensors", head=True).timm_state()
    own = detector.timm_state()
    assert own.keys() == again.keys()
    assert all(torch.equal(own[name], again[name]) for name in own)
    status, text = exported(detector, "timm")
    assert (status, "the head is not in it" in text) == (0, True)
