"""Real commands that meet each other in one folder, and what is left of those that were stopped."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import commands
import pytest
from commands import Forked

SMALL = [
    *("--model", "vit_tiny_patch16_224", "--image-size", "32", "--patch-size", "8"),
    *("--batch-size", "10", "--threads", "1", "--workers", "1", "--picture-every", "0"),
]
TINY = [*SMALL, "--arguments", "embed_dim=12,depth=1", "--decoder.depth", "1"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """Start a command in an empty folder."""
    (tmp_path / "here").mkdir()
    with ExitStack() as stack:

        def begin(*words: object) -> Forked:
            process = commands.start(*words, cwd=tmp_path / "here")
            stack.callback(process.kill)
            return process

        yield begin


def end(process: Forked) -> tuple[int | None, str, str]:
    out, err = process.communicate()
    assert "Traceback" not in err
    return process.returncode, out, err


def wait_for(process: Forked, there: Callable[[], object]) -> None:
    deadline = time.monotonic() + 200
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_run_has_one_writer_and_a_killed_one_is_not_in_the_way(
    photos: Path, tmp_path: Path, start: Callable[..., Forked]
):
    run = tmp_path / "run"
    command = ("pretrain", photos, *TINY, "--epochs", 20_000, "--save-minutes", "0.01")
    first = start(*command, "--out", run)
    wait_for(first, run.exists)
    code, _, said = end(start(*command, "--out", run))  # before or after its first step
    assert code == 2
    assert f"in use by simmim pretrain, process {first.pid} on" in said or "--resume" in said
    wait_for(first, lambda: list(run.glob("checkpoints/step-*")))
    others = [start("pretrain", "--resume", run) for _ in range(2)]
    for code, _, said in map(end, others):
        assert code == 2
        assert f"in use by simmim pretrain, process {first.pid} on" in said
    assert first.poll() is None
    first.kill()
    step = max(int(path.name[5:]) for path in run.glob("checkpoints/step-*"))
    code, out, said = end(start("pretrain", "--resume", run, "--epochs", step // 10 + 1))
    assert code == 0, said
    assert f"going on from step {step:,} of" in out


def test_ctrl_c_while_a_run_is_prepared_leaves_the_runs_beside_it(
    photos: Path, tmp_path: Path, start: Callable[..., Forked]
):
    process = start("pretrain", photos, *TINY, "--epochs", 20_000)
    runs = tmp_path / "here" / "runs"
    wait_for(process, lambda: list(runs.glob("*/config.yaml")))
    (runs / "other").mkdir()
    (runs / "other" / "encoder.json").touch()
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == 130
    assert (runs / "other" / "encoder.json").exists()


@pytest.mark.parametrize("stage", ["config.yaml", "images.json"])
def test_a_run_that_was_killed_before_its_first_step_is_taken_up_by_the_same_command(
    photos: Path, tmp_path: Path, start: Callable[..., Forked], stage: str
):
    run = tmp_path / "run"
    command = ("pretrain", photos, *TINY, "--epochs", 20, "--out", run)
    process = start(*command)
    wait_for(process, (run / stage).exists)
    process.kill()
    code, _, said = end(start(*command, "--seed", 7))
    assert code == 2
    assert "holds a run with other settings" in said
    code, _, said = end(start(*command))
    assert code == 0, said
    assert (run / "encoder.safetensors").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 200


def test_two_finetunes_that_start_together_get_a_folder_each(
    photos: Path, tmp_path: Path, start: Callable[..., Forked]
):
    command = (
        *("finetune", photos, "--from", "none", "--model", "vit_tiny_patch16_224"),
        *("--image-size", "32", "--epochs", "0.5", "--batch-size", "16", "--threads", "1"),
        *("--workers", "1"),
    )
    started = [start(*command) for _ in range(2)]
    assert [code for code, _, _ in map(end, started)] == [0, 0]
    runs = list((tmp_path / "here" / "runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        names = {path.name for path in run.iterdir()}
        assert names >= {"classifier.safetensors", "predictions.csv", "config.yaml"}
        steps = (run / "metrics.jsonl").read_text().splitlines()
        assert len(steps) == len(set(steps))


def test_a_folder_that_cannot_be_made_is_told_before_anything_starts(
    photos: Path, tmp_path: Path, start: Callable[..., Forked]
):
    (tmp_path / "here" / "runs").touch()
    tuned = ("finetune", photos, "--from", "none", "--model", "vit_tiny_patch16_224")
    for command in ((*tuned, "--image-size", "32"), ("pretrain", photos, *TINY)):
        code, _, said = end(start(*command))
        assert code == 2
        assert "runs" in said
        assert "cannot be written" in said
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["runs"]
