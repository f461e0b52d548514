"""Checkpoints that are whole or absent.

``.tmp-STEP-PID/`` → tensors → fsync → state.json with the hash of each file, last → rename to
``step-N`` → fsync → prune. The newest folder whose hashes hold is the one to go on from; those
that are newer and damaged are set aside as ``damaged-step-N`` and never counted again.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from simmim.config.run import FORMAT
from simmim.config.seal import seal_json
from simmim.errors import CheckpointError, ResourceError
from simmim.runs.files import check_space, sync, write_text
from simmim.runs.states import STATE, name_of, read_state, step_folders

_MODEL = "model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
MOMENTS = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "muon": ("momentum",)}
"""What each optimizer keeps of a parameter; all but ``step`` are as large as it."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose hashes were found right."""

    folder: Path
    step: int
    state: dict

    def model(self) -> dict[str, Tensor]:
        """The weights, by name."""
        return _load(self.folder / _MODEL)

    def optimizer(self) -> dict[str, Tensor]:
        """The optimizer's tensors, as ``NAME.exp_avg`` and so on."""
        return _load(self.folder / _OPTIMIZER)


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
        self, step: int, weights: dict[str, Tensor], moments: dict[str, Tensor], extra: dict
    ) -> Path:
        """Write ``step-N``; returns when it is on the disk.

        Args:
            step: Steps done.
            weights: Of the module, by name, on the CPU.
            moments: Of the optimizer; see ``optimizer_tensors``.
            extra: What else goes into state.json.

        Raises:
            ResourceError: The disk is full or the run folder gone; nothing of the attempt is left.
            CheckpointError: A weight is not finite; the older checkpoints stay as they are.
        """
        _check_finite(weights)
        size = sum(t.nbytes for t in (*weights.values(), *moments.values()))
        check_space(self.folder, size, f"The checkpoint of step {step}")
        temporary = self.folder / f".tmp-{step}-{os.getpid()}"
        final = self.folder / name_of(step)
        try:
            self.folder.mkdir(exist_ok=True)  # the run folder is not made anew where it is gone
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            save_file(weights, temporary / _MODEL)
            save_file(moments, temporary / _OPTIMIZER)
            files = {}
            for name in (_MODEL, _OPTIMIZER):
                sync(temporary / name)
                files[name] = _fingerprint(temporary / name)
            state = {"format": FORMAT, "step": step, "files": files, **extra}
            write_text(temporary / STATE, seal_json(state))
            if final.exists():  # a damaged one of the same step, passed over on resume
                shutil.rmtree(final)
            temporary.rename(final)
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            raise ResourceError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {error}. "
                "Is the disk full, or the folder gone?"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        # This one is whole; a newer one could only be damaged, and must not count.
        for old in [each for each in step_folders(self.folder) if each <= final][self.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def newest(self, note: Callable[[str], None]) -> Checkpoint | None:
        """The one to go on from, for the process that writes the run: it also tidies up.

        Args:
            note: Told of each damaged one that is set aside, and why.

        Returns:
            The newest whole checkpoint, or None where there is none at all.

        Raises:
            CheckpointError: There are some, and every one is damaged. They stay as they are.
        """
        for stale in self.folder.glob(".tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        damaged: list[tuple[Path, CheckpointError]] = []
        found = self.read(lambda *what: damaged.append(what))
        for folder, error in damaged if found is not None else ():
            aside = _aside(folder)
            try:
                folder.rename(aside)
            except OSError as why:
                raise CheckpointError(
                    f"{error} It cannot be set aside as {aside.name} ({why.strerror})."
                ) from why
            note(f"passed over: {error} It is kept as {aside.name}, and may be deleted.")
        return found

    def read(self, damaged: Callable[[Path, CheckpointError], None]) -> Checkpoint | None:
        """The same, changing nothing, while another process may write the run.

        Args:
            damaged: Told of each that is passed over, and why.
        """
        reasons: dict[Path, CheckpointError] = {}
        # What was removed meanwhile has made room for a newer one.
        while left := [folder for folder in step_folders(self.folder) if folder not in reasons]:
            try:
                return read_checkpoint(left[0])
            except CheckpointError as error:
                reasons[left[0]] = error
                damaged(left[0], error)
        if reasons:
            raise CheckpointError(
                f"every checkpoint in {self.folder} is damaged: "
                f"{' '.join(map(str, reasons.values()))} Delete them to start over from step 0."
            )
        return None


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put saved moments back; rate, decay and kernel stay as the config says.

    Raises:
        CheckpointError: Tensors are missing, by name.
    """
    missing = []
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            found = {key: tensors.get(f"{name}.{key}") for key in MOMENTS[group["kind"]]}
            if all(value is None for value in found.values()):
                continue  # it has had no gradient yet
            missing += [f"{name}.{key}" for key, value in found.items() if value is None]
            optimizer.state[parameter] = {
                # Fused AdamW wants the count beside the weights.
                key: value.to(parameter.device)
                for key, value in found.items()
                if value is not None
            }
    if missing:
        raise CheckpointError(f"the optimizer's state lacks {', '.join(missing[:8])}.")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer keeps of each parameter, as ``NAME.exp_avg`` and so on."""
    return {
        f"{name}.{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _check_finite(weights: dict[str, Tensor]) -> None:
    bad = [n for n, t in weights.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise CheckpointError(f"not saved, since weights are not finite: {', '.join(bad[:5])}.")


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def read_checkpoint(folder: Path) -> Checkpoint:
    """One checkpoint whose files have the hashes in its state.json.

    Raises:
        CheckpointError: Missing, cut short, damaged, or of another format.
    """
    state = read_state(folder)
    for name, expected in state["files"].items():
        path = folder / name
        try:
            found = _fingerprint(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
        if found != expected:
            raise CheckpointError(f"{path} is damaged: its sha256 is not the one in {STATE}.")
    return Checkpoint(folder, state["step"], state)


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from error


def _aside(folder: Path) -> Path:
    """A free name for a damaged checkpoint."""
    names = (f"damaged-{folder.name}{end}" for end in ("", *(f"-{i}" for i in range(2, 1000))))
    return next(path for name in names if not (path := folder.with_name(name)).exists())
