"""Jobs for Slurm: the script that is written, run here with other programs in Slurm's place."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest
from commands import start

from simmim.cli.main import main
from simmim.errors import ConfigError
from simmim.runs.overview import run_at
from simmim.training.launch import leads, own_place, rank_from_environment

TINY = [
    *("--model", "vit_tiny_patch16_224", "--image-size", "32", "--patch-size", "16"),
    *("--arguments", "depth=1,embed_dim=24,num_heads=2", "--decoder.depth", "1"),
    *("--decoder.width", "16", "--decoder.heads", "2", "--batch-size", "10", "--workers", "0"),
    *("--threads", "1", "--tensorboard", "false", "--picture-every", "0", "--epochs", "12"),
]
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
echo $$ > task
SLURM_LOCALID=0 SLURM_STEP_NUM_TASKS=1 exec "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; echo another; else echo "$@" >> requeued; fi
"""


def put(folder: Path, **programs: str) -> dict[str, str]:
    """The environment of a job in which these programs are found first."""
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    slurm = {"SLURM_JOB_ID": "71", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_PROCID": "0"}
    return {**os.environ, **slurm, "PATH": f"{folder}:{os.environ['PATH']}"}


def begin(script: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(script)], env=environment, text=True, cwd="/",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def options_of(script: Path) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script.read_text(), re.MULTILINE))


def test_a_job_that_is_stopped_is_queued_again_and_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    words = ["launch", "slurm", "--gpus", "0", "--cpus", "1", "--"]
    assert main([*words, "pretrain", str(photos), *TINY, "--out", "the run"]) == 0
    script, run = tmp_path / "the run.sbatch", tmp_path / "the run"
    environment = put(tmp_path / "bin", srun=SRUN, scontrol=SCONTROL) | {"SLURM_NTASKS": "1"}
    with begin(script, environment) as job:
        try:
            rows = run / "metrics.jsonl"
            while not rows.exists() or rows.read_text().count("\n") < 3:
                assert job.poll() is None, job.communicate()
                time.sleep(0.02)
            os.kill(int((tmp_path / "task").read_text()), signal.SIGUSR1)
            out, _ = job.communicate(timeout=200)
        finally:
            job.kill()
    assert job.returncode == 75, out
    assert (tmp_path / "requeued").read_text() == "requeue 71\n"
    stopped = run_at(run)
    assert stopped.state == "stopped"
    assert stopped.steps == 120
    assert 3 <= stopped.saved < 120
    with begin(script, environment) as job:
        out, _ = job.communicate(timeout=300)
    assert job.returncode == 0, out
    assert f"going on from step {stopped.saved} of 120" in out
    assert run_at(run).state == "finished"
    assert (tmp_path / "requeued").read_text() == "requeue 71\n"


def test_processes_that_srun_starts_train_one_run(photos: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["pretrain", photos, *TINY, "--epochs", "0.5", "--out", tmp_path / "run"]
    step = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "SLURM_STEP_NUM_TASKS": "2"}
    both = [
        start(*words, **step, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in (0, 1)
    ]
    for process in both:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert run_at(tmp_path / "run").state == "finished"
    (state,) = (tmp_path / "run").glob("checkpoints/step-00000005/state.json")
    assert json.loads(state.read_text())["bits"]["processes"] == 2


@pytest.mark.parametrize(
    ("saves", "code", "requeued"),
    [(True, 75, True), (False, 75, False), (True, 1, False), (True, 0, False)],
)
def test_it_is_queued_again_where_it_was_stopped_after_a_checkpoint_alone(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saves: bool,
    code: int,
    requeued: bool,
):
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "slurm", "--", "pretrain", str(photos), "--out", "run"]) == 0
    save = "mkdir -p run/checkpoints/step-00000003\n" if saves else ""
    srun = f'#!/bin/bash\necho "$@" > said\n{save}exit {code}\n'
    environment = put(tmp_path / "bin", srun=srun, scontrol=SCONTROL)
    with begin(tmp_path / "run.sbatch", environment) as job:
        out, _ = job.communicate(timeout=60)
    assert job.returncode == code
    assert (tmp_path / "requeued").exists() == requeued
    assert ("nothing was saved in this attempt" in out) == (code == 75 and not requeued)
    assert f"simmim pretrain {photos} --out run" in (tmp_path / "said").read_text()
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "config.yaml").touch()
    with begin(tmp_path / "run.sbatch", environment) as job:
        job.communicate(timeout=60)
    assert "simmim pretrain --resume run" in (tmp_path / "said").read_text()


def test_the_script_asks_for_what_the_flags_say(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    own = [
        *("--nodes", "2", "--gpus", "4", "--cpus", "6", "--time", "90m", "--partition", "gpu"),
        *("--sbatch", "account=lab,mem=64G,exclusive=true", "--file", "job.sh"),
    ]
    words = ["finetune", str(photos), "--from", "none", "--batch-size", "32"]
    assert main(["launch", "slurm", *own, "--", *words]) == 0
    options = options_of(tmp_path / "job.sh")
    name = options.pop("job-name")
    assert re.fullmatch(r"\d{8}-\d{6}-finetune-vit_small_patch16_224", name)
    assert options == {
        "nodes": "2",
        "ntasks-per-node": "4",
        "cpus-per-task": "6",
        "gpus-per-node": "4",
        "time": "01:30:00",
        "requeue": "",
        "open-mode": "append",
        "signal": "USR1@300",
        "output": f"{name}-%j.out",
        "partition": "gpu",
        "account": "lab",
        "mem": "64G",
        "exclusive": "",
    }
    text = (tmp_path / "job.sh").read_text()
    assert f"--out runs/{name})" in text
    assert subprocess.run(["bash", "-n", "job.sh"], check=False).returncode == 0


def test_it_is_submitted_on_request_alone(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    words = ["launch", "slurm", "--submit", "--", "pretrain", str(photos), "--out"]
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert main([*words, "none"]) == 2
    assert "there is no sbatch here" in capsys.readouterr().err
    assert not (tmp_path / "none.sbatch").exists()
    sbatch = '#!/bin/bash\necho "Submitted batch job 71 of $1"\n'
    monkeypatch.setenv("PATH", put(tmp_path / "bin", sbatch=sbatch)["PATH"])
    assert main([*words, "run"]) == 0
    assert "Submitted batch job 71 of run.sbatch" in capsys.readouterr().out
    put(tmp_path / "bin", sbatch="#!/bin/bash\necho no such partition >&2\nexit 1\n")
    assert main([*words, "other"]) == 2
    assert "sbatch refused it: no such partition" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("launch", "simmim launch knows Slurm alone"),
        ("launch kubernetes -- pretrain PHOTOS", "simmim launch knows Slurm alone"),
        ("launch slurm", "which stands after --"),
        ("launch slurm -- embed RUN PHOTOS", "starts pretrain or finetune"),
        ("launch slurm -- pretrain", "no images given"),
        ("launch slurm -- pretrain nowhere", "there is no folder"),
        ("launch slurm -- pretrain PHOTOS --model vit_tny_patch16_224", "Did you mean vit_tiny"),
        ("launch slurm -- pretrain PHOTOS --out TAKEN", "is not empty"),
        ("launch slurm --gpus 3 -- pretrain PHOTOS --batch-size 8", "no multiple of the 3"),
        ("launch slurm --time soon -- pretrain PHOTOS", "is not a time"),
        ("launch slurm --gpus -1 -- pretrain PHOTOS", "--gpus"),
        ("launch slurm --file TAKEN -- pretrain PHOTOS", "exists and is not overwritten"),
    ],
)
def test_mistakes_are_told_before_the_job_waits(
    words: str,
    message: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a.txt").touch()
    words = words.replace("PHOTOS", str(photos)).replace("TAKEN", str(tmp_path / "taken"))
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


STEP = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0)),
        (STEP, (3, 8, 1)),
        (TORCHRUN, (2, 4, 2)),
        (STEP | TORCHRUN, (2, 4, 2)),  # torchrun, started by srun
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1, 0)),  # a job's own script
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}, (0, 1, 0)),
    ],
)
def test_the_place_of_a_process_is_told_by_torchrun_or_by_srun(
    variables: dict[str, str], expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
):
    for name in {*STEP, *TORCHRUN, "MASTER_ADDR"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert own_place() == expected
    assert leads() == (expected[0] == 0)
    if expected[1] > 1:
        with pytest.raises(ConfigError, match="simmim launch slurm"):
            rank_from_environment()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert rank_from_environment() == expected[:2]
