"""What only a GPU can tell: do runs resume to the same bits there, and how fast do they train?

    make gpu [ARGS="--only speed,loader --minutes 8 --out benchmarks/results/gpu.json"]
    make gpu PYTHON=python3 WHEELS=folder     on a machine without network and without .venv

- machine: GPU, driver, versions
- verify: `simmim verify`
- resume: short runs of each recipe, killed after a checkpoint and resumed, with runs that were not
- repeat: the gradients of one batch, computed three times, at the recipes' own sizes
- float32: the losses of a dozen steps, with the CPU's
- memory: what the rule for the micro-batch expects, and the peak
- speed: whole steps in bf16 beside a plain loop of the MAE design, compiled and not; the share of
  the peak is the model's FLOPs (forward times three) over what a product of matrices reaches
- loader: images/s from shards by number of workers, and training fed by them

The steps are made in order of importance, each within a limit of seconds, and every figure is in
the JSON file as soon as it is there; a step that fails leaves its traceback, and the next one runs.
Without a GPU the same steps run on the CPU at a tiny size, which says that the script works and
nothing else.
"""

import argparse
import contextlib
import functools
import gc
import importlib.metadata
import importlib.util
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
NEEDS = ["torch", "timm", "torchvision", "numpy", "safetensors", "tyro", "pydantic", "yaml", "rich"]
NEEDS += ["simplejpeg", "PIL", "tifffile", "matplotlib", "jinja2", "tensorboard", "pyarrow"]
NEEDS += ["sklearn"]
PACKAGES = {"yaml": "PyYAML", "PIL": "pillow", "sklearn": "scikit-learn"}
"""Where a package is named otherwise than its module."""
DETERMINISTIC = "deterministic kernels"
AS_IT_IS = "as it is"
MODES = (AS_IT_IS, DETERMINISTIC)


def check_imports() -> None:
    """Say which versions there are, or end with what is missing."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"gpu.py: {sys.executable} lacks {', '.join(missing)}; see make help for WHEELS.")
    names = [PACKAGES.get(name, name) for name in NEEDS]
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in names), flush=True)


def name_checkout(folder: Path) -> None:
    """Let this process and its children find this checkout, and its version, uninstalled."""
    paths = [str(REPOSITORY)]
    try:
        importlib.metadata.version("simmim")
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
        facts = folder / f"simmim-{project['version']}.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: simmim\nVersion: {project['version']}\n"
        )
        paths.append(str(folder))
    sys.path[:0] = paths
    given = [os.environ[name] for name in ["PYTHONPATH"] if os.environ.get(name)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *given])


check_imports()
PLACE = tempfile.TemporaryDirectory(prefix="simmim-gpu-")
name_checkout(Path(PLACE.name))
os.environ["SIMMIM_CACHE"] = os.environ["XDG_CACHE_HOME"] = str(Path(PLACE.name, "cache"))
# What CUDA's matrix products need to be deterministic; on Hopper it is the default size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch  # noqa: E402
from loader import make  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from speed import PIXELS, PlainMae, plain  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from simmim.api.shard import run_shard  # noqa: E402
from simmim.config.augment import AugmentConfig  # noqa: E402
from simmim.config.data import ShardConfig  # noqa: E402
from simmim.config.decoder import TransformerDecoder  # noqa: E402
from simmim.config.recipes import RECIPES  # noqa: E402
from simmim.config.run import PretrainConfig, SystemConfig  # noqa: E402
from simmim.config.saved import dump  # noqa: E402
from simmim.data import demo  # noqa: E402
from simmim.data.find import find_images  # noqa: E402
from simmim.data.loader import Batch, ImageSet, TrainStream  # noqa: E402
from simmim.errors import ResourceError  # noqa: E402
from simmim.models.mim import build_model  # noqa: E402
from simmim.training import resolve  # noqa: E402
from simmim.training.optim import build_optimizer  # noqa: E402
from simmim.training.pretrain import PretrainTask  # noqa: E402
from simmim.training.resources import available_memory, cores  # noqa: E402
from simmim.training.run import environment  # noqa: E402
from simmim.training.step import Stepper, autocast  # noqa: E402
from simmim.training.world import World, pick_device  # noqa: E402
from simmim.verify.runs import distance, unlike  # noqa: E402

SMALL = {
    "simmim": {"model": "vit_tiny_patch16_224", "arguments": {"depth": 4}},
    "simmim-paper": {"arguments": {"embed_dim": 192, "num_heads": 3, "depth": 4}},
    "simmim-paper-swin": {
        "model": "swin_tiny_patch4_window7_224",
        "arguments": {"embed_dim": 48, "depths": [1, 1, 2, 1], "window_size": 6},
    },
    "mae": {"model": "vit_tiny_patch16_224", "arguments": {"depth": 4}},
}
"""Encoders that train in seconds; patches and, on a GPU, tokens as in the large ones."""
PLAIN = {
    "vit_base_patch16_224": {"width": 768, "depth": 12, "heads": 12},
    "vit_large_patch16_224": {"width": 1024, "depth": 24, "heads": 16},
    "vit_tiny_patch16_224": {"width": 192, "depth": 2, "heads": 3},
}
"""The same encoders in the plain loop."""


@dataclass(frozen=True)
class Sizes:
    """How much is done; the defaults are a GPU's.

    Attributes:
        small: Sides of the images of the small models, of Swin and of the others.
        window: Of Swin.
        runs: Recipe and precision of the runs that are killed.
        steps: Of each run.
        batch: Images per step of a run.
        repeated: Recipe and precision whose gradients are computed twice.
        full: Whether those are of the recipes' own models.
        memory: Recipe and encoder whose memory is measured.
        share: Images per step that are offered as a micro-batch.
        speed: Recipe, encoder and batch that are timed.
        rounds: Of timing.
        burst: Steps of one side in a round.
        matrix: Side of the matrices whose product is the peak.
        photos: For the loader.
        workers: Of the loader.
        seconds: That the loader is timed for.
        backend: Of torch.compile.
    """

    small: tuple[int, int] = (192, 256)
    window: int = 6
    runs: tuple[tuple[str, str], ...] = tuple((r, p) for r in RECIPES for p in ("bf16", "fp16"))
    steps: int = 40
    batch: int = 32
    repeated: tuple[tuple[str, str], ...] = tuple(
        (r, p) for r in RECIPES for p in ("bf16", "fp16", "fp32")
    )
    full: bool = True
    memory: tuple[tuple[str, str], ...] = (
        ("simmim", "vit_small_patch16_224"),
        ("simmim", "vit_base_patch16_224"),
        ("mae", "vit_base_patch16_224"),
        ("simmim", "vit_large_patch16_224"),
    )
    share: int = 4096
    speed: tuple[tuple[str, str, int], ...] = (
        ("mae", "vit_base_patch16_224", 256),
        ("simmim", "vit_base_patch16_224", 256),
        ("mae", "vit_large_patch16_224", 256),
        ("simmim", "vit_large_patch16_224", 256),
    )
    rounds: int = 5
    burst: int = 4
    matrix: int = 8192
    photos: int = 256
    workers: tuple[int, ...] = (1, 4, 8, 14)
    seconds: float = 4.0
    backend: str = "inductor"


TINY = Sizes(
    small=(64, 64),
    window=2,
    runs=(("simmim", "bf16"),),
    steps=20,
    batch=8,
    repeated=(("mae", "bf16"),),
    full=False,
    memory=(("simmim", "vit_tiny_patch16_224"),),
    share=4,
    speed=(("mae", "vit_tiny_patch16_224", 2),),
    rounds=2,
    burst=1,
    matrix=128,
    photos=8,
    workers=(1, 2),
    seconds=0.2,
    backend="aot_eager",
)


class OutOfTime(BaseException):
    """A step reached its limit; nothing that handles errors may swallow it."""


@dataclass
class Part:
    """A step's figures, on the disk and on the screen as soon as they are there."""

    name: str
    facts: dict[str, Any]
    save: Callable[[], None]
    end: float = 0.0
    processes: list[subprocess.Popen] = field(default_factory=list)

    def left(self) -> float:
        return self.end - time.monotonic()

    def add(self, what: str, shown: str, **facts: Any) -> None:
        """Keep ``facts`` under the name ``what``; ``shown`` stands in the table."""
        self.facts.setdefault("figures", {})[what] = {"shown": shown, **facts}
        print(f"  {what:48} {shown}", flush=True)
        self.save()

    def start(self, words: Sequence[str], log: Path, **environment: str) -> subprocess.Popen:
        """Start Python; what it says goes into ``log``."""
        with log.open("a") as file:
            process = subprocess.Popen(
                [sys.executable, *words],
                env={**os.environ, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=PLACE.name,
            )
        self.processes.append(process)
        return process

    def finish(self, process: subprocess.Popen, log: Path, allowed: Sequence[int] = (0,)) -> None:
        """Wait for it; raise what it said where it failed."""
        code = process.wait(max(1.0, self.left()))
        if code not in allowed:
            raise RuntimeError(f"exit status {code}: …{log.read_text()[-1500:]}")


@dataclass(frozen=True)
class Setting:
    """Where and at what size."""

    device: torch.device
    sizes: Sizes
    folder: Path

    @property
    def world(self) -> World:
        return World(0, 1, self.device)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @functools.cached_property
    def photos(self) -> Path:
        """341 of the demo's photos."""
        folder = self.folder / "demo"
        folder.mkdir()
        demo.unpack(folder)
        return folder / demo.PHOTOS / "val"

    def wait(self) -> None:
        """For the device to have done what it was told."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def small(self, recipe: str, **changes: Any) -> PretrainConfig:
        """The recipe with a small encoder."""
        config = RECIPES[recipe]()
        swin = recipe == "simmim-paper-swin"
        side = self.sizes.small[0 if swin else 1]
        given = SMALL[recipe]
        arguments = given["arguments"] | ({"window_size": self.sizes.window} if swin else {})
        encoder = {**given, "arguments": arguments, "image_size": (side, side)}
        if isinstance(config.decoder, TransformerDecoder):
            config = replace(config, decoder=replace(config.decoder, depth=2, width=128, heads=4))
        return replace(config, encoder=replace(config.encoder, **encoder), **changes)

    def large(self, recipe: str, model: str) -> PretrainConfig:
        """The recipe with a published encoder at 224 pixels; without a GPU, two blocks of it."""
        config = RECIPES[recipe]()
        side = 224 if self.on_gpu else self.sizes.small[1]
        encoder = replace(config.encoder, model=model, image_size=(side, side))
        if not self.on_gpu:
            encoder = replace(encoder, arguments={"depth": 2})
        return replace(config, encoder=encoder)

    def task(self, config: PretrainConfig, device: torch.device | None = None) -> PretrainTask:
        size = config.encoder.image_size
        assert size is not None
        torch.manual_seed(0)
        model = build_model(config, PIXELS, size).to(device or self.device).train()
        return PretrainTask(model, config)

    def batch(self, task: PretrainTask, rows: int) -> Batch:
        """Random bytes as the loader yields them: channels last, pinned where there is a GPU."""
        shape = (rows, *task.model.encoder.image_size, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        if self.on_gpu:
            images = images.pin_memory()
        return Batch(images.permute(0, 3, 1, 2), torch.arange(rows))


def stepper(
    task: PretrainTask, config: PretrainConfig, rows: int, precision: Any, world: World
) -> Stepper:
    return Stepper(
        task,
        build_optimizer(task.module, task.roles(), config.optim),
        batch_size=rows,
        precision=precision,
        clip=config.optim.clip,
        seed=config.seed,
        world=world,
    )


@contextlib.contextmanager
def deterministic(on: bool = True) -> Iterator[None]:  # noqa: FBT001, FBT002
    """Kernels that give the same bits each time, where there are such."""
    torch.use_deterministic_algorithms(on, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=False)


def machine(part: Part, setting: Setting) -> None:
    """GPU, driver, versions, cores."""
    facts = environment()
    facts["cores"] = cores()
    facts["memory_free"] = available_memory(setting.device)
    if setting.on_gpu:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["cuda"] = torch.version.cuda
        with contextlib.suppress(OSError):
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            facts["driver"] = done.stdout.strip()
    for name, value in facts.items():
        part.add(name, str(value), value=value)


def verify(part: Part, setting: Setting) -> None:
    """``simmim verify``, its certificate kept whole."""
    log, out = setting.folder / "verify.log", setting.folder / "certificate.json"
    words = ["-m", "simmim", "verify", "--out", str(out)]
    # Exit status 1: a check failed, and the certificate says which.
    part.finish(part.start(words, log), log, allowed=(0, 1))
    found = json.loads(out.read_text())
    part.add("verdict", found["verdict"], seconds=found["seconds"])
    for check in found["checks"]:
        if check["status"] != "passed" or "GPU" in check["name"]:
            part.add(check["name"], f"{check['status']}: {check['measured']}")
    part.facts["checks"] = found["checks"]


def resume(part: Part, setting: Setting) -> None:
    """Runs that are killed after a checkpoint and resumed, beside runs that are not."""
    modes = MODES if setting.on_gpu else (AS_IT_IS,)
    cases = [(*case, mode) for mode in modes for case in setting.sizes.runs]
    photos = setting.photos
    pool = ThreadPoolExecutor(max(2, cores() - 2))
    try:
        runs: list[tuple[str, Future, Future]] = []
        for recipe, precision, mode in cases:
            name = f"{recipe} {precision}, {mode}"
            folder = setting.folder / "runs" / name.replace(" ", "-").replace(",", "")
            folder.mkdir(parents=True)
            file = folder / "config.yaml"
            file.write_text(dump(run_config(setting, recipe, precision)))
            words = [*command(mode), str(photos), "--config", str(file)]
            whole = pool.submit(whole_run, part, words, folder)
            cut = pool.submit(cut_run, part, words, folder, mode, setting.sizes.steps)
            runs.append((name, whole, cut))
        for name, whole, cut in runs:
            compare(part, name, whole, cut)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def run_config(setting: Setting, recipe: str, precision: Any) -> PretrainConfig:
    sizes = setting.sizes
    return setting.small(
        recipe,
        precision=precision,
        holdout=21,
        epochs=sizes.steps * sizes.batch / 320,
        batch_size=sizes.batch,
        micro_batch=sizes.batch // 2,
        threads=1,
        cache="off",
        system=SystemConfig(workers=1, tensorboard=False, picture_every=0.5),
    )


def command(mode: str) -> list[str]:
    if mode == AS_IT_IS:
        return ["-m", "simmim", "pretrain"]
    code = (
        "import sys, torch; torch.use_deterministic_algorithms(True, warn_only=True); "
        "torch.utils.deterministic.fill_uninitialized_memory = False; "
        "from simmim.cli.main import main; sys.exit(main())"
    )
    return ["-c", code, "pretrain"]


def whole_run(part: Part, words: list[str], folder: Path) -> Path:
    log = folder / "whole.log"
    part.finish(part.start([*words, "--out", str(folder / "whole")], log, OMP_NUM_THREADS="1"), log)
    return newest(folder / "whole")


def cut_run(part: Part, words: list[str], folder: Path, mode: str, steps: int) -> tuple[int, Path]:
    """Kill a run after a third of it, and resume; returns the step, and the last checkpoint."""
    log, run = folder / "cut.log", folder / "cut"
    process = part.start([*words, "--out", str(run)], log, OMP_NUM_THREADS="1")
    while newest(run) is None or step_of(newest(run)) < steps // 3:
        if process.poll() is not None or part.left() < 1:
            raise RuntimeError(f"it ended before it was killed: …{log.read_text()[-1500:]}")
        time.sleep(0.005)
    process.kill()
    process.wait()
    step = step_of(newest(run))
    if step >= steps:
        raise RuntimeError("it was done before it was killed")
    resumed = part.start([*command(mode), "--resume", str(run)], log, OMP_NUM_THREADS="1")
    part.finish(resumed, log)
    return step, newest(run)


def newest(run: Path) -> Any:
    return max((run / "checkpoints").glob("step-*"), default=None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def compare(part: Part, name: str, whole: Future, cut: Future) -> None:
    try:
        end, (killed_at, resumed) = whole.result(), cut.result()
    except Exception as error:  # the other runs can still tell something
        part.add(name, f"FAILED: {str(error).splitlines()[-1]}", error=str(error))
        return
    one, other = (load_file(folder / "model.safetensors") for folder in (end, resumed))
    differ, values = unlike(one, other), sum(value.numel() for value in one.values())
    most = max(float((one[key].double() - other[key].double()).abs().max()) for key in one)
    shown = f"every bit equal, killed after step {killed_at}"
    if differ or step_of(end) != step_of(resumed):
        shown = f"{differ:,} of {values:,} weights differ, by {most:.2g} at most"
    part.add(
        name,
        shown,
        differ=differ,
        values=values,
        largest=most,
        relative=distance([other], one),
        killed_at=killed_at,
        steps=[step_of(end), step_of(resumed)],
    )


def repeat(part: Part, setting: Setting) -> None:
    """Gradients of one batch, computed three times: which kernels give other bits each time?"""
    for recipe in dict.fromkeys(recipe for recipe, _ in setting.sizes.repeated):
        config = setting.small(recipe)
        if setting.sizes.full:
            model = replace(RECIPES[recipe]().encoder, image_size=None)
            side = 192 if recipe == "simmim-paper-swin" else 224
            model = replace(model, image_size=(side, side))
            if recipe == "simmim":
                model = replace(model, model="vit_base_patch16_224")
            config = replace(RECIPES[recipe](), encoder=model)
        task = setting.task(config)
        batch = setting.batch(task, 16).to(setting.device)
        for precision, mode in itertools.product(precisions(setting, recipe), MODES):
            with warnings.catch_warnings(record=True) as said, deterministic(mode != AS_IT_IS):
                warnings.simplefilter("always")
                first, *others = [gradients(task, batch, precision) for _ in range(3)]
            unequal = [n for n in first if any((first[n] != o[n]).any() for o in others)]
            texts = sorted({str(w.message).split(". ")[0][:200] for w in said})
            shown = "the same bits" if not unequal else f"{len(unequal)} of {len(first)} differ"
            name = f"{recipe} {precision}, {mode}"
            part.add(name, shown, parameters=unequal[:60], warnings=texts)


def precisions(setting: Setting, recipe: str) -> list[str]:
    return [precision for name, precision in setting.sizes.repeated if name == recipe]


def gradients(task: PretrainTask, batch: Batch, precision: Any) -> dict[str, torch.Tensor]:
    task.module.zero_grad()
    torch.manual_seed(1)
    with autocast(batch.images.device, precision):
        loss = task.loss(batch)["loss"]
    (loss * 1024 if precision == "fp16" else loss).backward()
    return {n: p.grad.clone() for n, p in task.module.named_parameters() if p.grad is not None}


def float32(part: Part, setting: Setting) -> None:
    """The losses of a dozen steps in float32, with the CPU's."""
    size = 12 if setting.on_gpu else 2
    threads = torch.get_num_threads()
    torch.set_num_threads(cores())
    part.add("torch's default", torch.get_float32_matmul_precision())
    for recipe in RECIPES:
        config = setting.small(recipe)
        config = replace(config, encoder=replace(config.encoder, drop_path=0.0))
        right = losses(setting, config, torch.device("cpu"), size)
        for name in ("highest", "high"):
            torch.set_float32_matmul_precision(name)
            try:
                here = losses(setting, config, setting.device, size)
            finally:
                torch.set_float32_matmul_precision("highest")
            away = max(abs(a / b - 1) for a, b in zip(here, right, strict=True))
            shown = f"{away:.1e} relative at most, {size} steps"
            label = "TF32 off" if name == "highest" else "TF32 on"
            part.add(f"{recipe}, {label}", shown, away=away, losses=here, cpu=right)
    torch.set_num_threads(threads)


def losses(
    setting: Setting, config: PretrainConfig, device: torch.device, steps: int
) -> list[float]:
    rows = setting.sizes.batch // 2
    config = replace(config, optim=replace(config.optim, lr=config.optim.base(192)))
    task = setting.task(config, device)
    made = stepper(task, config, rows, "fp32", World(0, 1, device))
    assert config.encoder.image_size is not None
    stream = TrainStream(
        ImageSet(find_images(setting.photos), PIXELS),
        augment=config.augment,
        size=config.encoder.image_size,
        seed=0,
        batch_size=rows,
        micro_batch=rows,
        workers=0,
    )
    batches = stream.start(0)
    try:
        return [made.step(batches, rate=config.optim.peak(256))["loss"] for _ in range(steps)]
    finally:
        stream.close()


def memory(part: Part, setting: Setting) -> None:
    """What the rule takes a micro-batch to need, and what it takes."""
    for recipe, model in setting.sizes.memory:
        config = setting.large(recipe, model)
        task = setting.task(config)
        per_image = resolve.activation_bytes(task, setting.batch(task, 2), setting.device, "bf16")
        share = setting.sizes.share
        try:
            rows, why = resolve.pick_micro_batch(task, share, per_image, setting.world)
        except ResourceError as error:
            part.add(f"{recipe} {model}", str(error))
            continue
        facts: dict[str, Any] = {"per_image": per_image, "rows": rows, "why": why}
        weights = sum(p.nbytes for p in task.module.parameters())
        facts["estimate"] = 4 * weights + int(1.25 * per_image * rows)
        fits, shown = True, f"{rows} images, {per_image / 1e6:.1f} MB each"
        try:
            batch = setting.batch(task, rows)
            facts["measured"] = [
                peak_memory(setting, task, config, first_rows(batch, count))
                for count in sorted({rows // 4, rows})
            ]
        except torch.OutOfMemoryError as error:
            fits, facts["error"] = False, str(error)
        if setting.on_gpu and fits:
            few, many = facts["measured"][0], facts["measured"][-1]
            slope = (many["allocated"] - few["allocated"]) / max(1, many["rows"] - few["rows"])
            facts |= {"measured_per_image": slope, "over_rule": slope / (1.25 * per_image)}
            shown += (
                f"; rule {facts['estimate'] / 1e9:.1f} GB, measured {many['allocated'] / 1e9:.1f}, "
                f"reserved {many['reserved'] / 1e9:.1f}; per image {slope / 1e6:.1f} MB"
            )
        part.add(f"{recipe} {model}", shown if fits else f"{shown}: DOES NOT FIT", **facts)
        del task
        free(setting)


def peak_memory(
    setting: Setting, task: PretrainTask, config: PretrainConfig, batch: Batch
) -> dict[str, int]:
    """Bytes at the peak of two whole steps."""
    rows = len(batch.t)
    made = stepper(task, config, rows, "bf16", setting.world)
    free(setting)
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        made.step(iter([batch]), rate=0.0)
    if not setting.on_gpu:
        return {"rows": rows}
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"rows": rows, "allocated": allocated, "reserved": reserved}


def first_rows(batch: Batch, rows: int) -> Batch:
    return Batch(batch.images[:rows], batch.t[:rows])


def free(setting: Setting) -> None:
    gc.collect()
    if setting.on_gpu:
        torch.cuda.empty_cache()


def speed(part: Part, setting: Setting) -> None:
    """Whole training steps beside a plain loop, then compiled, and what share of the peak."""
    torch.set_num_threads(cores())
    peak = matrix_product(setting)
    part.add("bf16 matrix product", f"{peak / 1e12:.0f} TFLOP/s", flops_per_s=peak)
    for measure in (beside_plain, compiled):
        for recipe, model, batch in setting.sizes.speed:
            free(setting)
            measure(part, Subject(setting, recipe, model, batch, peak))


def matrix_product(setting: Setting) -> float:
    """FLOP/s of a bf16 product of square matrices of random numbers, the median of 20."""
    side = setting.sizes.matrix
    a, b = (torch.randn(side, side, device=setting.device, dtype=torch.bfloat16) for _ in "ab")
    seconds = timed(setting, {"product": lambda: a @ b}, rounds=20, burst=1)["product"]
    return 2 * side**3 / seconds


def timed(
    setting: Setting, sides: dict[str, Callable[[], object]], *, rounds: int, burst: int
) -> dict[str, float]:
    """Median seconds of each; the sides take turns, and warm up before."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        for _ in range(3):
            side()
    for _ in range(rounds):
        for name, side in sides.items():
            setting.wait()
            began = time.perf_counter()
            for _ in range(burst):
                side()
            setting.wait()
            times[name].append((time.perf_counter() - began) / burst)
    return {name: statistics.median(of) for name, of in times.items()}


def forward_flops(run: Callable[[], object]) -> int:
    """FLOPs of matrix products, attention's among them, counted on tensors without memory."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):
        run()
    return counter.get_total_flops()


class Subject:
    """A model whose training steps are timed, in bf16, on bytes that are on the host."""

    def __init__(
        self, setting: Setting, recipe: str, model: str, batch_size: int, peak: float
    ) -> None:
        self.setting, self.model, self.peak = setting, model, peak
        self.name = f"{recipe} {model.removesuffix('_patch16_224')}"
        self.config = setting.large(recipe, model)
        self.task = setting.task(self.config)
        two = setting.batch(self.task, 2)
        per_image = resolve.activation_bytes(self.task, two, setting.device, "bf16")
        self.rows, _ = resolve.pick_micro_batch(self.task, batch_size, per_image, setting.world)
        self.batch = setting.batch(self.task, self.rows)
        self.stepper = stepper(self.task, self.config, self.rows, "bf16", setting.world)
        self.one = first_rows(two, 1).to(setting.device)
        self.flops = {"simmim": 3 * forward_flops(lambda: self.task.loss(self.one))}

    def step(self) -> None:
        self.stepper.step(iter([self.batch]), rate=1e-5)

    def time(self, part: Part, sides: dict[str, Callable[[], object]], **facts: Any) -> None:
        """Time the sides in turns, and keep what each gave."""
        sizes = self.setting.sizes
        seconds = timed(self.setting, sides, rounds=sizes.rounds, burst=sizes.burst)
        for side, each in seconds.items():
            work, rate = self.flops.get(side, self.flops["simmim"]), self.rows / each
            share = work * rate / self.peak
            part.add(
                f"{self.name}, {side}",
                f"{rate:,.0f} images/s, {share:.0%} of the peak, batch {self.rows}",
                images_per_s=rate,
                share=share,
                flops_per_image=work,
                batch=self.rows,
                seconds=each,
                **facts,
            )


def beside_plain(part: Part, subject: Subject) -> None:
    config, device = subject.config, subject.setting.device
    assert config.encoder.image_size is not None
    size = config.encoder.image_size[0]
    torch.manual_seed(0)
    other = PlainMae(config.mask.ratio, fused=True, size=size, **PLAIN[subject.model]).to(device)
    subject.flops["plain loop"] = 3 * forward_flops(lambda: other(subject.one.images.float()))
    plain_step = plain(other, subject.batch.images, bf16=True)
    subject.time(part, {"simmim": subject.step, "plain loop": plain_step})
    with warnings.catch_warnings(), deterministic():
        warnings.simplefilter("ignore")
        subject.time(part, {f"simmim, {DETERMINISTIC}": subject.step})


def compiled(part: Part, subject: Subject) -> None:
    """By block, which compiles each kind of block once, and as one."""
    setting, task = subject.setting, subject.task
    backend = setting.sizes.backend
    blocks = [*task.model.encoder.layers, *task.model.decoder.layers]
    for side, reserve in (("blocks compiled", 25.0), ("compiled", 60.0)):
        if setting.on_gpu and part.left() < reserve:
            part.add(f"{subject.name}, {side}", "left out: too little time")
            continue
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        began = time.perf_counter()
        if side == "compiled":
            task.call = torch.compile(task.module, dynamic=False, backend=backend)
        else:
            for block in blocks:
                block.compile(dynamic=False, backend=backend)
        subject.step()
        setting.wait()
        seconds, counters = time.perf_counter() - began, torch._dynamo.utils.counters
        subject.time(
            part,
            {f"simmim, {side}": subject.step},
            compile_seconds=seconds,
            graphs=counters["stats"]["unique_graphs"],
            graph_breaks=dict(counters["graph_break"]),
        )
        for block in blocks:
            block._compiled_call_impl = None


def loader(part: Part, setting: Setting) -> None:
    """Images/s from shards by number of workers, and a run of ViT-B that waits for them."""
    sizes = setting.sizes
    photos, out = setting.folder / "large", setting.folder / "shards"
    make(photos, sizes.photos, 2, 96)
    run_shard(ShardConfig(data=(str(photos),), out=out, workers=cores()))
    images = ImageSet(find_images(out), PIXELS)
    recipe, model, _ = sizes.speed[0]
    config = setting.large(recipe, model)
    assert config.encoder.image_size is not None
    rows = 128 if setting.on_gpu else 4
    for workers in sizes.workers:
        stream = stream_of(images, config.encoder.image_size, rows, workers)
        batches = stream.start(0)
        rate = rate_of(setting, lambda batches=batches: len(next(batches).t), 4)
        stream.close()
        part.add(f"{workers} workers", f"{rate:,.0f} images/s", images_per_s=rate)
    task = setting.task(config)
    made = stepper(task, config, rows, "bf16", setting.world)
    stream = stream_of(images, config.encoder.image_size, rows, max(sizes.workers[:3]))
    batches = stream.start(0)

    def step() -> int:
        made.step(batches, rate=1e-5)
        return rows

    rate = rate_of(setting, step, 4)
    stream.close()
    part.add(
        f"{recipe} {model} trained from {max(sizes.workers[:3])} workers",
        f"{rate:,.0f} images/s",
        images_per_s=rate,
    )


def stream_of(images: ImageSet, size: tuple[int, int], rows: int, workers: int) -> TrainStream:
    return TrainStream(
        images,
        augment=AugmentConfig(),
        size=size,
        seed=0,
        batch_size=rows,
        micro_batch=rows,
        workers=workers,
    )


def rate_of(setting: Setting, piece: Callable[[], int], warm: int) -> float:
    """Images/s over some seconds; what was made ahead while waiting at first is left out."""
    for _ in range(warm):
        piece()
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < setting.sizes.seconds or not images:
        images += piece()
    return images / (time.perf_counter() - began)


STEPS: dict[str, tuple[Callable[[Part, Setting], None], float]] = {
    "machine": (machine, 20),
    "verify": (verify, 100),
    "resume": (resume, 130),
    "repeat": (repeat, 50),
    "float32": (float32, 40),
    "memory": (memory, 40),
    "speed": (speed, 220),
    "loader": (loader, 60),
}
"""Each with the seconds that it may take; the loader's are kept free while others run."""


def run_step(part: Part, setting: Setting, step: Callable[[Part, Setting], None]) -> None:
    """Make a step; what goes wrong is kept, and the next one can run."""
    began = time.monotonic()
    print(f"\n{part.name}", flush=True)
    if part.left() <= 0:
        part.facts["error"] = "left out: the time was up"
        part.save()
        return
    signal.setitimer(signal.ITIMER_REAL, part.left())
    try:
        step(part, setting)
    except OutOfTime:
        part.facts["error"] = f"stopped at its limit, after {time.monotonic() - began:.0f} s"
    except Exception:  # the other steps can still tell something
        part.facts["error"] = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for process in part.processes:
            process.kill()
        part.facts["seconds"] = round(time.monotonic() - began, 1)
        if part.facts.get("error"):
            print(f"  FAILED: {part.facts['error'].strip().splitlines()[-1]}", flush=True)
        part.save()
    with contextlib.suppress(Exception):
        free(setting)


def table(found: dict[str, Any]) -> str:
    lines = []
    for name, facts in found.items():
        lines.append(f"{name} ({facts.get('seconds', 0):.0f} s)")
        for what, figure in facts.get("figures", {}).items():
            lines.append(f"  {what:58} {figure['shown']}")
        if facts.get("error"):
            lines.append(f"  FAILED: {facts['error'].strip().splitlines()[-1]}")
    return "\n".join(lines)


def out_of_time(*_: object) -> None:
    raise OutOfTime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(STEPS), help="steps, with commas between")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/results/gpu.json")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - STEPS.keys():
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    end = time.monotonic() + options.minutes * 60
    device = pick_device()
    sizes = Sizes() if device.type == "cuda" else TINY
    device = device if device.type == "cuda" else torch.device("cpu")
    setting = Setting(device, sizes, Path(PLACE.name))
    signal.signal(signal.SIGALRM, out_of_time)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found: dict[str, Any] = {}

    def save() -> None:
        temporary = options.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(found, indent=1, default=str) + "\n")
        temporary.replace(options.out)

    try:
        for name in chosen:
            step, limit = STEPS[name]
            kept = STEPS["loader"][1] if "loader" in chosen and name != "loader" else 0
            part = Part(name, found.setdefault(name, {}), save)
            part.end = min(time.monotonic() + limit, end - kept)
            run_step(part, setting, step)
    except KeyboardInterrupt:
        print("\nstopped", flush=True)
    finally:
        print(f"\n{table(found)}\n\n{options.out}", flush=True)
    return int(any("error" in facts for facts in found.values()))


if __name__ == "__main__":
    sys.exit(main())
