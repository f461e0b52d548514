"""The steps of gpu.py that ask whether results are right."""

import contextlib
import itertools
import json
import subprocess
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_setting import AS_IT_IS, MODES, Part, Setting, deterministic, stepper
from safetensors.torch import load_file
from speed import PIXELS

from simmim.config.recipes import RECIPES
from simmim.config.run import PretrainConfig, SystemConfig
from simmim.config.saved import dump
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import TrainStream
from simmim.data.sources.find import find_images
from simmim.machine import available_memory, cores
from simmim.runs.folder import environment
from simmim.tasks.pretrain import PretrainTask
from simmim.tensors.batch import Batch
from simmim.training.step import autocast
from simmim.training.world import World
from simmim.verify.runs import distance, unlike


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


def waits(part: Part, setting: Setting) -> None:
    """Where a step waits for the GPU, told by torch."""
    rows = setting.sizes.batch if setting.on_gpu else 2
    for recipe in RECIPES:
        config = setting.small(recipe)
        task = setting.task(config)
        for precision in ("bf16", "fp16") if setting.on_gpu else ("bf16",):
            made = stepper(task, config, rows, precision, setting.world)
            batch = setting.batch(task, rows)
            made.step(iter([batch]), rate=1e-5)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                if setting.on_gpu:
                    torch.cuda.set_sync_debug_mode("warn")
                values = [made.begin(iter([batch]), rate=1e-5) for _ in range(2)]
                if setting.on_gpu:
                    torch.cuda.set_sync_debug_mode("default")
            loss = values[-1].read()["loss"]
            places = sorted(
                {f"{w.filename}:{w.lineno}" for w in said if "synchron" in str(w.message)}
            )
            shown = f"waits at {', '.join(places)}" if places else "never waits"
            part.add(f"{recipe} {precision}", shown, places=places, loss=loss)


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
