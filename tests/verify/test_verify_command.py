"""The command as a whole: its lines, its certificate, and what reports make of that."""

import json
import math
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import simmim
from simmim.cli.main import main
from simmim.report import certificate
from simmim.report.html import run_report
from simmim.verify import device, exports
from simmim.verify.check import Check, Figure, Ground, SkippedError, run
from simmim.verify.table import CHECKS

ROOT = Path(__file__).parents[2]
EVERY = [check for _, members in CHECKS for check in members]


def test_all_checks_pass_and_the_certificate_says_so(
    verify, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # Those that start processes of their own: with the whole command below.
    names = [check.name for check in EVERY if "process" not in check.name]
    copy = tmp_path / "certificate.json"
    assert verify(*names, words=["--out", str(copy), "--seed", "5"]) == 0
    told = capsys.readouterr().out
    document = json.loads(cache.read_text())
    assert json.loads(copy.read_text()) == document
    assert document["format"] == 1
    assert [row["name"] for row in document["checks"]] == names
    for row in document["checks"]:
        assert row["status"] in ("passed", "skipped"), row
        assert row["status"] == "skipped" or row["value"] <= row["limit"]
        assert re.search(
            rf"{row['status']} +{re.escape(row['name'])} .*{row['seconds']:.1f} s", told
        )
        assert row["compares"] in told
    assert document["versions"]["simmim"] == simmim.__version__
    for part in (document["verdict"], document["fingerprint"], document["date"], str(cache)):
        assert part in told
    check_limits(document["checks"])


@pytest.mark.slow
def test_the_whole_command_takes_less_than_a_minute_of_two_cores(cache: Path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "simmim", "verify"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    document = json.loads(cache.read_text())
    assert [row["name"] for row in document["checks"]] == [check.name for check in EVERY]
    check_limits(document["checks"])


def documented() -> dict[str, str]:
    """The limit of each check, as docs/verify.md has it."""
    text = (ROOT / "docs" / "verify.md").read_text()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return {cells[0]: cells[2] for cells in table if len(cells) == 4}


def test_the_documentation_has_every_check():
    assert documented().keys() - {"check", "---"} == {check.name for check in EVERY}


def check_limits(rows: list[dict]) -> None:
    """The limits are those of the documentation."""
    limits = documented()
    for row in rows:
        if row["limit"] is not None:
            said = limits[row["name"]].replace("exact", "0").split()[0]
            assert float(said) == pytest.approx(row["limit"], rel=0.01), row["name"]


def test_a_failed_check_is_named_and_the_certificate_keeps_it(
    verify, mutate, cache: Path, capsys: pytest.CaptureFixture[str]
):
    from simmim.training.schedule import Schedule

    mutate(Schedule, "rate", "(step + 1)", "step")
    assert verify("schedule", "hash") == 1
    told = capsys.readouterr()
    assert "passed   hash" in told.out
    assert "1 of 2 checks failed: schedule." in told.err
    assert "1 FAILED, 1 of 2 checks passed" in told.out
    statuses = {row["name"]: row["status"] for row in json.loads(cache.read_text())["checks"]}
    assert statuses == {"schedule": "failed", "hash": "passed"}


class Silent:
    def starts(self, group: str, check: Check) -> None:
        pass

    def ends(self, result) -> None:
        pass


def test_what_a_check_may_do():
    def measured(value: float):
        return lambda _: Figure(value, 1.0, "difference")

    def broken(ground: Ground) -> Figure:
        (ground.folder / "file").write_text("")
        raise RuntimeError("no such operator")

    def not_here(_: Ground) -> Figure:
        raise SkippedError("no GPU")

    checks = [
        Check("within", "", measured(1.0)),
        Check("above", "", measured(1.1)),
        Check("not a number", "", measured(math.nan)),
        Check("raises", "", broken),
        Check("skipped", "", not_here),
    ]
    results = {r.name: r for r in run([("all", checks)], seed=0, watcher=Silent())}
    assert {name: r.status for name, r in results.items()} == {
        "within": "passed",
        "above": "failed",
        "not a number": "failed",
        "raises": "failed",
        "skipped": "skipped",
    }
    assert results["raises"].measured == "RuntimeError: no such operator"
    assert results["skipped"].measured == "no GPU"


def test_checks_have_names_of_their_own():
    assert len({check.name for check in EVERY}) == len(EVERY) >= 40


@pytest.mark.parametrize("words", [["--out", "x.txt"], ["--seed", "-1"], ["extra"]])
def test_misuse_is_told_before_anything_is_checked(words: list[str], capsys):
    assert main(["verify", *words]) == 2
    assert capsys.readouterr().out == ""


def test_a_certificate_that_cannot_be_kept_is_no_failed_check(
    verify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert verify("hash", words=["--out", str(tmp_path / "copy.json")]) == 0
    assert "not kept" in capsys.readouterr().out
    assert (tmp_path / "copy.json").is_file()


def page(tmp_path: Path) -> str:
    run_folder = tmp_path / "run"
    run_folder.mkdir(exist_ok=True)
    return run_report(run_folder).read_text()


def test_reports_show_the_certificate_of_this_code_alone(verify, cache: Path, tmp_path: Path):
    assert certificate.NONE in page(tmp_path)
    verify("hash", "masks on the GPU")
    shown = page(tmp_path)
    assert certificate.NONE not in shown
    document = json.loads(cache.read_text())
    for part in (
        "1 of 2 checks passed",
        document["date"],
        "torch",
        document["fingerprint"],
        "hash",
    ):
        assert part in shown
    for damaged in (
        {**document, "fingerprint": "0" * 12},
        {**document, "format": 2},
        {**document, "checks": [{"name": "hash"}]},
        {**document, "versions": 3},
        {**document, "checks": [{**document["checks"][0], "status": "perfect"}]},
        [],
    ):
        cache.write_text(json.dumps(damaged))
        assert certificate.NONE in page(tmp_path)
    assert "no GPU" in shown or torch.cuda.is_available()  # what was skipped, and why
    cache.write_text("{")
    assert certificate.NONE in page(tmp_path)


def test_a_failed_check_stands_out_in_reports(verify, mutate, tmp_path: Path):
    from simmim.training.schedule import Schedule

    mutate(Schedule, "rate", "(step + 1)", "step")
    verify("schedule", "hash")
    assert '<span class="value">FAILED</span>' in page(tmp_path)


def test_the_fingerprint_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    around = certificate.surroundings()
    assert certificate.fingerprint(around) == certificate.fingerprint(around)
    assert certificate.fingerprint({**around, "versions": {}}) != certificate.fingerprint(around)
    (tmp_path / "targets").mkdir()
    source = tmp_path / "targets" / "pixels.py"
    monkeypatch.setattr(certificate, "files", lambda _: tmp_path)
    found = set()
    for text in ("correction=1", "correction=0"):
        source.write_text(text)
        found.add(certificate.fingerprint(around))
    assert len(found) == 2


def test_what_is_not_installed_is_skipped_with_the_command(
    verify, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = exports.find_spec
    monkeypatch.setattr(
        exports,
        "find_spec",
        lambda name: None if name in ("onnxruntime", "transformers") else found(name),
    )
    assert verify("ONNX", "transformers, ViT", "hash") == 0
    told = capsys.readouterr().out
    assert "skipped  ONNX" in told
    assert "onnxruntime not installed: pip install 'simmim[onnx]'" in told
    assert "transformers not installed: pip install 'simmim[hf]'" in told
    assert "1 of 3 checks passed, 2 skipped" in told


def test_the_checks_of_an_accelerator_on_a_cpu(
    verify, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(device, "accelerator", lambda: torch.device("cpu"))
    assert verify("masks on the GPU", "loss on the GPU") == 0
    assert "passed   masks on the GPU" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_that_cannot_meet_are_skipped(
    verify, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    assert verify("two processes") == 0
    assert "skipped  two processes" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_no_seed_fails(seed: int):
    alone = [(g, [c for c in m if "process" not in c.name]) for g, m in CHECKS]
    failed = [r for r in run(alone, seed=seed, watcher=Silent()) if r.status == "failed"]
    assert failed == []
