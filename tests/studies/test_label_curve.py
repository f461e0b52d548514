import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simmim.errors import CheckpointError, ConfigError
from simmim.studies.label_curve import (
    SCRATCH,
    TUNING,
    Curve,
    Design,
    curve,
    measure,
    nested,
    rarest,
    usual_counts,
    worth,
)
from simmim.studies.raw_rows import RawRows

COUNTS = [50, 100, 200, 400]


def lines(*, gain: float, noise: float, draws: int = 6, seed: int = 0) -> tuple[Curve, Curve]:
    """Two starts whose accuracy grows by 0.1 with each doubling; one is ahead, by doublings."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 0.05, draws)  # the luck of a draw of labels, which both starts have

    def one(name: str, ahead: float) -> Curve:
        level = 0.1 * (np.log2(np.array(COUNTS) / 50) + ahead)[:, None] + 0.2
        values = level + noise * rng.normal(size=(4, draws)) + shared * (noise > 0)
        return Curve(name, COUNTS, values.tolist())

    return one("run", gain), one(SCRATCH, 0.0)


def test_a_start_is_worth_the_labels_at_which_the_other_is_as_good():
    judged, scratch = lines(gain=1.5, noise=0.0)
    found = worth(judged, scratch, place=1)
    assert found.equal == pytest.approx(100 * 2**1.5)
    assert found.low == pytest.approx(found.equal)
    assert found.verdict == "better"
    assert found.sentence == (
        "with 100 labels you are where training from scratch is with 280 (280 … 280)"
    )


def test_the_interval_is_over_draws_and_grows_with_their_noise():
    calm, loud = (worth(*lines(gain=1.0, noise=noise), place=1) for noise in (0.005, 0.02))
    assert calm.low < calm.equal < calm.high
    assert calm.low == pytest.approx(200, rel=0.15)
    assert math.log(loud.high / loud.low) > 2 * math.log(calm.high / calm.low)


def test_beyond_what_was_tried_nothing_is_made_up():
    judged, scratch = lines(gain=1.0, noise=0.0)
    top = worth(judged, scratch, place=3)
    assert math.isinf(top.equal)
    assert "is with more than 400 (more than 400 … more than 400)" in top.sentence
    bottom = worth(scratch, judged, place=0)
    assert bottom.equal == 0
    assert bottom.verdict == "worse"
    assert bottom.sentence.endswith("fewer than 50 (fewer than 50 … fewer than 50): a loss")


def test_no_gain_is_claimed_within_the_noise_or_from_one_draw():
    same = [worth(*lines(gain=0.0, noise=0.02, draws=5, seed=seed), place=1) for seed in range(30)]
    claims = [each.verdict for each in same]
    assert claims.count("better") <= 3  # 2.5 % of them, and a little more as draws are few
    assert same[claims.index("open")].sentence.endswith("no gain can be claimed")
    alone = worth(*lines(gain=2.0, noise=0.0, draws=1), place=1)
    assert math.isnan(alone.low)
    assert alone.verdict == "open"
    assert alone.sentence.endswith("one draw alone, so that nothing is claimed")


def test_a_curve_that_falls_by_noise_is_made_to_rise():
    judged = Curve("run", [50, 100, 200], [[0.40], [0.46], [0.6]])
    other = Curve(SCRATCH, [50, 100, 200], [[0.30], [0.50], [0.42]])  # 0.30, 0.46, 0.46
    assert worth(judged, other, place=1).equal == pytest.approx(100)
    assert worth(judged, other, place=0).equal == pytest.approx(50 * 2 ** (0.10 / 0.16))


def test_draws_are_nested_and_each_class_has_its_share():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    order = nested(labels, draw=1, seed=0)
    assert sorted(order) == list(range(100))
    for count in (10, 20, 50):
        shares = np.bincount(labels[order[:count]]) / count
        np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], atol=1.01 / count)
    assert (order == nested(labels, 1, 0)).all()
    assert (order != nested(labels, 2, 0)).any()
    assert (order != nested(labels, 1, 1)).any()


def test_an_image_of_several_classes_goes_by_the_one_that_the_fewest_show():
    present = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]], bool)
    assert rarest(present).tolist() == [0, 0, 2, -1, 0]
    assert rarest(np.eye(4, dtype=bool)[[3, 0, 0]]).tolist() == [3, 0, 0]


def test_counts_go_from_a_few_of_each_class_to_all():
    assert usual_counts(2455, 10) == [20, 67, 220, 740, 2455]
    assert usual_counts(12, 2) == [12]


class Fake:
    """Accuracy by a formula, in which one rate is best on the tuning images."""

    measure = "accuracy"
    groups = np.repeat([0, 1], 100)
    rates: Sequence[float] = (1e-3, 1e-2)

    def __init__(self) -> None:
        self.made: list[tuple] = []

    def __call__(self, start: str, rows: np.ndarray, draw: int, rate: float, /) -> dict[str, float]:
        self.made.append((start, len(rows), draw, rate))
        best = {"run": 1e-3, SCRATCH: 1e-2}[start]
        return {"accuracy": 0.1 * (rate == best) + len(rows) / 1000, "first": int(rows[0])}


def test_each_start_has_its_own_rate_and_all_have_the_same_images(tmp_path: Path):
    design, trial = Design(["run", SCRATCH], [20, 100], [3, 2], seed=0), Fake()
    table = RawRows(tmp_path, "rows.csv", {"a": 1}, ["start"])
    measure(design, trial, table, lambda *_: None)

    assert len(trial.made) == 2 * 2 * 2 + 2 * (3 + 2)
    measured = [row for row in trial.made if row[2] != TUNING]
    assert {(start, rate) for start, _, _, rate in measured} == {("run", 1e-3), (SCRATCH, 1e-2)}
    for draw in (1, 2, 3):
        assert len({row["first"] for row in table.find(draw=draw)}) == 1
    reached = curve(table, design, SCRATCH, trial)
    assert reached.mean == pytest.approx([0.12, 0.2])
    assert [len(each) for each in reached.values] == [3, 2]


def test_rows_that_are_there_are_not_made_again(tmp_path: Path):
    design, settings = Design(["run", SCRATCH], [20], [2], seed=0), {"from": "run", "seed": 0}

    class StopError(Exception):
        pass

    class Stops(Fake):
        def __call__(self, *words: Any) -> dict[str, float]:
            if len(self.made) == 5:
                raise StopError
            return super().__call__(*words)

    with pytest.raises(StopError):
        measure(
            design, Stops(), RawRows(tmp_path, "rows.csv", settings, ["start"]), lambda *_: None
        )
    rest, table = Fake(), RawRows(tmp_path, "rows.csv", settings, ["start"])
    measure(design, rest, table, lambda *_: None)
    assert len(rest.made) == 3

    whole = RawRows(tmp_path / "..", f"{tmp_path.name}.csv", settings, ["start"])
    measure(design, Fake(), whole, lambda *_: None)
    assert table.rows == whole.rows

    with pytest.raises(ConfigError, match=r"another setting of seed \(0 there, 1 asked for\)"):
        RawRows(tmp_path, "rows.csv", {**settings, "seed": 1}, ["start"])
    (tmp_path / "rows.csv").write_text("start,labels,draw\nrun,x,1\n")
    with pytest.raises(CheckpointError, match="damaged"):
        RawRows(tmp_path, "rows.csv", settings, ["start"])
