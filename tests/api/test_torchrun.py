"""Runs of two processes under torchrun, of which one is killed or stopped."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import Forked, pair
from safetensors.torch import load_file

from simmim.cli.main import main
from simmim.config.saved import load as load_config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")

FLAGS = [
    *("--model", "vit_tiny_patch16_224", "--image-size", "32", "--patch-size", "8"),
    *("--batch-size", "10", "--seed", "3", "--threads", "1", "--workers", "0"),
    *("--decoder.depth", "1", "--decoder.width", "32", "--optim.lr", "3e-3"),
    *("--picture-every", "0", "--tensorboard", "false"),
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@contextmanager
def torchrun(*words: object, flags: tuple[str, ...] = (), cwd: Path | None = None) -> Iterator:
    """Two processes, whose output goes to one pipe; none of them is left."""
    command = [*TORCHRUN, *flags, "-m", "simmim", *map(str, words)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd
    ) as process:
        try:
            yield process
        finally:
            for rank in (0, 1):
                with_rank(process.pid, rank, signal.SIGKILL)
            process.kill()


def with_rank(parent: int, rank: int, number: int) -> bool:
    """Send a signal to the process of a rank; whether there is one."""
    for entry in Path("/proc").iterdir():
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            own = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if entry.name.isdigit() and int(status[1]) == parent and b"RANK=%d" % rank in own:
            os.kill(int(entry.name), number)
            return True
    return False


def wait_for_step(run: Path, step: int, process: subprocess.Popen | Forked) -> None:
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not metrics.exists() or metrics.read_text().count("\n") < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("step-*"))
    return load_file(newest / "model.safetensors")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_other_with_its_name_and_the_way_on(
    photos: Path, tmp_path: Path, rank: int
):
    run = tmp_path / "my run"
    words = ["pretrain", photos, *FLAGS, "--epochs", "500", "--out", run]
    with pair(partial(main, [str(word) for word in words])) as both:
        wait_for_step(run, 5, both[rank])
        both[rank].kill()
        out, err = both[1 - rank].communicate(timeout=120)
        assert both[1 - rank].returncode == 1
    check_farewell(out + err, rank, run)


def test_a_killed_process_is_told_of_under_torchrun(photos: Path, tmp_path: Path):
    run = tmp_path / "my run"
    words = ["pretrain", photos, *FLAGS, "--epochs", "500", "--out", run]
    with torchrun(*words) as process:
        wait_for_step(run, 5, process)
        assert with_rank(process.pid, 0, signal.SIGKILL)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    check_farewell(out, 0, run)


def check_farewell(out: str, rank: int, run: Path) -> None:
    ours = [line for line in out.splitlines() if line.startswith("simmim: ")]
    assert len(ours) == 1, out
    assert f"process {rank} of 2 (counted from 0) has ended or hangs" in ours[0]
    assert "[rank" not in out  # no traceback but torchrun's own
    command = shlex.split(ours[0].partition("Go on with: ")[2])
    assert command[:4] == ["torchrun", "--nproc-per-node=2", "-m", "simmim"]
    assert command[4:] == ["pretrain", "--resume", str(run)]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_is_named_when_the_wait_is_over(photos: Path, tmp_path: Path, rank: int):
    run = tmp_path / "run"
    words = ["pretrain", photos, *FLAGS, "--epochs", "500", "--timeout-minutes", "0.1"]
    with torchrun(*words, "--out", run) as process:
        wait_for_step(run, 5, process)
        assert with_rank(process.pid, rank, signal.SIGSTOP)
        began = time.monotonic()
        assert process.stdout is not None
        said = next(line for line in process.stdout if line.startswith("simmim: "))
        assert f"process {rank} of 2 (counted from 0) has ended or hangs" in said
        assert 5 < time.monotonic() - began < 60
        with_rank(process.pid, rank, signal.SIGKILL)  # for which torchrun would wait longer
        process.communicate(timeout=120)
    assert process.returncode == 1


@pytest.mark.slow
def test_a_process_that_is_busy_longer_than_the_wait_is_waited_for(photos: Path, tmp_path: Path):
    """The first process alone looks at the held-out images, here for longer than the wait."""
    run = tmp_path / "run"
    words = ["pretrain", photos, *FLAGS, "--epochs", "3", "--timeout-minutes", "0.1"]
    script = tmp_path / "slow_look.py"
    script.write_text(
        "import sys, time\n"
        "from simmim.api import looks\n"
        "from simmim.cli.main import main\n"
        "looks.KnnLook.__call__ = lambda self, step: time.sleep(15) or {}\n"
        "sys.exit(main())\n"
    )
    command = [*TORCHRUN, str(script), *map(str, words), "--picture-every", "1", "--out", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_processes_that_torchrun_starts_anew_end_as_if_none_had_died(
    photos: Path, tmp_path: Path, named: bool
):
    whole = tmp_path / "whole"
    words = ["pretrain", photos, *FLAGS, "--epochs", "8"]
    with torchrun(*words, "--out", whole) as process:
        out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    run = tmp_path / "run"
    out = ["--out", run] if named else []
    with torchrun(*words, *out, flags=("--max-restarts=3",), cwd=tmp_path) as process:
        for step, rank in ((20, 1), (50, 0)):
            while not named and not list((tmp_path / "runs").glob("*")):
                time.sleep(0.1)
            run = run if named else next((tmp_path / "runs").iterdir())
            wait_for_step(run, step, process)
            assert with_rank(process.pid, rank, signal.SIGKILL)
        out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert len(re.findall("going on from step", out)) == 2
    assert named or len(list((tmp_path / "runs").iterdir())) == 1
    _, resolved = load_config(run / "config.yaml")
    assert resolved is not None
    a, b = weights_of(whole), weights_of(run)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
