"""Short runs on real photos: the same weights however a batch, or the run itself, is cut."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from simmim.config.optim import OptimConfig
from simmim.config.run import PretrainConfig
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream
from simmim.data.sources.find import find_images
from simmim.errors import Stopped
from simmim.models.mim import build_model
from simmim.runs.checkpoints import Checkpoint, Checkpoints
from simmim.runs.stop import StopSignal
from simmim.tasks.pretrain import PretrainTask
from simmim.training.loop import Plan, train
from simmim.training.readings import Watcher
from simmim.training.world import World
from simmim.verify.check import Figure, Ground, SkippedError, WrongError
from simmim.verify.steps import ALONE
from simmim.verify.subjects import RGB, VIT, photos

BATCH, STEPS, CUT = 12, 6, 3
SIDE = 32
PATIENCE = 120
"""Seconds after which a process that says nothing counts as hung."""
_PLAIN = replace(VIT, optim=OptimConfig(lr=1e-3, warmup_share=0.2))
_RANDOM = replace(_PLAIN, encoder=replace(VIT.encoder, drop_path=0.2))
"""With random numbers in the encoder too, which a resume must draw again."""
_NETWORK = re.compile(r"gloo|DistNetworkError|DistStoreError|connect", re.IGNORECASE)
"""What torch says where sockets do not work here; anything else is a fault."""
_RESUMED, _SHARED = "resumed.safetensors", "shared.safetensors"


def short_run(
    root: Path,
    config: PretrainConfig,
    *,
    micro: int = BATCH,
    world: World = ALONE,
    precision: Literal["fp32", "bf16"] = "fp32",
    checkpoints: Checkpoints | None = None,
    resume: Checkpoint | None = None,
    stop_at: int | None = None,
) -> dict[str, Tensor]:
    """Train a new model for ``STEPS``, or up to ``stop_at``; returns its weights."""
    torch.manual_seed(config.seed)
    task = PretrainTask(build_model(config, RGB, (SIDE, SIDE)))
    images = ImageSet(find_images(root), RGB)
    stream = TrainStream(
        images,
        augment=config.augment,
        size=(SIDE, SIDE),
        seed=config.seed,
        batch_size=BATCH,
        micro_batch=micro,
        workers=0,
        rank=world.rank,
        ranks=world.ranks,
    )
    plan = Plan(
        steps=STEPS,
        batch_size=BATCH,
        epoch=len(images.paths) / BATCH,
        optim=config.optim,
        precision=precision,
        seed=config.seed,
        look_every=0,
    )
    stop = StopSignal()
    watchers = [] if stop_at is None else [_Ends(stop, stop_at)]
    try:
        train(
            task,
            plan,
            stream,
            world,
            watchers=watchers,
            checkpoints=checkpoints,
            resume=resume,
            stop=stop,
        )
    except Stopped:
        pass
    finally:
        stream.close()
    return {name: value.detach().clone() for name, value in task.module.state_dict().items()}


class _Ends(Watcher):
    """Asks a run to stop after a step, as a signal would."""

    def __init__(self, stop: StopSignal, step: int) -> None:
        self.stop, self.step = stop, step

    def update(self, row: dict[str, float]) -> None:
        """See ``Watcher``."""
        if row["step"] == self.step:
            self.stop.number = 15

    def note(self, text: str) -> None:
        """See ``Watcher``."""


def split(ground: Ground) -> Figure:
    """Weights after six steps with one micro-batch of 12, against 5 + 5 + 2 and 12 of one image.

    The norm of the difference over the norm of the weights, 1e-5 in float32 (rounding alone is
    left); the weights must have moved by more than a thousandth.
    """
    root = photos(ground.folder)
    config = replace(_PLAIN, seed=ground.seed)
    torch.manual_seed(config.seed)
    before = build_model(config, RGB, (SIDE, SIDE)).state_dict()
    whole = short_run(root, config)
    if distance([before], whole) < 1e-3:
        raise WrongError("training did not move the weights.")
    cut = [short_run(root, config, micro=micro) for micro in (5, 1)]
    return Figure(distance(cut, whole), 1e-5, "largest relative difference")


def two_processes(ground: Ground) -> Figure:
    """The same six steps by two processes that share each batch, against one process.

    Over torch.distributed (gloo, on the CPU, the way torchrun starts them). As above, 1e-5.
    """
    if torch.backends.mps.is_available():
        raise SkippedError("two processes cannot share one Apple GPU")
    root = photos(ground.folder)
    config = replace(_PLAIN, seed=ground.seed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    _start(
        ["share", str(ground.folder), str(ground.seed)],
        [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)],
        joined=ground.folder / "joined-0",
    )
    shared = load_file(ground.folder / _SHARED)
    return Figure(distance([shared], short_run(root, config)), 1e-5, "relative difference")


def resume(
    ground: Ground, precision: Literal["fp32", "bf16"], config: PretrainConfig = _RANDOM
) -> Figure:
    """Six steps at once, against six that were stopped after three and taken up from the disk.

    The second half is trained by new objects that know nothing but the checkpoint. With stochastic
    depth and random crops. Exact: every bit of every weight.
    """
    if precision == "bf16" and not _has_bf16():
        raise SkippedError("this CPU has no bfloat16 arithmetic")
    root, config = photos(ground.folder), replace(config, seed=ground.seed)
    whole = short_run(root, config, precision=precision)
    checkpoints = Checkpoints(ground.folder / "checkpoints", keep=1)
    short_run(root, config, precision=precision, checkpoints=checkpoints, stop_at=CUT)
    newest = _newest(checkpoints)
    resumed = short_run(root, config, precision=precision, resume=newest)
    return Figure(unlike(whole, resumed), 0, "weights that differ")


def resume_elsewhere(ground: Ground) -> Figure:
    """The same, the second half in a process of its own."""
    root, config = photos(ground.folder), replace(_RANDOM, seed=ground.seed)
    checkpoints = Checkpoints(ground.folder / "checkpoints", keep=1)
    short_run(root, config, checkpoints=checkpoints, stop_at=CUT)
    _newest(checkpoints)
    _start(["resume", str(ground.folder), str(ground.seed)], [{}])
    resumed = load_file(ground.folder / _RESUMED)
    return Figure(unlike(short_run(root, config), resumed), 0, "weights that differ")


def child_shares(folder: Path, seed: int, world: World) -> None:
    """What each of two processes does."""
    (folder / f"joined-{world.rank}").touch()
    config = replace(_PLAIN, seed=seed)
    weights = short_run(folder / "photos", config, micro=4, world=world)
    if world.leads:
        _write(folder / _SHARED, weights)


def child_resumes(folder: Path, seed: int) -> None:
    """What the process does that takes a run up."""
    newest = _newest(Checkpoints(folder / "checkpoints", keep=1))
    config = replace(_RANDOM, seed=seed)
    _write(folder / _RESUMED, short_run(folder / "photos", config, resume=newest))


def distance(others: Sequence[dict[str, Tensor]], weights: dict[str, Tensor]) -> float:
    """The largest ‖other - weights‖/‖weights‖."""
    flat = torch.cat([value.double().flatten() for value in weights.values()])
    away = [torch.cat([o[name].double().flatten() for name in weights]) - flat for o in others]
    return max(float(difference.norm() / flat.norm()) for difference in away)


def unlike(one: dict[str, Tensor], other: dict[str, Tensor]) -> int:
    """How many values differ, NaN counting as such."""
    if one.keys() != other.keys():
        raise WrongError(f"weights of other names: {sorted(one.keys() ^ other.keys())[:4]}.")
    return sum(int((one[name] != other[name]).sum()) for name in one)


def _has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _newest(checkpoints: Checkpoints) -> Checkpoint:
    notes: list[str] = []
    newest = checkpoints.newest(notes.append)
    if newest is None or notes or newest.step != CUT:
        raise WrongError(f"the run that was stopped after step {CUT} left no checkpoint of it.")
    return newest


def _write(path: Path, weights: dict[str, Tensor]) -> None:
    temporary = path.with_suffix(".tmp")
    save_file({name: value.contiguous() for name, value in weights.items()}, temporary)
    temporary.replace(path)


def _start(
    words: list[str], environments: list[dict[str, str]], joined: Path | None = None
) -> None:
    """Run ``python -m simmim.verify.child`` once for each environment, all at once.

    Raises:
        SkippedError: They could not reach each other.
        WrongError: One failed or hung.
    """
    # gloo may not end cleanly; what the processes wrote is judged by the caller.
    # This simmim, and not one that happens to lie in the current folder.
    paths = [str(Path(str(files("simmim"))).parent), os.environ.get("PYTHONPATH", "")]
    inherited = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    command = [sys.executable, "-P", "-m", "simmim.verify.child", *words]
    processes = [
        subprocess.Popen(
            command,
            env={**inherited, **own},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in environments
    ]
    try:
        errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    except subprocess.TimeoutExpired as error:
        raise WrongError(f"a process said nothing for {PATIENCE} s.") from error
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = [lines[-1] for text in errors if (lines := text.strip().splitlines())]
    if joined is not None and not joined.exists() and _NETWORK.search(" ".join(said)):
        raise SkippedError(f"two processes could not reach each other here: {'; '.join(said)}")
    if any(process.returncode for process in processes) and said:
        raise WrongError(f"a process failed: {said[0]}")
