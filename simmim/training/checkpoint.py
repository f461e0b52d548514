"""Checkpoints that are whole or absent.

``.tmp-STEP-PID/`` → tensors → fsync → state.json with the hash of each file, last → rename to
``step-N`` → fsync → prune. The newest folder whose hashes hold is the one to go on from.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from simmim.config.run import FORMAT
from simmim.errors import CheckpointError, ResourceError
from simmim.training.files import check_space, sync

_MODEL = "model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose hashes were found right."""

    folder: Path
    step: int
    state: dict

    def model(self) -> dict[str, Tensor]:
        """The weights, by name."""
        return load_file(self.folder / _MODEL)

    def optimizer(self) -> dict[str, Tensor]:
        """The optimizer's tensors, as ``NAME.exp_avg`` and so on."""
        return load_file(self.folder / _OPTIMIZER)


class Checkpoints:
    """The folder ``checkpoints/`` of a run.

    Args:
        folder: Made when the first checkpoint is saved.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(
        self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, extra: dict
    ) -> Path:
        """Write ``step-N``; returns when it is on the disk.

        Raises:
            ResourceError: The disk is full; nothing of the attempt is left.
            CheckpointError: A weight is not finite; the older checkpoints stay as they are.
        """
        weights = {name: _plain(value) for name, value in module.state_dict().items()}
        moments = _optimizer_tensors(optimizer)
        _check_finite(weights)
        size = sum(t.nbytes for t in (*weights.values(), *moments.values()))
        check_space(self.folder, size, f"The checkpoint of step {step}")
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".tmp-{step}-{os.getpid()}"
        final = self.folder / f"step-{step:08d}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            save_file(weights, temporary / _MODEL)
            save_file(moments, temporary / _OPTIMIZER)
            files = {name: _fingerprint(temporary / name) for name in (_MODEL, _OPTIMIZER)}
            state = {"format": FORMAT, "step": step, "files": files, **extra}
            (temporary / _STATE).write_text(json.dumps(state, indent=1))
            sync(temporary / _STATE)
            sync(temporary)
            if final.exists():  # a damaged one of the same step, passed over on resume
                shutil.rmtree(final)
            temporary.rename(final)
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            raise ResourceError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {error}. "
                "Is the disk full?"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in self._folders()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def newest(self, note: Callable[[str], None]) -> Checkpoint | None:
        """The newest whole checkpoint, or None where there is none at all.

        Args:
            note: Told of each one that is passed over, and why.

        Raises:
            CheckpointError: There are some, and every one is damaged.
        """
        for stale in self.folder.glob(".tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        reasons = []
        for folder in self._folders():
            try:
                return read_checkpoint(folder)
            except CheckpointError as error:
                reasons.append(str(error))
                note(f"passed over: {error}")
        if reasons:
            raise CheckpointError(
                f"every checkpoint in {self.folder} is damaged: {' '.join(reasons)} Delete them to "
                "start over from step 0."
            )
        return None

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put saved moments back; rate, decay and kernel stay as the config says.

    Raises:
        CheckpointError: Tensors are missing, by name.
    """
    missing = []
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            keys = ("step", "exp_avg", "exp_avg_sq")
            found = {key: tensors.get(f"{name}.{key}") for key in keys}
            missing += [f"{name}.{key}" for key, value in found.items() if value is None]
            optimizer.state[parameter] = {
                # Fused AdamW wants the count beside the weights.
                key: value.to(parameter.device)
                for key, value in found.items()
                if value is not None
            }
    if missing:
        raise CheckpointError(f"the optimizer's state lacks {', '.join(missing[:8])}.")


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": _plain(value)
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous()


def _check_finite(weights: dict[str, Tensor]) -> None:
    bad = [n for n, t in weights.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise CheckpointError(f"not saved, since weights are not finite: {', '.join(bad[:5])}.")


def _fingerprint(path: Path) -> dict[str, int | str]:
    sync(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def read_checkpoint(folder: Path) -> Checkpoint:
    """One checkpoint whose files have the hashes in its state.json.

    Raises:
        CheckpointError: Missing, cut short, damaged, or of another format.
    """
    try:
        state = json.loads((folder / _STATE).read_text())
        number, step, files = state["format"], int(state["step"]), dict(state["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} has no readable {_STATE} ({error!r}).") from error
    if number != FORMAT:
        raise CheckpointError(
            f"{folder} has format {number}; this simmim reads format {FORMAT}. Use the version "
            "that wrote it."
        )
    for name, expected in files.items():
        path = folder / Path(name).name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{path} is missing or cut short.")
        if _fingerprint(path) != expected:
            raise CheckpointError(f"{path} is damaged: its sha256 is not the one in {_STATE}.")
    return Checkpoint(folder, step, state)
