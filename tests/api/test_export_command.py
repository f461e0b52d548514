"""`simmim export`, as a user would type it, on a run of two epochs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import simmim
from simmim.cli.main import main
from simmim.config.encoder import EncoderConfig
from simmim.config.resolved import PixelFormat
from simmim.data.sources.find import find_images
from simmim.interop.export import onnx as onnx_format
from simmim.interop.export import plain, program
from simmim.interop.export import timm as timm_format
from simmim.models.build import build_encoder
from simmim.runs.images import save_images
from simmim.tasks.classifier import Classifier, save_classifier

FORMATS = ["timm", "hf", "onnx", "safetensors", "torch"]
PIXELS = PixelFormat(
    channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simmim.pretrain(
        photos,
        recipe="mae",
        model="vit_tiny_patch16_224",
        image_size=32,
        patch_size=8,
        arguments={"embed_dim": 48, "depth": 2, "num_heads": 3},
        decoder={"depth": 1, "width": 32, "heads": 2},
        epochs=2,
        batch_size=16,
        holdout=12,
        threads=1,
        workers=0,
        tensorboard=False,
        out=tmp_path_factory.mktemp("export") / "run",
    )


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "finetuned"
    folder.mkdir()
    torch.manual_seed(1)
    config = EncoderConfig(
        model="beit_base_patch16_224",
        patch_size=8,
        arguments={"embed_dim": 48, "depth": 2, "num_heads": 3},
    )
    encoder = build_encoder(config, image_size=(32, 32), channels=3)
    classifier = Classifier(encoder, PIXELS, ["dress", "Schuh", "靴"])
    nn.init.normal_(classifier.head.weight)
    save_classifier(folder, classifier, {"fine_tuned_from": "none", "images": 80})
    return folder


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_written_compared_and_told_of(
    kind: str, run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "deep" / "out"
    assert main(["export", str(run), "--format", kind, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"compared   12 held-out images of {photos}" in told
    assert "\n  features" in told
    assert "the same in every bit" in told or "largest difference" in told
    assert "next" in told
    assert str(out) in told
    files = contents(out)
    assert "README.md" in files
    assert not [name for name in files if name.startswith(".")]
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: other\nlicense_name: ")
    for text in ("`mae`", "88 images", "| explained detail |", "| k-NN accuracy |", "0.485"):
        assert text in card, text
    assert "limit 0.0001" in card or "the same in every bit" in card
    code = card.split("```python\n")[1].split("```")[0]
    if kind != "hf":  # its example opens a photo of the reader's
        exec(code.replace("DIR", str(out)), {})
    if kind == "onnx":
        version = onnx.load(out / "encoder.onnx").opset_import[0].version
        assert f"opset      {version}" in told
        assert "1, 3, 12" in told


def test_timm_takes_what_the_run_says_of_itself(run: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert main(["export", str(run), "--format", "timm", "--out", str(out)]) == 0
    card = json.loads((run / "encoder.json").read_text())
    net = timm.create_model(
        card["model"], checkpoint_path=out / "model.safetensors", **card["arguments"]
    )
    written, own = net.state_dict(), load_file(run / "encoder.safetensors")
    assert written.keys() == own.keys()
    assert all(torch.equal(written[name], own[name]) for name in own)


def spoiled(write: Callable, name: str) -> Callable:
    """A writer whose file has one wrong weight afterwards."""

    def then_spoil(folder: Path, *words: object, **more: object) -> object:
        done = write(folder, *words, **more)
        file = next(folder.glob("encoder.*"), None) or next(folder.glob("*.safetensors"))
        if file.suffix == ".pt2":
            loaded = torch.export.load(file)
            loaded.state_dict[f"encoder.net.{name}"].data.view(-1)[5] += 1
            torch.export.save(loaded, file)
        elif file.suffix == ".onnx":
            model = onnx.load(file)
            tensor = next(t for t in model.graph.initializer if t.name == f"encoder.net.{name}")
            values = onnx.numpy_helper.to_array(tensor).copy()
            values.flat[5] += 1
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
            onnx.save(model, file)
        else:
            file = next(folder.glob("*.safetensors"))
            state = load_file(file)
            state[name].view(-1)[5] += 1
            save_file(state, file, metadata={"format": "pt"})
        return done

    return then_spoil


@pytest.mark.parametrize("kind", ["timm", "onnx", "safetensors", "torch"])
def test_a_wrong_weight_fails_the_export_and_leaves_nothing(
    kind: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    where = {
        "timm": (timm_format, "write_timm"),
        "onnx": (onnx_format, "write_onnx"),
        "safetensors": (plain, "write_plain"),
        "torch": (program, "write_program"),
    }
    module, name = where[kind]
    monkeypatch.setattr(module, name, spoiled(getattr(module, name), "blocks.0.norm1.weight"))
    out = tmp_path / "deep" / "out"
    assert main(["export", str(run), "--format", kind, "--out", str(out)]) == 1
    told = capsys.readouterr()
    assert f"the {kind} export does not give what this model gives" in told.err
    assert "tokens differs by" in told.err
    assert "written" not in told.out
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_weight_of_the_hugging_face_folder_fails_too(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from simmim.interop.export import huggingface

    write = huggingface.write_huggingface

    def wrong(folder: Path, *words: object, **more: object) -> object:
        done = write(folder, *words, **more)  # type: ignore[arg-type]
        state = load_file(folder / "model.safetensors")
        name = next(n for n in state if n.endswith("layernorm_before.weight"))
        state[name].view(-1)[5] += 1
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return done

    monkeypatch.setattr(huggingface, "write_huggingface", wrong)
    out = tmp_path / "out"
    out.mkdir()  # one that was there stays, empty
    assert main(["export", str(run), "--format", "hf", "--out", str(out)]) == 1
    assert "the hf export does not give" in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_a_torn_file_is_one_message(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    write = timm_format.write_timm

    def torn(folder: Path, *words: object, **more: object) -> None:
        write(folder, *words, **more)  # type: ignore[arg-type]
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-4000])

    monkeypatch.setattr(timm_format, "write_timm", torn)
    assert main(["export", str(run), "--format", "timm", "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert "cannot be opened again (timm)" in told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_goes_out_with_its_class_names(
    finetuned: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["export", str(finetuned), "--images", str(photos), "--normalise", "true"]
    assert main([*words, "--format", "onnx", "--out", str(tmp_path / "onnx")]) == 0
    assert "logits" in capsys.readouterr().out
    classes = json.loads((tmp_path / "onnx" / "classes.json").read_text())["classes"]
    assert classes == ["dress", "Schuh", "靴"]
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "encoder.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == classes
    values = np.full((4, 3, 32, 32), 128, np.float32)
    (shares,) = session.run(["probabilities"], {"images": values})
    assert shares.shape == (4, 3)
    card = (tmp_path / "onnx" / "README.md").read_text()
    assert "| classes | dress, Schuh, 靴 |" in card
    assert "pipeline_tag: image-classification" in card
    assert "The graph does this itself" in card
    # The plain files are a classifier again; timm's BEiT pools otherwise, which is said.
    words = words[:4]
    assert main([*words, "--format", "safetensors", "--out", str(tmp_path / "plain")]) == 0
    assert {"classifier.safetensors", "classes.json"} <= set(contents(tmp_path / "plain"))
    assert main([*words, "--format", "timm", "--out", str(tmp_path / "timm")]) == 0
    assert "the head is not in it" in capsys.readouterr().out


def test_another_licence_and_other_images(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    words = ["--format", "safetensors", "--licence", "CC-BY-4.0", "--images", str(photos / "dress")]
    assert main(["export", str(run), *words, "--out", str(out)]) == 0
    assert f"16 images of {photos / 'dress'}" in capsys.readouterr().out
    assert (out / "README.md").read_text().startswith("---\nlicense: cc-by-4.0\n")
    assert json.loads((out / "encoder.json").read_text())["licence"] == "CC-BY-4.0"
    # What was exported can be exported.
    again = ["export", str(out), "--format", "timm", "--images", str(photos)]
    assert main([*again, "--out", str(tmp_path / "again")]) == 0
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "CC-BY-4.0"
    assert config["simmim"]["lineage"]["recipe"] == "mae"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere", "--format", "timm"], "there is no such run"),
        (["RUN", "--format", "tf"], "--format expects one of timm, hf, onnx"),
        (["RUN", "--format", "timm", "--normalise"], "use --format onnx or torch"),
        (
            ["RUN", "--format", "timm", "--images", "nowhere"],
            "no folder, archive, table or image nowhere",
        ),
        (["FINETUNED", "--format", "onnx"], "Name a folder of real images by --images"),
        (["MOVED", "--format", "timm"], "which is gone. Put them back"),
        (["RUN", "--format", "timm", "--out", "RUN"], "holds another run"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    run: Path,
    finetuned: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: str,
):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "a.jpg").touch()
    listing = find_images(tmp_path / "gone")
    save_images(moved, listing, listing.select([]), [])
    shutil.rmtree(tmp_path / "gone")
    places = {"RUN": str(run), "FINETUNED": str(finetuned), "MOVED": str(moved)}
    words = [places.get(word, word) for word in words]
    if "--out" not in words:
        words += ["--out", str(tmp_path / "out")]
    before = contents(tmp_path)
    assert main(["export", *words]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert contents(tmp_path) == before


def test_a_missing_library_is_named_with_its_extra(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("onnxscript", "transformers") else find(name, *rest),
    )
    for kind, missing in {"onnx": "onnxscript", "hf": "transformers"}.items():
        assert main(["export", str(run), "--format", kind, "--out", str(tmp_path / "out")]) == 2
        told = capsys.readouterr().err
        assert f"--format {kind} needs {missing}: pip install 'simmim[{kind}]'" in told
