"""How runs end that go wrong: what is said, what is kept, and that the advice works."""

import json
import re
import shlex
import shutil
import time
from pathlib import Path

import pytest
from commands import start

import simmim
from simmim.api.pretrain import closing_lines
from simmim.config.run import PretrainConfig
from simmim.config.saved import load as load_config
from simmim.errors import ConfigError
from simmim.runs.folder import write_config
from simmim.runs.overview import run_at

SMALL = [
    *("--model", "vit_tiny_patch16_224", "--image-size", "32", "--patch-size", "8"),
    *("--arguments", "depth=2,embed_dim=48,num_heads=3"),
    *("--batch-size", "10", "--seed", "3", "--threads", "1"),
    *("--decoder.depth", "1", "--decoder.width", "32", "--tensorboard", "false"),
]


def call(*words: object) -> tuple[int | None, str, str]:
    process = start(*words)
    out, err = process.communicate()
    return process.returncode, out, err


def advice(err: str) -> list[str]:
    """The words of the command that an error ends with, as a shell reads them."""
    program, *words = shlex.split(err.partition("Go on with: ")[2])
    assert program == "simmim", err
    return words


def steps_in(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in run.glob("checkpoints/step-*"))


def test_a_run_with_an_absurd_rate_fails_and_its_advice_works(photos: Path, tmp_path: Path):
    run = tmp_path / "a run"
    flags = [*SMALL, "--epochs", "8", "--picture-every", "0.5"]
    code, out, err = call("pretrain", photos, *flags, "--optim.lr", "1e30", "--out", run)
    assert code == 1, err
    assert "Traceback" not in err
    assert "steps 2 to 51 were skipped or far off their course" in err
    assert re.search(r"Weights have grown from \S+ to \S+: the rate is too high", err)
    assert "No checkpoint was saved before: it starts again from step 0." in err
    assert "warning: no checkpoint of step 8: training is off its course." in out
    assert steps_in(run) == []
    words = advice(err)
    assert words[:3] == ["pretrain", "--resume", str(run)]
    assert words[3] == "--optim.lr"
    failed = run_at(run)
    assert failed.state == "failed"
    assert err.startswith(f"simmim: {failed.why}")
    code, out, err = call(*words)
    assert code == 0, err
    config, resolved = load_config(run / "config.yaml")
    assert resolved is not None
    assert config.optim.lr == float(words[4])
    assert resolved.why["lr"] == "--optim.lr, in place of 1e+30 from step 0 on"
    assert steps_in(run)[-1] == resolved.steps == 80
    assert run_at(run).state == "finished"


def test_a_rate_may_be_changed_on_the_way_and_is_written_down(photos: Path, tmp_path: Path):
    run = tmp_path / "run"
    flags = [*SMALL, "--epochs", "2", "--picture-every", "0", "--optim.lr", "3e-3"]
    code, _, err = call("pretrain", photos, *flags, "--out", run)
    assert code == 0, err
    code, out, err = call("pretrain", "--resume", run, "--optim.lr", "1e-4", "--epochs", "4")
    assert code == 0, err
    assert "planned anew: 4 epochs (--epochs), planned anew at step 20; --optim.lr, in" in out
    assert "planned anew" in (run / "log.txt").read_text()
    config, resolved = load_config(run / "config.yaml")
    assert resolved is not None
    assert config.optim.lr == 1e-4
    (before,) = resolved.earlier
    assert (before.until, before.steps, before.lr) == (20, 20, 3e-3)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    peak = 1e-4 * (10 / 256) ** 0.5
    assert max(row["lr"] for row in rows[20:]) < peak
    assert max(row["lr"] for row in rows[:20]) > peak
    assert "It was planned anew after step 20" in (run / "report.html").read_text()
    # A budget is for what is still to come, and the same one again is one more.
    for begins in (40, None):
        steps = 0 if begins else load_config(run / "config.yaml")[1].steps  # type: ignore
        code, out, err = call("pretrain", "--resume", run, "--budget", "3s")
        assert code == 0, err
        assert "the steps for 3s were counted anew at step" in out
        assert "3s," not in out  # however often they were counted
        _, resolved = load_config(run / "config.yaml")
        assert resolved is not None
        assert resolved.steps == steps_in(run)[-1] > (begins or steps)
        assert (begins or steps) in [each.until for each in resolved.earlier]


def test_only_what_may_be_changed_in_a_run_is_taken(tmp_path: Path):
    write_config(tmp_path, PretrainConfig(data=("photos",)), None)
    with pytest.raises(ConfigError, match=r"^batch_size cannot be changed in a run\. What"):
        simmim.resume(tmp_path, batch_size=7)


@pytest.mark.parametrize("mount_point", [False, True])
def test_images_that_are_gone_as_a_whole_are_no_bad_images(
    photos: Path, tmp_path: Path, mount_point: bool
):
    data, run, away = tmp_path / "my photos", tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(photos, data)
    flags = [*SMALL, "--epochs", "3000", "--cache", "off", "--workers", "1"]
    process = start("pretrain", data, *flags, "--picture-every", "0", "--out", run)
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    data.rename(away)
    if mount_point:  # it stays when nothing is mounted any more
        data.mkdir()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert f"{data} is not there any more. Put it back; is a disk not mounted?" in err
    assert "--max-bad" not in err
    assert "Traceback" not in err
    assert not (run / "quarantine.jsonl").exists()
    (step,) = steps_in(run)
    assert step == json.loads(metrics.read_text().splitlines()[-1])["step"] >= 5
    # Back again, it goes on.
    if mount_point:
        data.rmdir()
    away.rename(data)
    words = advice(err)
    assert words == ["pretrain", "--resume", str(run)]
    code, out, err = call(*words, "--epochs", step // 10 + 2)
    assert code == 0, err
    assert f"going on from step {step}" in out


def closing(run: Path, rows: list[dict]) -> list[str]:
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return closing_lines(run, PretrainConfig(data=("my photos",)), run / "report.html")


def test_the_closing_lines_tell_what_is_not_a_number_from_nothing_learned(tmp_path: Path):
    learned = closing(tmp_path, [{"step": 400, "explained": 0.2}])
    assert learned[0] == "healthy: it explains 20 % of the hidden detail."
    nothing = closing(tmp_path, [{"step": 1, "explained": 0.2}, {"step": 2, "explained": 0.0}])
    assert nothing[0].startswith("under-trained: on images that it never trained on, its")
    assert nothing[1].startswith(f"  simmim pretrain --resume {tmp_path} --")
    lost = closing(tmp_path, [{"step": 1, "explained": 0.2}, {"step": 2, "explained": None}])
    assert lost[0].startswith("not measured: explained detail is not a number")
    assert "under-trained" not in "".join(lost)
    skipped = closing(tmp_path, [{"step": n, "explained": 0.2, "skipped": 1.0} for n in (1, 2)])
    assert skipped[0].startswith("diverged: 2 of 2 steps were skipped")


def test_every_path_in_the_closing_commands_can_be_pasted(tmp_path: Path):
    run = tmp_path / "it's a run; really"
    run.mkdir()
    lines = closing(run, [{"step": 1, "explained": -0.1}])
    commands = [line.strip() for line in lines if line.strip().startswith("simmim ")]
    assert len(commands) == 4
    assert all(str(run) in shlex.split(command) for command in commands)
