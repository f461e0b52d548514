"""The script for a GPU runs to its end without one, at a tiny size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def run(folder: Path, *words: str) -> tuple[subprocess.CompletedProcess, dict]:
    out = folder / "gpu.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out), *words],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    return done, json.loads(out.read_text())


@pytest.mark.slow
def test_the_gpu_script_measures_at_a_tiny_size(tmp_path: Path) -> None:
    done, found = run(tmp_path, "--only", "machine,repeat,memory,speed,loader")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert list(found) == ["machine", "repeat", "memory", "speed", "loader"]
    assert not [name for name, facts in found.items() if "error" in facts]
    speed = found["speed"]["figures"]
    sides = ["simmim", "simmim with Muon", "plain loop", "simmim, deterministic kernels"]
    sides += ["simmim, blocks compiled", "simmim, compiled"]
    assert list(speed) == ["bf16 matrix product", *(f"mae vit_tiny, {side}" for side in sides)]
    assert all(facts["images_per_s"] > 0 for name, facts in speed.items() if "vit" in name)
    assert speed["mae vit_tiny, simmim, compiled"]["graph_breaks"] == {}
    # The decoder predicts masked patches alone, and its last block updates no others.
    ours, plain = (speed[f"mae vit_tiny, {side}"]["flops_per_image"] for side in sides[:3:2])
    assert 0.8 * plain < ours < plain
    assert found["repeat"]["figures"]["mae bf16, as it is"]["parameters"] == []
    assert found["loader"]["figures"]["2 workers"]["images_per_s"] > 0
    assert "mae vit_tiny, plain loop" in done.stdout.split("machine (")[1]  # the table at the end


def test_steps_that_cannot_end_in_time_say_so(tmp_path: Path) -> None:
    done, found = run(tmp_path, "--only", "verify,machine", "--minutes", "0.15")
    assert done.returncode == 1
    # Left out already, where loading torch took all of the nine seconds.
    assert found["verify"]["error"].startswith(("stopped at its limit", "left out"))
    assert found["machine"]["error"] == "left out: the time was up"
    assert done.stdout.count("FAILED") == 3


@pytest.mark.slow
def test_the_gpu_script_kills_resumes_and_verifies(tmp_path: Path) -> None:
    done, found = run(tmp_path, "--only", "verify,resume,waits,float32")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    resumed = found["resume"]["figures"]["simmim bf16, as it is"]
    assert resumed["differ"] == 0
    assert all(each["loss"] > 0 for each in found["waits"]["figures"].values())
    assert 0 < resumed["killed_at"] < resumed["steps"][0] == resumed["steps"][1]
    assert found["verify"]["checks"]
    assert max(f.get("away", 0) for f in found["float32"]["figures"].values()) < 1e-5
