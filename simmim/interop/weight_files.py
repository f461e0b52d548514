"""Files of weights, read without running anything that is in them."""

import argparse
import json
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simmim.errors import CheckpointError
from simmim.runs.encoder import AGAIN, HASH, hash_of

LARGEST_HEADER = 100_000_000
"""Bytes; what the safetensors library itself allows."""

_SCALAR: Any = np.float64(0).__reduce__()[0]
PLAIN_CLASSES: list[Any] = [
    argparse.Namespace,
    (OrderedDict, "yacs.config.CfgNode"),  # a dict with attribute access; no yacs is needed
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.int64)),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]
"""Holders of settings that training codes save beside the weights, let in beside torch's own list.

Reading them runs no code of the file: they only hold values.
"""

CONTAINERS = (
    *("state_dict_ema", "model_ema", "model", "state_dict", "model_state_dict", "teacher"),
    "module",
)
"""Where training codes put the weights in what they save, the first that is there.

The moving average comes first, as in timm's own loader.
"""

WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")
"""What torch.compile and DistributedDataParallel put before every name, in either order."""


@dataclass(frozen=True)
class Weights:
    """What a file holds.

    Attributes:
        state: Tensors by name.
        settings: Plain values that were saved beside them, such as the training arguments.
        notes: What was chosen among several, a line each.
    """

    state: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_weights(path: Path) -> Weights:
    """The tensors of a file, whatever its name: safetensors, or what ``torch.save`` wrote.

    Nothing in the file is executed, and no more memory is taken than the file is long.

    Raises:
        CheckpointError: No such file, or one that is empty, cut off, damaged, of another kind, or
            that would have to run code to be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty: 0 bytes. Copy or download it again.")
    if head[8:9] == b"{":  # after the length of a header; no pickle or zip has it there
        weights = Weights(_safetensors(path, size, head))
    elif head.startswith(b"PK\x03\x04"):
        _check_zip(path, size)
        weights = _torch(path)
    elif head.startswith(b"\x80"):
        weights = _torch(path)
    else:
        raise CheckpointError(f"{path} {_what(head)}")
    _check_tensors(path, weights.state)
    state = weights.state
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return replace(weights, state=state)


def read_json(path: Path, *, most: int = 50_000_000) -> dict[str, Any]:
    """An object in a JSON file of at most ``most`` bytes.

    Raises:
        CheckpointError: No such file, or not an object in JSON.
    """
    try:
        if path.stat().st_size > most:
            raise CheckpointError(f"{path} is larger than {most // 10**6} MB, so no settings.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no `name: value` pairs.")
    return found


def read_shards(index: Path) -> Weights:
    """All tensors of a checkpoint in several files, from the index beside them.

    Raises:
        CheckpointError: See ``read_weights``; or a file lies elsewhere than beside the index.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map, so it does not say where the parts are.")
    state: dict[str, Tensor] = {}
    for name in sorted({str(place) for place in places.values()}):
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {name}, which does not lie beside it; refused.")
        state |= read_weights(index.parent / name).state
    missing = sorted(places.keys() - state.keys())
    if missing:
        raise CheckpointError(f"{index} names {missing[0]}, which is in none of the files.")
    return Weights(state)


def _safetensors(path: Path, size: int, head: bytes) -> dict[str, Tensor]:
    claimed = int.from_bytes(head[:8], "little")
    if claimed > min(LARGEST_HEADER, size - 8):
        raise CheckpointError(
            f"{path} is damaged: its safetensors header claims {claimed:,} bytes, and the file has "
            f"{size:,}. Copy or download it again."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is damaged: {error}. It was cut off or changed; copy or download it again."
        ) from error


def _check_zip(path: Path, size: int) -> None:
    """Refuse what unpacks to more than the file holds, and what is another kind of archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} is damaged: {error}. It was cut off or changed; copy or download it again."
        ) from error
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise CheckpointError(f"{path} is a zip archive without weights that torch.save wrote.")
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > size:
        raise CheckpointError(
            f"{path} unpacks to more than it holds, which torch.save never writes; refused."
        )


def _torch(path: Path) -> Weights:
    try:
        # The file and not its name, from which torch would guess what is in it.
        known = torch.serialization.safe_globals(PLAIN_CLASSES)
        with known, path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged files; they fail, or are checked below
            found = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise CheckpointError(f"{path} {_refused(str(error))}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} is damaged: it claims more memory than there is.") from error
    except Exception as error:  # a damaged pickle may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{path} is damaged: {reason}. It was cut off or changed; copy or download it again."
        ) from error
    return _unwrap(path, found)


def _refused(reason: str) -> str:
    reason = " ".join(reason.split())
    marks = ("Unsupported global: GLOBAL ", "Trying to load unsupported GLOBAL ")
    for mark in marks:
        if mark in reason:
            name = reason.split(mark, 1)[1].split(" ", 1)[0]
            return (
                f"asks to run {name} when it is opened, which simmim never does: a file from "
                "somebody else could do anything. If you trust it, open it where that code is "
                "installed and save its weights alone: "
                "torch.save({'model': model.state_dict()}, 'weights.pth')."
            )
    return (
        f"is damaged, or no file of weights: {reason[:160]}. Copy or download it again, or save "
        "its weights as safetensors."
    )


def _unwrap(path: Path, found: Any) -> Weights:
    """The weights in what ``torch.save`` was given, and the settings beside them."""
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(found).__name__} and no weights by name. Save a state_dict."
        )
    settings: dict[str, Any] = {}
    notes: list[str] = []
    for _ in range(3):
        chosen = next((name for name in CONTAINERS if isinstance(found.get(name), Mapping)), None)
        if chosen is None:
            break
        inner = found[chosen]
        others = [str(n) for n, value in found.items() if value is not inner and _is_state(value)]
        if others:
            notes.append(f"the weights are those of {chosen}; not used: {', '.join(others)}")
        for name in ("args", "config", "hparams"):
            settings |= dict(_plain(found.get(name)))
        found = inner
    state = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(
            f"{path} has no weights: its names are {', '.join(map(str, list(found)[:5]))}."
        )
    return Weights(state, settings, tuple(notes))


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def _plain(settings: Any) -> Iterator[tuple[str, Any]]:
    """Names and plain values, those of nested settings too, in lower case."""
    values = vars(settings) if isinstance(settings, argparse.Namespace) else settings
    if not isinstance(values, Mapping):
        return
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _plain(value)
        elif isinstance(value, (bool, int, float, str, list, tuple)):
            yield str(name).lower(), value


def _check_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """A tensor may claim a shape that its bytes do not fill, by repeating them without end."""
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized:
            raise CheckpointError(f"{path}: {name} is not a plain tensor; save it as one.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {name} claims the shape {tuple(value.shape)}, for which the file has too "
                "few bytes; refused."
            )


def _what(head: bytes) -> str:
    """What a file that holds no weights seems to be."""
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return (
            "is a pointer to a file in git LFS, not the weights: run `git lfs pull`, or download "
            "it by its own link."
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not the weights: the download was refused or moved."
    if head.startswith(b"\x89HDF"):
        return "is an HDF5 file (Keras, TensorFlow); only PyTorch and safetensors files are read."
    try:
        head.decode()
    except UnicodeDecodeError:
        return (
            "is no file of weights that simmim knows: neither safetensors nor what torch.save "
            "writes. If it was cut off, copy or download it again."
        )
    return "is a text file, not weights; simmim reads safetensors and what torch.save writes."


def read_own_weights(file: Path) -> dict[str, Tensor]:
    """The tensors that ``write_weights`` wrote.

    Raises:
        CheckpointError: The file is missing, cut off, or not as it was written.
    """
    state = read_weights(file).state
    with safe_open(file, framework="pt") as opened:
        written = (opened.metadata() or {}).get(HASH)
    if written not in (None, hash_of(state)):  # None: somebody else's
        raise CheckpointError(
            f"{file} is damaged: its weights do not have the sha256 that it names. {AGAIN}"
        )
    return state
