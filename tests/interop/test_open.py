"""From what a user names to weights: runs, files, folders, timm's hub and Hugging Face's."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import simmim
from simmim.config.run import PretrainConfig
from simmim.errors import CheckpointError
from simmim.interop.checkpoint import IMAGENET
from simmim.interop.load import model_from
from simmim.interop.open import checkpoint_of, describe, open_source
from simmim.interop.weight_files import Weights
from simmim.models.mim import build_model
from simmim.runs.encoder import save_encoder

REFERENCE = Path(__file__).parent / "reference"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def deployed(tiny: PretrainConfig, tmp_path: Path) -> Path:
    """A folder with encoder.safetensors and encoder.json."""
    model = build_model(tiny, IMAGENET, (32, 32))
    save_encoder(tmp_path, model.encoder, IMAGENET, {"recipe": "simmim"})
    return tmp_path


@pytest.fixture
def timm_folder(tmp_path: Path) -> Path:
    """What timm saves for its hub: a ViT of an unusual size."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    arguments = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    torch.manual_seed(4)
    net = timm.create_model("vit_tiny_patch16_224", num_classes=5, **arguments)
    save_file(dict(net.state_dict()), folder / "model.safetensors")
    card = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "mine", "input_size": [3, 48, 48], "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25], "license": "apache-2.0",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(card))
    return folder


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face hub's protocol that fetching a repository needs."""

    repositories: dict[str, Path]

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, *, body: bool = True) -> None:
        words = self.path.split("?")[0].strip("/").split("/")
        if words[:2] == ["api", "models"]:
            folder = self.repositories.get("/".join(words[2:4]))
            if folder is None:
                return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"}, body=body)
            files = [{"rfilename": file.name} for file in folder.iterdir()]
            if words[4:5] == ["tree"]:
                files = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": COMMIT}
                    for file in folder.iterdir()
                ]
                return self.answer(200, json.dumps(files).encode(), {}, body=body)
            reply = {"id": "/".join(words[2:4]), "sha": COMMIT, "siblings": files}
            return self.answer(200, json.dumps(reply).encode(), {}, body=body)
        folder = self.repositories.get("/".join(words[:2]))
        file = None if folder is None else folder / words[-1]
        if file is None or not file.is_file():
            code = "RepoNotFound" if folder is None else "EntryNotFound"
            return self.answer(404, b"", {"X-Error-Code": code}, body=body)
        data = file.read_bytes()
        tags = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self.answer(200, data, tags, body=body)

    def answer(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(timm_folder: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A hub on this machine with the repository me/vit; the environment that leads to it."""
    Hub.repositories = {"me/vit": timm_folder}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    yield os.environ | {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    server.shutdown()


def python(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", code]
    return subprocess.run(
        words, capture_output=True, text=True, check=False, env=environment, timeout=120
    )


HUB_CODE = """
import simmim, torch
from simmim.errors import SimmimError
from simmim.interop.open import open_source
found = open_source("hf:me/vit")
print(found.model, found.image_size, found.pixels.mean, found.licence, sorted(found.left_out))
torch.save(dict(found.encoder), OUT)
try:
    open_source("hf:me/nothing")
except SimmimError as error:
    print("refused:", error)
"""


def test_a_repository_is_fetched_from_a_hub_and_found_again_without_it(
    hub: dict[str, str], timm_folder: Path, tmp_path: Path
):
    code = HUB_CODE.replace("OUT", repr(str(tmp_path / "got.pth")))
    done = python(code, hub)
    assert done.returncode == 0, done.stderr
    first, refused = done.stdout.splitlines()[:2]
    assert first == (
        "vit_tiny_patch16_224 (48, 48) (0.5, 0.5, 0.5) apache-2.0 ['head.bias', 'head.weight']"
    )
    assert "hf:me/nothing could not be fetched" in refused
    got = torch.load(tmp_path / "got.pth", weights_only=True)
    theirs = load_file(timm_folder / "model.safetensors")
    assert all(torch.equal(value, theirs[name]) for name, value in got.items())

    offline = python(code, hub | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert offline.stdout.splitlines()[0] == first
    assert "Without a network, fetch it elsewhere" in offline.stdout


def test_tagged_weights_of_timm_come_from_the_hub_with_their_licence(
    hub: dict[str, str], tmp_path: Path
):
    folder = tmp_path / "tiny"
    folder.mkdir()
    torch.manual_seed(5)
    net = timm.create_model("vit_tiny_patch16_224.augreg_in21k", num_classes=0)
    save_file(dict(net.state_dict()), folder / "model.safetensors")
    Hub.repositories["timm/vit_tiny_patch16_224.augreg_in21k"] = folder
    code = (
        "import simmim\n"
        "from simmim.interop.open import open_source, describe\n"
        "found = open_source('timm:vit_tiny_patch16_224.augreg_in21k')\n"
        "print(found.licence, found.image_size, found.pixels.mean)\n"
        "print(float(found.encoder['blocks.3.attn.qkv.weight'].double().sum()))\n"
    )
    done = python(code, hub)
    assert done.returncode == 0, done.stderr
    licence, total = done.stdout.splitlines()
    assert licence == "apache-2.0 (224, 224) (0.5, 0.5, 0.5)"
    assert float(total) == float(net.state_dict()["blocks.3.attn.qkv.weight"].double().sum())


def test_without_a_network_the_message_says_what_to_do(hub: dict[str, str]):
    folder = Path(hub["HF_HOME"]).parent / "photos"
    folder.mkdir()
    Image.new("RGB", (40, 40)).save(folder / "a.png")
    words = ["-m", "simmim", "embed", "timm:vit_tiny_patch16_224", folder, "--out", "x.npz"]
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, check=False,
        env=hub | {"HF_ENDPOINT": "http://127.0.0.1:9"}, timeout=120, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 2
    assert "timm:vit_tiny_patch16_224 could not be fetched" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_of_timm(timm_folder: Path):
    encoder = simmim.load(timm_folder)
    theirs = timm.create_model(f"local-dir:{timm_folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        wanted = theirs.forward_features(images)[:, 1:]
        assert (encoder.tokens(images) - wanted).abs().max() < 1e-5
    assert encoder.pixels.std == (0.25, 0.25, 0.25)
    again = simmim.load(timm_folder / "model.safetensors")  # its config.json lies beside it
    assert again.image_size == (48, 48)


def test_a_folder_with_one_file_of_weights_and_one_with_none(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="is no run folder"):
        open_source(tmp_path)
    (tmp_path / "mae.pth").write_bytes((REFERENCE / "mae.pth").read_bytes())
    assert open_source(tmp_path).layout == "MAE's original code, pretraining"
    (tmp_path / "other.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="Name one of its 2 files"):
        open_source(tmp_path)


def test_our_own_files_by_any_of_their_names(deployed: Path):
    for source in (deployed, deployed / "encoder.safetensors"):
        assert open_source(source).own
    assert describe(open_source(deployed))[0][0] == "weights"
    (deployed / "encoder.json").write_text('{"format": 1, "model": "vit"}')
    with pytest.raises(CheckpointError, match=r"encoder\.json is damaged: KeyError"):
        open_source(deployed)


def test_what_does_not_exist_is_told():
    with pytest.raises(CheckpointError, match="no such file or folder"):
        simmim.load("nowhere.pth")
    with pytest.raises(CheckpointError, match="Did you mean vit_base_patch16_224"):
        simmim.load("timm:vit_base_patch16_22")
    state = torch.load(REFERENCE / "mae.pth", weights_only=True)["model"]
    alone = {k: v for k, v in state.items() if not k.startswith(("decoder", "mask"))}
    found = checkpoint_of(Weights(alone), {"num_heads": 2})
    with pytest.raises(CheckpointError, match="is an encoder alone"):
        model_from(found)
