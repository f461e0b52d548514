"""``simmim runs``: how each run in a folder stands, where two differ, and which is the best."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simmim.cli.main import main
from simmim.config.saved import load
from simmim.runs.folder import write_config
from simmim.runs.lock import Lock
from simmim.runs.overview import Figure, run_at, runs_below

Run = Callable[..., Path]


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Run:
    """Copies the finished run, with other rows or another length."""

    def make(name: str, *rows: dict[str, Any], steps: int | None = None, **settings: Any) -> Path:
        folder = tmp_path / "runs" / name
        shutil.copytree(tiny_run, folder)
        config, resolved = load(folder / "config.yaml")
        assert resolved is not None
        changed = replace(resolved, steps=steps or resolved.steps)
        write_config(folder, replace(config, **settings), changed)
        if rows:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "metrics.jsonl").write_text(text)
        return folder

    return make


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def cut_all_checkpoints(folder: Path) -> None:
    for file in folder.glob("checkpoints/*/model.safetensors"):
        cut(file)


HARM: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "nothing": (lambda folder: None, "finished", ""),
    "checkpoints deleted": (lambda f: shutil.rmtree(f / "checkpoints"), "finished", ""),
    "no results": (lambda f: (f / "report.html").unlink(), "stopped", "its results were written"),
    "a failure": (
        lambda f: (f / "log.txt").open("a").write("failed: the disk is full.\n"),
        "failed",
        "the disk is full.",
    ),
    "gone on after a failure": (
        lambda f: (f / "log.txt").open("a").write("failed: no.\ngoing on from step 3 of 7\n"),
        "finished",
        "",
    ),
    "config.yaml changed": (
        lambda f: (f / "config.yaml").write_text(
            (f / "config.yaml").read_text().replace("seed: 0", "seed: 1")
        ),
        "damaged",
        "config.yaml is damaged or was changed by hand",
    ),
    "config.yaml gone": (lambda f: (f / "config.yaml").unlink(), "damaged", "is missing"),
    "config.yaml empty": (lambda f: (f / "config.yaml").write_text(""), "damaged", "be read"),
    "config.yaml no text": (
        lambda f: (f / "config.yaml").write_bytes(b"\xff\xfe\x00"),
        "damaged",
        "not text in UTF-8",
    ),
    "checkpoints cut": (cut_all_checkpoints, "damaged", "every checkpoint is damaged"),
    "checkpoints without state": (
        lambda f: [each.unlink() for each in f.glob("checkpoints/*/state.json")],
        "damaged",
        "every checkpoint is damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_how_a_run_stands_is_told_from_its_files(run: Run, harm: str):
    folder = run("one")
    work, state, why = HARM[harm]
    work(folder)
    found = run_at(folder)
    assert (found.state, why in found.why) == (state, True)


def test_a_run_that_is_not_done_says_how_it_goes_on(run: Run, capsys: pytest.CaptureFixture[str]):
    folder = run("one two", steps=1000)
    assert main(["runs", str(folder.parent)]) == 0
    out = capsys.readouterr().out
    assert "stopped  7/1,000" in out
    assert f"go on with: simmim pretrain --resume '{folder}'" in out
    shutil.rmtree(folder / "checkpoints")
    (folder / "encoder.json").unlink()
    assert run_at(folder).why == "before its first checkpoint"


def test_one_that_is_written_is_running_even_if_it_is_damaged(run: Run):
    folder = run("one")
    cut(folder / "config.yaml")
    with Lock(folder, "simmim pretrain"):
        found = run_at(folder)
        assert found.state == "running"
        assert f"simmim pretrain, process {os.getpid()}" in found.why
    assert run_at(folder).state == "damaged"
    with Lock(folder, "simmim pretrain"):  # whoever asked has left the lock free
        pass


def test_a_damaged_checkpoint_before_whole_ones_is_a_remark(run: Run):
    folder = run("one")
    newest = max(folder.glob("checkpoints/step-*"))
    shutil.copytree(newest, newest.with_name("step-00000009"))
    found = run_at(folder)
    assert (found.state, found.saved) == ("finished", 7)
    assert "step-00000009 is the checkpoint of step 7, renamed" in "".join(found.remarks)


def test_figures_and_time_are_those_of_all_rows(run: Run):
    folder = run(
        "one",
        {"step": 1, "loss": 2.0, "time": 5.0},
        {"step": 2, "loss": 1.0, "time": 10.0, "explained": 0.4, "knn": 0.5},
        {"step": 3, "loss": 1.0, "time": 2.0, "explained": 0.6},  # after a resume
        {"step": 4, "loss": 1.0, "time": 4.5, "explained": None, "knn": 0.25, "holdout_loss": 3.0},
        {"step": 5, "loss": 1.0, "time": 1e-5, "explained": 0.5, "holdout_loss": 4.0},
    )
    found = run_at(folder)
    assert (found.step, found.steps, found.main) == (5, 7, "explained")
    assert found.seconds == pytest.approx(14.50001)
    assert found.figures == {
        "explained": Figure(0.6, 0.5),
        "knn": Figure(0.5, 0.25),
        "holdout_loss": Figure(3.0, 4.0),
    }
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "explained": 0.9, "knn"\n{"step": 7, "los')
    found = run_at(folder)
    assert (found.step, found.figures["explained"]) == (5, Figure(0.6, 0.5))
    assert found.remarks == ["metrics.jsonl: 1 of 5 looks left out, damaged."]


def test_folders_of_runs_are_searched_and_runs_are_not(run: Run, tmp_path: Path):
    older, newer = run("sweep/a"), run("b")
    os.utime(older / "metrics.jsonl", (1, 1))
    shutil.copytree(newer, newer / "pictures" / "no-run")
    (tmp_path / "runs" / "again").symlink_to(newer)
    for name in ("study", ".hidden", "photos"):
        (tmp_path / "runs" / name / "deep").mkdir(parents=True)
    (tmp_path / "runs" / "photos" / "config.yaml").write_text("of another program")
    found = runs_below(tmp_path / "runs")
    names = [each.folder.name for each in found.runs]
    assert names in (["b", "a"], ["again", "a"])
    assert {*found.others} - {"again", "b"} == {"photos", "study"}
    alone = runs_below(newer)
    assert [each.folder for each in alone.runs] == [newer]
    assert list(alone.others) == []


def test_json_has_the_same_and_nothing_else_is_printed(
    run: Run, capsys: pytest.CaptureFixture[str]
):
    folder = run("one", {"step": 3, "time": 2.0, "explained": 0.4}, steps=9)
    assert main(["runs", str(folder.parent), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    (found,) = facts["runs"]
    assert found["folder"] == str(folder)
    assert (found["task"], found["recipe"]) == ("pretrain", "simmim")
    assert (found["state"], found["step"], found["saved"], found["steps"]) == ("stopped", 3, 7, 9)
    assert found["figures"] == {"explained": {"best": 0.4, "last": 0.4}}
    assert found["resume"] == f"simmim pretrain --resume {folder}"


def test_hundreds_of_runs_are_told_at_once_and_without_torch(run: Run, tmp_path: Path):
    one = run("0", *({"step": i, "time": float(i), "loss": 1.0} for i in range(1, 1000)))
    for number in range(1, 100):
        shutil.copytree(one, one.with_name(str(number)), copy_function=os.link)
    began = time.process_time()
    assert len(runs_below(tmp_path / "runs").runs) == 100
    assert time.process_time() - began < 1.5  # 0.4 s on a quiet core
    code = "import sys; from simmim.cli.main import main; main(); print(*sys.modules)"
    words = [sys.executable, "-c", code, "runs", str(tmp_path / "runs")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "PIL", "pydantic"} & {*done.stdout.split()}


def test_the_best_is_of_one_task_and_the_same_images(run: Run, capsys: pytest.CaptureFixture[str]):
    look = {"step": 7, "time": 1.0}
    run("a", {"step": 1, "explained": 0.9, "time": 0.5}, {**look, "explained": 0.3, "knn": 0.9})
    run("b", {**look, "explained": 0.4, "knn": 0.8, "holdout_loss": 2.0})
    run("c", {**look, "explained": 0.1, "knn": 0.7, "holdout_loss": 1.0}, data=("other",))
    run("without", look)
    cut(run("broken", {**look, "explained": 0.99}) / "config.yaml")
    folder = run("d").parent
    (folder / "d" / "encoder.json").unlink()

    def best(*words: str) -> dict[str, tuple[str, int]]:
        assert main(["runs", "best", str(folder), "--json", *words]) == 0
        said = json.loads(capsys.readouterr().out)["best"]
        return {Path(each["data"][0]).name: (Path(each["run"]).name, each["of"]) for each in said}

    images = Path(load(folder / "a" / "config.yaml")[0].data[0]).name
    assert best() == {images: ("b", 2), "other": ("c", 1)}
    assert best("--by", "knn") == {images: ("a", 2), "other": ("c", 1)}
    assert best("--by", "holdout_loss") == {images: ("b", 1), "other": ("c", 1)}
    assert main(["runs", "best", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"{folder / 'b'}, explained 40.0 % at its last look, the best of 2 runs" in out
    assert f"simmim finetune LABELLED_PHOTOS --from {folder / 'b'}" in out
    assert f"left out: 1 run damaged, such as {folder / 'broken'}" in out
    assert "without a figure" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("runs nowhere", "there is no folder nowhere"),
        ("runs best EMPTY", "there is no run"),
        ("runs best EMPTY --by explaned", "Did you mean explained?"),
        ("runs diff EMPTY EMPTY", "holds no run"),
        ("runs diff EMPTY", "OTHER is missing"),
        ("runs diff nowhere EMPTY", "no run folder at nowhere"),
    ],
)
def test_mistakes_are_one_line(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(tmp_path) if word == "EMPTY" else word for word in words.split()]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_folder_has_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["runs", str(tmp_path)]) == 0
    assert f"no run in {tmp_path}" in capsys.readouterr().out


def test_two_runs_are_compared_in_settings_machines_and_curves(
    run: Run, capsys: pytest.CaptureFixture[str]
):
    rows = [{"step": step, "loss": 8.0 - step, "knn": 0.1 * step} for step in range(1, 8)]
    a = run("a", *rows)
    changed = [row | {"loss": row["loss"] + (4.0 if row["step"] == 4 else 0.0)} for row in rows]
    system = replace(load(a / "config.yaml")[0].system, keep=9)
    b = run("b", *changed[:5], {"step": 99, "explained": 0.5}, seed=4, system=system)
    words = ["runs", "diff", str(a), str(b)]
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["settings"] == [{"name": "seed", "a": 0, "b": 4}]
    assert {each["name"] for each in facts["free"]} == {"system.keep"}
    assert facts["resolved"] == facts["environment"] == []
    loss, knn = facts["curves"]
    assert loss == {
        "name": "loss", "steps": 5, "step": 5, "a": 3.0, "b": 3.0, "largest": 4.0, "at": 4,
    }  # fmt: skip
    assert (knn["name"], knn["largest"]) == ("knn", 0)
    assert facts["apart"] == {"explained": "in B alone"}
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.index("seed") < out.index("system.keep")
    assert "at most 4 apart, at step 4, of 5 common steps" in out
    assert "the same at all 5 common steps" in out


def test_what_rules_chose_and_the_machines_are_compared_too(
    run: Run, capsys: pytest.CaptureFixture[str]
):
    a, b = run("a"), run("b", steps=8)
    for folder, step in ((a, 50), (b, 60)):
        with (folder / "metrics.jsonl").open("a") as rows:
            rows.write(f'{{"step": {step}, "knn": 0.5}}\n')
    file = b / "environment.json"
    file.write_text(file.read_text().replace('"timm": "', '"timm": "9'))
    with (b / "metrics.jsonl").open("a") as rows:
        rows.write("{half")
    assert main(["runs", "diff", str(a), str(b), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["resolved"] == [{"name": "steps", "a": 7, "b": 8}]
    assert [each["name"] for each in facts["environment"]] == ["timm"]
    assert facts["apart"] == {"knn": "at no step in common"}
    assert any("metrics.jsonl: 1 of 9 lines left out" in each for each in facts["problems"])
