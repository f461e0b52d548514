"""Signals before the first step, and to a whole group of processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Forked, start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

SMALL = [
    *("--model", "vit_tiny_patch16_224", "--image-size", "32", "--patch-size", "8"),
    *("--batch-size", "10", "--seed", "3", "--threads", "1", "--workers", "2"),
    *("--decoder.depth", "1", "--decoder.width", "32", "--optim.lr", "3e-3"),
]
CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}


def start_python(*words: object) -> subprocess.Popen:
    """A command that has all to import, in a group of its own, as a batch system starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "simmim", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that started the tests in the background has SIGINT ignored in all its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_until(process: subprocess.Popen | Forked, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def loaded(process: subprocess.Popen, library: str) -> bool:
    """Whether a process has begun to load a library."""
    return library in Path(f"/proc/{process.pid}/maps").read_text()


def end(process: subprocess.Popen | Forked, number: int) -> tuple[str, str]:
    """Send the signal to the whole group; returns what was said."""
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == CODES[signal.Signals(number)], err
    assert "Traceback" not in out + err
    return out, err


@pytest.mark.parametrize(
    ("number", "when"),
    [
        (signal.SIGTERM, "while torch is imported"),
        (signal.SIGUSR1, "after it"),
        (signal.SIGTERM, "in the rehearsal"),
    ],
)
def test_a_run_stopped_before_its_first_step_is_gone_on_with(
    photos: Path, tmp_path: Path, number: int, when: str
):
    run = tmp_path / "a run"
    begin = start if when == "in the rehearsal" else start_python
    process = begin("pretrain", photos, *SMALL, "--epochs", "1", "--out", run)
    wait_until(process, (run / "config.yaml").exists)
    if when == "while torch is imported":
        wait_until(process, lambda: loaded(process, "libtorch_cpu"))
    elif when == "after it":
        wait_until(process, lambda: loaded(process, "simplejpeg"))
    else:
        wait_until(process, lambda: children_of(process.pid) != [])
    out, err = end(process, number)
    assert f"go on with: simmim pretrain --resume '{run}'" in out
    name = signal.Signals(number).name
    assert err == f"simmim: stopped by {name} before or after its training; nothing is lost.\n"
    assert not (run / "data.json").exists()  # it went no further
    done = start("pretrain", "--resume", run)
    out, err = done.communicate(timeout=240)
    assert done.returncode == 0, err


def children_of(parent: int) -> list[int]:
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(pid) for pid in found.split()]


def test_ctrl_c_before_the_first_step_leaves_nothing(photos: Path, tmp_path: Path):
    run = tmp_path / "run"
    process = start_python("pretrain", photos, *SMALL, "--epochs", "1", "--out", run)
    wait_until(process, (run / "config.yaml").exists)
    _, err = end(process, signal.SIGINT)
    assert err == "simmim: stopped before anything was started.\n"
    assert not run.exists()


def test_a_signal_while_images_are_listed_says_how_to_go_on(tmp_path: Path):
    run = tmp_path / "run"
    many = tmp_path / "many"
    for folder in range(300):  # listing takes a while
        (many / f"{folder}").mkdir(parents=True)
        for file in range(300):
            (many / f"{folder}" / f"{file}.jpg").touch()
    process = start("pretrain", many, *SMALL, "--epochs", "1", "--out", run)
    index = Path(os.environ["SIMMIM_CACHE"])
    before = set(index.rglob("*"))
    wait_until(process, lambda: set(index.rglob("*")) != before)
    out, err = end(process, signal.SIGTERM)
    assert err == "simmim: stopped by SIGTERM before or after its training; nothing is lost.\n"
    assert f"go on with: simmim pretrain --resume {run}" in out
    assert (run / "config.yaml").exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_the_whole_group_may_get_the_signal_in_training(photos: Path, tmp_path: Path, number: int):
    run = tmp_path / "run"
    process = start("pretrain", photos, *SMALL, "--epochs", "1000", "--out", run)
    metrics = run / "metrics.jsonl"
    wait_until(process, lambda: metrics.exists() and metrics.stat().st_size > 0)
    out, err = end(process, number)
    assert f"go on with: simmim pretrain --resume {run}" in out
    assert f"stopped by {signal.Signals(number).name} after step" in err
    assert list(run.glob("checkpoints/step-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_fine_tuning_that_is_stopped_is_saved_and_gone_on_with(
    photos: Path, tmp_path: Path, number: int
):
    out = tmp_path / "out"
    flags = ["--arguments", "depth=2", "--epochs", "500", "--batch-size", "8", "--threads", "1"]
    words = ["--from", "none", *SMALL[:6], *flags, "--out", out]
    process = start("finetune", photos, *words)
    metrics = out / "metrics.jsonl"
    wait_until(process, lambda: metrics.exists() and metrics.stat().st_size > 0)
    said, err = end(process, number)
    assert f"stopped by {signal.Signals(number).name} after step" in err
    assert f"go on with: simmim finetune --resume {out}" in said
    (checkpoint,) = out.glob("checkpoints/step-*")
    assert len(metrics.read_text().splitlines()) == int(checkpoint.name[5:])
    other = start("finetune", photos, *words, "--seed", "1")
    _, err = other.communicate(timeout=60)
    assert other.returncode == 2, err
    assert f"{out} holds another run. Go on with it by `simmim finetune --resume {out}`" in err
