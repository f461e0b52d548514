"""`simmim plan` beside the runs that it tells of."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import simmim
from simmim.cli.main import main
from simmim.runs.record import read_run


def plan(folder: Path, *words: str) -> dict:
    file = folder / "plan.json"
    assert main(["plan", *words, "--seconds", "0.5", "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_what_a_run_takes_is_what_was_planned(
    tiny_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    words = [str(photos), *TINY, "--epochs", "0.5"]
    told = plan(tmp_path, *words, "--out", str(tmp_path / "run"))
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
    record = read_run(tiny_run)
    assert told["steps"] == record.step
    assert told["batch_size"] == 8
    model = simmim.load(tiny_run, whole=True)
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert told["parameters"] == weights
    masked = torch.zeros(1, 4, dtype=torch.bool)
    masked[:, :2] = True  # 40 % of four patches
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.loss(torch.zeros(1, 3, 32, 32), masked)
    assert told["flops"] == 3 * counter.get_total_flops() * 8 * told["steps"]
    # One more checkpoint is there while it is written.
    folder = sum(file.stat().st_size for file in tiny_run.rglob("*") if file.is_file())
    assert folder < 1e9 * told["disk_gb"] < 2.5 * folder
    assert 0.1 < told["memory_gb"] < told["memory_free_gb"]
    parts = told["start_s"] + told["steps"] * told["step_s"] + 10 * told["save_s"]
    assert 3600 * told["hours"] == pytest.approx(parts)
    said = capsys.readouterr().out
    assert f"{told['steps']} steps of 8 images" in said
    assert f"simmim pretrain {photos}" in said.split("next:")[1]


def test_a_budget_tells_how_many_steps_fit(photos: Path, tmp_path: Path):
    told = plan(tmp_path, str(photos), *TINY, "--budget", "2h", "--on", "h100")
    assert 3600 * told["hours"] == pytest.approx(7200 + told["start_s"])
    beside = 12 * told["save_s"]  # every ten minutes
    assert told["steps"] == int((7200 - beside) / told["step_s"])
    steps = told["steps"] * told["step_s"] / 3600
    assert told["hours"] - steps < told["on_hours"] < told["hours"] - 0.5 * steps


def test_fine_tuning_is_planned_too(tiny_run: Path, photos: Path, tmp_path: Path):
    words = ["--task", "classify", "--from", str(tiny_run), "--epochs", "3", "--batch-size", "8"]
    told = plan(tmp_path, str(photos), *words, "--workers", "0", "--threads", "1")
    assert told["epochs"] == pytest.approx(3, abs=0.2)
    assert told["look_s"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--on", "h10"], "h100"),
        (["--resume", "runs/x"], "leave --resume out"),
        (["--json", "plan.txt"], "must end in .json"),
        (["--mask.ratio", "1.5"], "mask ratio is"),
    ],
)
def test_what_cannot_be_planned(photos: Path, capsys: pytest.CaptureFixture, words, said: str):
    assert main(["plan", str(photos), *words]) == 2
    assert said in capsys.readouterr().err
