"""``simmim bench RUN``: what the deployed encoder costs, and what the decoder would beside it."""

import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simmim.config.data import BenchConfig
from simmim.errors import ConfigError
from simmim.interop.checkpoint import ModelCheckpoint
from simmim.interop.load import encoder_from, model_from
from simmim.interop.open import WEIGHT_FILES, describe, open_source
from simmim.machine import has_bfloat16
from simmim.models.encoder import Encoder
from simmim.report import terminal
from simmim.report.pictures import write_whole
from simmim.report.words import count, number, percent, speed
from simmim.runs.encoder import CARD
from simmim.runs.folder import CONFIG
from simmim.tensors.batch import Batch
from simmim.training.resolve import module_bytes
from simmim.training.step import autocast, looking
from simmim.training.world import pick_device

BATCHES = (1, 8, 32, 128)
"""Images of a forward pass."""
PASSES = 3
"""Forward passes that are timed at least."""
LONGEST = 10.0
"""A batch is left out where it would take so many times ``seconds``."""
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Cost:
    """A forward pass of one size.

    Attributes:
        precision: The arithmetic.
        batch: Images.
        seconds: Of a pass, the median.
        memory: Bytes: on a GPU the most that was allocated; else weights, images, and the tensors
            that were alive at once.
    """

    precision: Precision
    batch: int
    seconds: float
    memory: int

    @property
    def rate(self) -> float:
        """Images/s."""
        return self.batch / self.seconds


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are alive at once, views of others and weights aside."""

    def __init__(self, weights: nn.Module) -> None:
        super().__init__()
        self.most = 0
        self._weights = {StorageWeakRef(p.untyped_storage()) for p in weights.parameters()}
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See torch; what a call returns is counted for as long as anything holds it."""
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._alive[StorageWeakRef(storage)] = storage.nbytes()
        self._alive = {
            ref: size
            for ref, size in self._alive.items()
            if not ref.expired() and ref not in self._weights
        }
        self.most = max(self.most, sum(self._alive.values()))
        return found


def names_encoder(data: Sequence[str]) -> bool:
    """Whether what was named are weights, and not images."""
    if len(data) != 1:
        return False
    path = Path(data[0])
    if data[0].startswith(("timm:", "hf:")) or (path.is_file() and path.suffix in WEIGHTS):
        return True
    exported = (path / "config.json").is_file() and any((path / n).is_file() for n in WEIGHT_FILES)
    return exported or any((path / name).is_file() for name in (CARD, CONFIG, "state.json"))


def run_encoder_bench(config: BenchConfig) -> dict[str, Any]:
    """Time the encoder of a run for each batch size and precision; print a table.

    Returns:
        The figures, as they go into the JSON file.

    Raises:
        CheckpointError: See ``open_source``.
        ConfigError: A flag that is for images, or a size that does not fit the encoder.
    """
    side, taken = config.image_size, ("data", "seconds", "image_size", "out")
    if config != BenchConfig(**{name: getattr(config, name) for name in taken}):
        raise ConfigError(
            f"{config.data[0]} is an encoder, of which --image-size, --seconds and --out can be "
            "said; the other flags are for images as DATA."
        )
    console, device = Console(), pick_device()
    found = open_source(config.data[0], whole=True)
    encoder = encoder_from(found).to(device)
    size = encoder.image_size if side is None else (side, side)
    terminal.facts(console, [*describe(found), *_setting(encoder, size, device)])
    stage = terminal.Stage(console)
    try:
        costs, left = _encoder_costs(encoder, size, config.seconds, device, stage)
        decoder = None
        if found.pretraining is not None:
            stage.update(0.95, "the decoder")
            decoder = _decoder_cost(found, costs, config.seconds, device)
    finally:
        stage.close()
    terminal.done([*_table(costs), *left, *_decoder_lines(decoder)], console)
    facts = {
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "image_size": list(size),
        "weights": module_bytes(encoder)[0],
        "encoder": [{**asdict(cost), "images_per_s": cost.rate} for cost in costs],
        "decoder": decoder,
    }
    if config.out is not None:
        write_whole(config.out, json.dumps(facts, indent=1).encode())
    return facts


def _encoder_costs(
    encoder: Encoder,
    size: tuple[int, int],
    seconds: float,
    device: torch.device,
    stage: terminal.Stage,
) -> tuple[list[Cost], list[str]]:
    """All that was measured, and what was left out, in words."""
    costs, left = [], []
    precisions, missing = _precisions(device)
    options: dict[str, Any] = {"seconds": seconds, "device": device}
    with looking(encoder):
        for place, (precision, batch) in enumerate(itertools.product(precisions, BATCHES)):
            stage.update(
                0.9 * place / (len(precisions) * len(BATCHES)), f"{precision}, batches of {batch}"
            )
            before = costs[-1] if costs and costs[-1].precision == precision else None
            expected = before.seconds * batch / before.batch if before else 0.0
            if batch > 1 and (before is None or expected > LONGEST * seconds):
                slow = f"a pass takes about {number(expected, 2)} s"
                why = slow if before else "smaller ones failed"
                left.append(f"not measured: {precision}, batches of {batch}, as {why}")
                continue
            try:
                costs.append(_cost(encoder, batch, size, precision=precision, **options))
            except torch.OutOfMemoryError:
                left.append(f"not measured: {precision}, batches of {batch}: too little memory")
    return costs, left + missing


def _cost(
    encoder: Encoder,
    batch: int,
    size: tuple[int, int],
    *,
    precision: Precision,
    seconds: float,
    device: torch.device,
) -> Cost:
    images = torch.randn(batch, encoder.channels, *size, device=device)

    def run() -> torch.Tensor:
        return encoder.features(images).patches.mean(1)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with autocast(device, precision), Alive(encoder) as alive:
        run()
    memory = module_bytes(encoder)[0] + images.nbytes + alive.most
    taken = _seconds(run, precision, seconds, device)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    return Cost(precision, batch, taken, memory)


def _seconds(
    run: Callable[[], object], precision: Precision, seconds: float, device: torch.device
) -> float:
    """The median time of a call, after one that is not counted."""
    times: list[float] = []
    with autocast(device, precision):
        run()
        while len(times) < PASSES or sum(times) < seconds:
            _wait(device)
            began = time.perf_counter()
            run()
            _wait(device)
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def _decoder_cost(
    found: ModelCheckpoint, costs: Sequence[Cost], seconds: float, device: torch.device
) -> dict[str, Any]:
    """What the decoder takes for as many images as the encoder does best with, with masks."""
    model = model_from(found).to(device)
    best = max(costs, key=lambda cost: cost.rate)
    height, width = model.encoder.image_size
    shape = (best.batch, model.encoder.channels, height, width)
    batch = Batch(torch.zeros(shape, device=device), torch.arange(best.batch, device=device))
    with looking(model):
        mask = model.draw(batch)
        with autocast(device, best.precision):
            features = model.encode(batch.images, mask)
        taken = _seconds(lambda: model.decoder(features, mask), best.precision, seconds, device)
    return {
        "precision": best.precision,
        "batch": best.batch,
        "seconds": taken,
        "share_of_the_encoder": taken / best.seconds,
        "weights": module_bytes(model.decoder)[0],
        "masked": mask.count / mask.masked.shape[1],
    }


def _precisions(device: torch.device) -> tuple[list[Precision], list[str]]:
    """What is measured on a device, and what is not, in words."""
    if device.type == "cuda":
        return (["fp32", "bf16", "fp16"] if has_bfloat16(device) else ["fp32", "fp16"]), []
    if has_bfloat16(device):
        return ["fp32", "bf16"], []
    return ["fp32"], [f"not measured: bf16, which this {device.type.upper()} has no arithmetic for"]


def _setting(
    encoder: Encoder, size: tuple[int, int], device: torch.device
) -> list[tuple[str, str]]:
    where = _device_name(device)
    threads = f", {count(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else ""
    images = f"{encoder.channels} × {size[0]} × {size[1]}, random values"
    weights = f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} M"
    return [("device", where + threads), ("images", images), ("encoder", f"{weights} weights")]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _table(costs: Sequence[Cost]) -> list[str]:
    rows = [
        f"{cost.precision:>9}  {cost.batch:>5}  {number(1e3 * cost.seconds, 3):>10} ms  "
        f"{speed(cost.rate):>10}  {cost.memory / 1e6:>9,.0f} MB"
        for cost in costs
    ]
    return ["precision  batch      a batch       images/s        memory", *rows]


def _decoder_lines(decoder: dict[str, Any] | None) -> list[str]:
    if decoder is None:
        return ["decoder  none in these weights"]
    return [
        f"decoder  not deployed; it would take {number(1e3 * decoder['seconds'], 3)} ms beside a "
        f"batch of {decoder['batch']} in {decoder['precision']} with {percent(decoder['masked'])} "
        f"masked, {percent(decoder['share_of_the_encoder'])} of the encoder's time, and "
        f"{decoder['weights'] / 1e6:,.1f} MB of weights"
    ]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
