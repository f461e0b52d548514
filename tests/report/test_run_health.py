"""The verdict on a run: planted failures are named, and a run that lacks nothing is healthy."""

import json
import shlex
from pathlib import Path

import pytest

from simmim.cli.main import main
from simmim.report.health import health_of
from simmim.runs.record import read_run

LEARNED = [0.2, 0.3, 0.38, 0.43, 0.47, 0.5, 0.52, 0.54, 0.55, 0.555]


def record(run: Path, explained: list[float] = LEARNED, every: int = 100, **values: float):
    usual = {"rank": 20.0, "deviation": 0.4, "blank": 0.1, "data_wait": 0.05} | values
    rows = [{"step": every * n, "explained": each, **usual} for n, each in enumerate(explained, 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_run(run)


@pytest.mark.parametrize(
    ("values", "verdict", "sentence", "command"),
    [
        ({}, "healthy", "it explains 56 % of the hidden detail", "simmim probe"),
        ({"deviation": 0.004, "rank": 1.2}, "collapsed", "0.4 % of their size", "--optim.lr"),
        ({"blank": 0.61}, "too easy", "61 % of the patches are blank", "simmim scan"),
        (
            {"explained": [0.1, 0.2, 0.3, 0.4, 0.5]},
            "under-trained, still rising",
            "rose by +10.0 points",
            "pretrain --resume",
        ),
        ({"explained": [-2.0, -0.5]}, "under-trained", "no better than the mean", "--resume"),
        ({"every": 20}, "under-trained", "only 200 steps: some hundreds", "--resume"),
        ({"data_wait": 0.62}, "waiting for images", "62 % of the time", "simmim shard"),
        ({"skipped": 30.0}, "diverged", "300 of 1,000 steps", "--optim.lr 0.00033"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, values, verdict, sentence, command):
    health = health_of(record(tmp_path, **values))
    assert [each.verdict for each in health.findings] == [verdict]
    assert sentence in health.findings[0].sentence
    assert command in health.findings[0].command


def test_the_sources_of_a_collapsed_run_can_be_pasted(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("format: 1\ndata: [photos, extra set]\n")
    health = health_of(record(tmp_path, deviation=0.0))
    words = shlex.split(health.findings[0].command)
    assert words[:4] == ["simmim", "pretrain", "photos", "extra set"]
    assert words[4:6] == ["--config", str(tmp_path / "config.yaml")]


def test_of_several_the_worst_comes_first(tmp_path: Path):
    health = health_of(record(tmp_path, data_wait=0.5, blank=0.7, deviation=0.0))
    verdicts = [each.verdict for each in health.findings]
    assert verdicts == ["collapsed", "too easy", "waiting for images"]
    assert health.as_dict()["verdict"] == "collapsed"
    assert health.as_dict()["data_wait"] == 0.5


def test_the_command_prints_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture):
    record(tmp_path, blank=0.61)
    assert main(["health", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("format: 1\ndata: [photos]\n")
    assert main(["health", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "too easy: 61 % of the patches are blank" in said
    assert "  simmim scan photos" in said
    assert main(["health", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["blank"], told["rank"]) == ("too easy", 0.61, 20.0)
    (tmp_path / "config.yaml").write_text("format: 1\ndata: [photos]\ntask: {kind: classify}\n")
    assert main(["health", str(tmp_path)]) == 2
    assert "is a fine-tuning" in capsys.readouterr().err
