"""A log never stops a training, and what of it is lost is told."""

import json
from pathlib import Path

import pytest

from simmim.runs.metrics import Metrics, read_metrics


def lines(steps: range) -> list[bytes]:
    return [json.dumps({"step": step, "loss": 1.5}).encode() for step in steps]


@pytest.mark.parametrize(
    "damaged",
    [
        b"\xff\xfe",
        b"\0" * 40,
        b'{"step": 3, "lo',
        b'{"stip": 3, "loss": 1.5}',
        b'{"step": "3", "loss": 1.5}',
        b'{"step": NaN}',
        b'{"step": 1e999}',
        b'{"step": -3}',
        b'{"step": 2, "loss": 1.5}',
        b"[" * 100_000,
        b"3",
    ],
)
def test_a_damaged_line_is_left_out_and_counted(tmp_path: Path, damaged: bytes):
    rows = lines(range(1, 7))
    rows[2] = damaged
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    said: list[str] = []
    metrics = Metrics(tmp_path, step=4, tensorboard=False, warn=said.append)
    metrics.update({"step": 5, "loss": float("nan")})
    metrics.close()
    kept, lost = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in kept] == [1, 2, 4, 5]
    assert lost == 0
    assert kept[-1]["loss"] is None
    assert len(said) == 1
    assert said[0].endswith("metrics.jsonl that were left out: 1")


@pytest.mark.parametrize(
    ("kept", "gone"), [(range(0), 5), (range(1, 3), 3), (range(2, 9), 1), (range(1, 9), 0)]
)
def test_rows_that_are_gone_are_counted(tmp_path: Path, kept: range, gone: int):
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines(kept)))
    said: list[str] = []
    Metrics(tmp_path, step=5, tensorboard=False, warn=said.append).close()
    told = f"{tmp_path / 'metrics.jsonl'} has no row of {gone} of the 5 steps before"
    assert said == ([told] if gone else [])
    Metrics(tmp_path, step=9, tensorboard=False, warn=said.append, every_step=False).close()
    assert len(said) == min(gone, 1)


def test_rows_that_changed_places_are_put_in_order(tmp_path: Path):
    rows = lines(range(1, 7))
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*rows[3:], *rows[:3]]))
    kept, lost = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in kept] == [1, 2, 3, 4, 5, 6]
    assert lost == 0


def test_a_log_that_cannot_be_begun_is_told_once(tmp_path: Path):
    (tmp_path / "metrics.jsonl").mkdir()
    said: list[str] = []
    metrics = Metrics(tmp_path, step=0, tensorboard=False, warn=said.append)
    metrics.update({"step": 1})
    metrics.update({"step": 2})
    assert len(said) == 1
    assert "could not be written" in said[0]
