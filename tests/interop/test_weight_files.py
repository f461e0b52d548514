"""Files that are damaged, hostile, or no weights at all: one clear error, at once, nothing run."""

import argparse
import io
import json
import os
import pickle
import resource
import struct
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from commands import call
from safetensors.torch import save, save_file
from timm.models import load_state_dict

import simmim
from simmim.errors import CheckpointError
from simmim.interop.weight_files import read_shards, read_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


class Runs:
    """Unpickled as usual, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def saved(what: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(what, buffer, **options)
    return buffer.getvalue()


def compressed() -> bytes:
    """A zip bomb in the shape of a checkpoint: 50 MB of zeros in some kB."""
    out = io.BytesIO()
    plain = zipfile.ZipFile(io.BytesIO(saved(STATE)))
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in plain.infolist():
            data = plain.read(entry)
            big = b"\0" * 50_000_000 if "/data/" in entry.filename else data
            archive.writestr(entry.filename, big)
    return out.getvalue()


def overlong() -> bytes:
    """One number that claims to be ten thousand million."""
    return saved({"a": torch.zeros(1).expand(100_000, 100_000)})


PLAIN = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


def header(claimed: int, text: bytes = PLAIN) -> bytes:
    return struct.pack("<Q", claimed) + text + b"\0\0\0\0"


def safetensors_claiming(shape: list[int], end: int) -> bytes:
    text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(text)) + text + b"\0\0\0\0"


HOSTILE = {
    "empty": (b"", "is empty"),
    "text": (b"these are the weights, honest\n" * 9, "is a text file"),
    "page": (b"<!DOCTYPE html><html>404</html>", "is a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "noise": (bytes(range(129, 256)) * 9, "is no file of weights"),
    "png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 60, "is no file of weights"),
    "keras": (b"\x89HDF\r\n\x1a\n" + b"\0" * 60, "HDF5"),
    "one byte": (b"\x80", "damaged"),
    "truncated pth": (saved(STATE)[:-300], "damaged"),
    "half a pth": (saved(STATE)[:700], "damaged"),
    "truncated legacy": (saved(STATE, _use_new_zipfile_serialization=False)[:-9], "damaged"),
    "truncated safetensors": (save(STATE)[:-4], "damaged"),
    "10 GB header": (header(10 * 2**30), "claims 10,737,418,240 bytes"),
    "largest header": (header(2**64 - 1), "claims"),
    "header of no JSON": (header(40, b"{" + b"x" * 39), "damaged"),
    "header beyond the end": (safetensors_claiming([10**10], 4 * 10**10), "damaged"),
    "header of another size": (safetensors_claiming([3], 4), "damaged"),
    "zip bomb": (compressed(), "unpacks to more than it holds"),
    "repeated number": (overlong(), "for which the file has too few bytes"),
    "a zip of other things": (b"", "zip archive without weights"),
    "plain pickle": (pickle.dumps(STATE["a.bias"].tolist()), "damaged|no weights"),
    "a list": (saved([1, 2, 3]), "holds a list"),
    "no tensors": (saved({"epoch": 3}), "has no weights"),
    "sparse": (saved({"a": torch.eye(3).to_sparse()}), "not a plain tensor"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.filterwarnings("ignore")
def test_hostile_files_are_refused_at_once(kind: str, tmp_path: Path):
    content, message = HOSTILE[kind]
    file = tmp_path / "weights.pth"  # the name says nothing
    file.write_bytes(content)
    if kind == "a zip of other things":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("cat.txt", "miau")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=message) as caught:
        simmim.load(file)
    assert time.monotonic() - began < 1
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # kB


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(options: dict, tmp_path: Path):
    mark = tmp_path / "was-run"
    file = tmp_path / "weights.safetensors"
    file.write_bytes(saved({"model": STATE, "trap": Runs(mark)}, **options))
    with pytest.raises(CheckpointError, match=r"asks to run (posix|os)\.system.*save its weights"):
        simmim.load(file)
    file.write_bytes(pickle.dumps(Runs(mark)))
    with pytest.raises(CheckpointError):
        simmim.load(file)
    assert not mark.exists()


def test_random_edits_of_a_file_are_refused_or_leave_it_readable(tmp_path: Path):
    rng = np.random.default_rng(0)
    file = tmp_path / "x"
    refused = 0
    for content in (saved(STATE), save(STATE)):
        for _ in range(150):
            edited = bytearray(content)
            for place in rng.integers(0, min(len(edited), 900), size=3):
                edited[place] = rng.integers(0, 256)
            file.write_bytes(bytes(edited))
            try:
                read_weights(file)
            except CheckpointError:
                refused += 1
    assert refused > 100


def test_the_command_refuses_in_one_line(tmp_path: Path, photos: Path):
    file = tmp_path / "weights.pth"
    file.write_bytes(header(10 * 2**30))
    done = call("probe", file, photos)
    assert done.returncode == 2
    assert done.stderr.startswith(f"simmim: {file} is damaged")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("legacy", [False, True])
def test_settings_beside_the_weights_are_read_without_their_classes(legacy: bool, tmp_path: Path):
    class CfgNode(dict):
        """As in yacs: a dict with attributes."""

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module = type(sys)("yacs.config")
    module.CfgNode = CfgNode
    config = CfgNode(DATA=CfgNode(IMG_SIZE=192, MASK_RATIO=0.6), AMP=True)
    config.__dict__["__immutable__"] = True
    document = {
        "model": OrderedDict(STATE),
        "config": config,
        "args": argparse.Namespace(num_heads=4, device=torch.device("cpu")),
        "max_accuracy": np.float64(0.5),
        "epoch": 3,
    }
    sys.modules["yacs"] = sys.modules["yacs.config"] = module
    try:
        content = saved(document, _use_new_zipfile_serialization=not legacy)
    finally:
        del sys.modules["yacs"], sys.modules["yacs.config"]
    file = tmp_path / "simmim_pretrain.pth"
    file.write_bytes(content)

    weights = read_weights(file)

    assert weights.settings == {"img_size": 192, "mask_ratio": 0.6, "amp": True, "num_heads": 4}
    assert weights.state.keys() == STATE.keys()
    assert torch.equal(weights.state["a.weight"], STATE["a.weight"])


@pytest.mark.parametrize("first", [0x80, ord("P")])
def test_a_header_of_any_length_is_a_header(first: int, tmp_path: Path):
    """Its length is the file's first byte, which is also how a pickle or a zip begins."""
    file = tmp_path / "x"
    for size in range(1, 600):
        content = save(STATE, {"note": "x" * size})
        if content[0] == first:
            file.write_bytes(content)
            assert read_weights(file).state.keys() == STATE.keys()
            return
    raise AssertionError


def test_wrappers_of_training_codes_are_taken_off(tmp_path: Path):
    file = tmp_path / "x.safetensors"
    save_file({f"module.{name}": value for name, value in STATE.items()}, file)
    assert read_weights(file).state.keys() == STATE.keys()
    torch.save({"state_dict": {f"_orig_mod.{k}": v for k, v in STATE.items()}}, file)
    assert read_weights(file).state.keys() == STATE.keys()


def test_weights_in_several_files(tmp_path: Path):
    save_file({"a.weight": STATE["a.weight"]}, tmp_path / "1.safetensors")
    save_file({"a.bias": STATE["a.bias"]}, tmp_path / "2.safetensors")
    index = tmp_path / "model.safetensors.index.json"

    def write(**places: str) -> None:
        named = {name.replace("_", "."): file for name, file in places.items()}
        index.write_text(json.dumps({"weight_map": named}))

    write(a_weight="1.safetensors", a_bias="2.safetensors")
    assert read_shards(index).state.keys() == STATE.keys()
    write(a_weight="1.safetensors", a_gain="2.safetensors")
    with pytest.raises(CheckpointError, match=r"names a\.gain, which is in none"):
        read_shards(index)
    write(a_weight="../1.safetensors")
    with pytest.raises(CheckpointError, match="does not lie beside it"):
        read_shards(index)


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema"])
@pytest.mark.parametrize("plain", ["state_dict", "model"])
def test_of_two_sets_of_weights_the_average_is_taken_as_timm_does(
    average: str, plain: str, tmp_path: Path
):
    file = tmp_path / "checkpoint.pth.tar"
    state = {f"_orig_mod.module.{name}": value for name, value in STATE.items()}
    other = {name: value + 1 for name, value in state.items()}
    torch.save({plain: other, average: state, "optimizer": {"state": {}}, "epoch": 7}, file)
    weights = read_weights(file)
    right = load_state_dict(str(file))
    assert weights.state.keys() == right.keys() == STATE.keys()
    assert all(torch.equal(weights.state[name], right[name]) for name in right)
    assert weights.notes == (f"the weights are those of {average}; not used: {plain}",)
    torch.save({plain: other, average: None}, file)
    assert torch.equal(read_weights(file).state["a.bias"], STATE["a.bias"] + 1)
    assert read_weights(file).notes == ()


def test_which_of_several_weights_is_used_is_told_to_whoever_loads_them(tmp_path: Path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    state = model.state_dict()
    file = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict_ema": state, "state_dict": {k: v + 1 for k, v in state.items()}}, file)
    with pytest.warns(UserWarning, match="those of state_dict_ema; not used: state_dict"):
        encoder = simmim.load(file)
    assert torch.equal(dict(encoder.encoder.timm_state())["cls_token"], state["cls_token"])
