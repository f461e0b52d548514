"""`simmim plan`: what a run will take, by training for some seconds and scaling that."""

import json
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from simmim.api.session import Session
from simmim.api.start import check_data
from simmim.config.commands import HARDWARE, PlanConfig
from simmim.config.run import TrainingConfig
from simmim.report import terminal
from simmim.report.health import WAITING
from simmim.report.words import count, duration, number, percent, speed
from simmim.runs.files import check_can_write, nearest_folder, write_text

if TYPE_CHECKING:  # torch is imported inside the functions
    import torch

C = TypeVar("C", bound=TrainingConfig)

_LEAST_STEPS = 8
_ROW = 1500
"""Bytes that a step takes in metrics.jsonl and as events, about."""
_MOST_STEPS = 300


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes:
        hours: In all, from the command to the results.
        images_per_s: Of training alone.
        memory_gb: Peak of the training process: of the GPU's memory, or of the machine's where
            there is none.
        memory_free_gb: What there is.
        disk_gb: Of the run folder at its largest.
        disk_free_gb: What there is.
        steps: Optimizer steps.
        epochs: Passes over the images.
        batch_size: Images per step.
        parameters: Weights that are trained.
        flops: Multiplications and additions of the whole run, each counting one.
        energy_kwh: At most; None where no limit of power is told.
        data_wait: Share of the time that goes into waiting for images.
        step_s: Seconds of a step.
        look_s: Seconds of a look at progress.
        save_s: Seconds of a checkpoint.
        start_s: Seconds before the first step.
        on: Other hardware.
        on_hours: The hours there, scaled by its stated peak.
    """

    hours: float
    images_per_s: float
    memory_gb: float
    memory_free_gb: float
    disk_gb: float
    disk_free_gb: float
    steps: int
    epochs: float
    batch_size: int
    parameters: int
    flops: float
    energy_kwh: float | None
    data_wait: float
    step_s: float
    look_s: float
    save_s: float
    start_s: float
    on: str | None
    on_hours: float | None


class _Rows(list[dict[str, float]]):
    """Rows of metrics as they come, and when the last was told."""

    def update(self, row: dict[str, float]) -> None:
        self.append(row)
        self.told = time.monotonic()

    def note(self, text: str) -> None:
        terminal.line(Console(stderr=True), text)


@dataclass(frozen=True)
class _Measured:
    """What training for some seconds told: seconds of each part, the share of waiting, bytes."""

    image: float
    wait: float
    look: float
    save: float
    start: float
    memory: int
    disk: int


def run_plan(
    kind: type[Session[C]], config: C, asked: PlanConfig, words: Sequence[str]
) -> Forecast:
    """Train for some seconds as the run would, and print what all of it will take.

    Args:
        kind: The task's session.
        config: What the run is asked to be.
        asked: How long to train, and what else to tell.
        words: The command that begins the run.

    Raises:
        SimmimError: What the run itself would be refused for.
    """
    from simmim.machine import available_memory
    from simmim.training.world import World, pick_device

    check_data(config)
    began, console = time.monotonic(), Console()
    images = shlex.join(config.data)
    text = f"planning: the images of {images} are listed and sampled, trained on for a while, and "
    text += "what progress is measured on is looked at twice"
    terminal.line(console, text)
    # On the disk of the run, whose space is looked at.
    place = nearest_folder(config.out or Path("runs"))
    for file in (place / "x", asked.json):
        if file is not None:
            check_can_write(file)
    with TemporaryDirectory(prefix=".simmim-plan-", dir=place) as folder:
        session = kind(Path(folder), World(0, 1, pick_device()))
        free = available_memory(session.world.device), shutil.disk_usage(place).free
        session.training = session.choose(config, kind.gather(config))
        try:
            measured = _measure(session, asked.seconds, time.monotonic() - began)
        finally:
            session.training.stream.close()
        forecast = _forecast(session, measured, free, asked.on)
    rows = [row for row in session.choices() if row[0] not in ("length", "time")]
    title = f"simmim plan {images} (nothing of it is kept)"
    terminal.header(console, title, session.found, rows)
    terminal.facts(console, _rows(forecast, images))
    if asked.json is not None:
        write_text(asked.json, json.dumps(asdict(forecast), indent=1))
    terminal.done(["next:", f"  {shlex.join(words)}"], console)
    return forecast


def _measure(session: Session, seconds: float, start: float) -> _Measured:
    """Train for so many seconds, look twice and save once."""
    from simmim.runs.checkpoints import Checkpoints
    from simmim.training.loop import train
    from simmim.training.step import looking

    training, run, device = session.training, session.run, session.world.device
    plan, micro = training.plan, training.resolved.micro_batch
    image = max(training.seconds_per_image, 1e-9)
    # Of a step that takes long, some of its micro-batches.
    pieces = max(1, int(seconds / _LEAST_STEPS / image / micro))
    size = min(plan.batch_size, pieces * micro)
    steps = min(_MOST_STEPS, max(_LEAST_STEPS, int(seconds / image / size)))
    looks, looked = session.looks() if plan.look_every else (), []

    def look(step: int) -> dict[str, float]:
        before = time.monotonic()
        values = {name: value for each in looks for name, value in each(step).items()}
        looked.append(time.monotonic() - before)
        return values

    with looking(training.task.module):
        look(0)  # imports what it needs
    session.save_lists()
    rows = _Rows()
    train(
        training.task,
        replace(
            plan,
            steps=steps,
            batch_size=size,
            earlier=(),
            budget=0.0,
            log_every=0.0,
            look_every=1.0,
            save_every=1.0,
            save_minutes=float("inf"),
        ),
        training.stream,
        session.world,
        watchers=[rows],
        looks=[look],
        checkpoints=Checkpoints(run / "checkpoints", keep=1),
        on_save=lambda step: training.task.deploy(run, {"step": step}, session.world),
    )
    save = time.monotonic() - rows.told
    # The first steps fill queues and caches.
    times, waits = ([row[name] for row in rows] for name in ("time", "data_wait"))
    some = len(rows) // 4
    return _Measured(
        image=(times[-1] - times[some]) / (len(times) - 1 - some) / size,
        wait=statistics.mean(waits[some + 1 :]),
        look=looked[-1],
        save=save,
        start=start + looked[0] - looked[-1],
        memory=_peak_memory(device),
        disk=_run_bytes(run, training.config.system.keep, plan.looks()),
    )


def _forecast(
    session: Session, measured: _Measured, free: tuple[int, int], on: str | None
) -> Forecast:
    """Scale what was measured to the whole run."""
    training, plan = session.training, session.training.plan
    step = measured.image * plan.batch_size
    steps, seconds = plan.steps, plan.budget
    if plan.budget:
        beside = plan.looks() * measured.look + plan.saves(seconds) * measured.save
        steps = max(1, int((seconds - beside) / step))
    else:
        seconds = steps * step + plan.looks() * measured.look
        seconds += plan.saves(seconds) * measured.save
    parameters = [p for p in training.task.module.parameters() if p.requires_grad]
    hours = (measured.start + seconds) / 3600
    there = None
    if on is not None:
        faster = 1e12 * HARDWARE[on] / _peak_flops(session.world.device, plan.precision)
        there = hours - steps * step * (1 - 1 / faster) / 3600
    return Forecast(
        hours=hours,
        images_per_s=1 / measured.image,
        memory_gb=measured.memory / 1e9,
        memory_free_gb=free[0] / 1e9,
        disk_gb=(measured.disk + steps * _ROW) / 1e9,
        disk_free_gb=free[1] / 1e9,
        steps=steps,
        epochs=steps / plan.epoch,
        batch_size=plan.batch_size,
        parameters=sum(p.numel() for p in parameters),
        flops=_step_flops(session) * steps,
        energy_kwh=_energy(session.world.device, hours),
        data_wait=measured.wait,
        step_s=step,
        look_s=measured.look,
        save_s=measured.save,
        start_s=measured.start,
        on=on,
        on_hours=there,
    )


def _rows(forecast: Forecast, images: str) -> list[tuple[str, str]]:
    """The lines of a forecast: name and value."""
    steps = count(forecast.steps, "step")
    rows = [
        ("length", f"{steps} of {forecast.batch_size} images, {forecast.epochs:.1f} epochs"),
        (
            "time",
            f"{duration(3600 * forecast.hours)}: {number(forecast.step_s, 2)} s a step, "
            f"{number(forecast.look_s, 2)} s a look, {number(forecast.save_s, 2)} s a checkpoint, "
            f"{number(forecast.start_s, 2)} s to begin",
        ),
        (
            "speed",
            f"{speed(forecast.images_per_s)} images/s, {percent(forecast.data_wait)} of the time "
            "waiting for images",
        ),
        ("memory", f"{forecast.memory_gb:.2f} GB at most, of {forecast.memory_free_gb:.1f} free"),
        ("disk", f"{forecast.disk_gb:.2f} GB at most, of {forecast.disk_free_gb:.1f} free"),
        (
            "compute",
            f"{number(forecast.flops, 3)} FLOPs, {forecast.parameters / 1e6:.1f} M parameters "
            "trained",
        ),
        (
            "energy",
            "not known: only a GPU tells its limit"
            if forecast.energy_kwh is None
            else f"{number(forecast.energy_kwh, 2)} kWh at most, by the GPU's limit",
        ),
    ]
    if forecast.on_hours is not None:
        rows.append(
            (
                f"on {forecast.on}",
                f"{duration(3600 * forecast.on_hours)}, where the steps are faster by as much as "
                f"its stated peak, {HARDWARE[forecast.on or '']:,} TFLOP/s, is higher than what a "
                "product of matrices reaches here, and images come fast enough",
            )
        )
    if forecast.data_wait > WAITING:
        rows.append(("warning", f"images come too slowly: simmim shard {images} --out shards/"))
    return rows


def _peak_memory(device: "torch.device") -> int:
    """Bytes that this process took at most, on the GPU, or where there is none, of the machine."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _run_bytes(run: Path, keep: int, looks: float) -> int:
    """Bytes of a run's folder at its largest, from one with a checkpoint and two looks."""

    def size(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    checkpoints, pictures = size(run / "checkpoints"), size(run / "pictures")
    # One more checkpoint is there while it is written.
    return round(size(run) + checkpoints * keep + pictures * (looks / 2 - 1))


def _step_flops(session: Session) -> int:
    """FLOPs of a step: the forward pass counted on two images, and twice that for the backward."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    training = session.training
    batch = next(training.stream.start(0)).head(2).to(session.world.device)
    # Of fused attention on a CPU no FLOPs are counted; of the plain one's products all.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        training.task.loss(batch)
    return 3 * counter.get_total_flops() * training.plan.batch_size // len(batch.t)


def _peak_flops(device: "torch.device", precision: str) -> float:
    """What a product of large matrices reaches here, in FLOP/s: the best of some."""
    import torch

    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    side = 8192 if device.type == "cuda" else 1024
    x = torch.ones(side, side, dtype=kinds[precision], device=device)
    times = []
    for _ in range(10):
        before = time.monotonic()
        (x @ x)[0, 0].item()
        times.append(time.monotonic() - before)
    return 2 * side**3 / min(times)


def _energy(device: "torch.device", hours: float) -> float | None:
    """Kilowatt hours at the limit of the GPU; None where none is told."""
    if device.type == "cuda":
        asked = ["nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
        with suppress(OSError, ValueError, IndexError):
            told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
            return float(told.splitlines()[device.index or 0]) / 1000 * hours
    return None
