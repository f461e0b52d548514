import csv
import io
import json
import math
import tarfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from simmim.api.demo import holds_demo, run_demo
from simmim.config.commands import DemoConfig
from simmim.config.demo import classifying, pretraining
from simmim.config.recipes import simmim_fast
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.config.saved import load as load_config
from simmim.data.demo import PHOTOS, TEST_PHOTOS, extract, unpack
from simmim.data.sources.find import find_images
from simmim.errors import ConfigError
from simmim.evaluate import features
from simmim.evaluate.fewshot import draw_rows
from simmim.evaluate.probe import linear
from simmim.interop.load import LoadedEncoder
from simmim.interop.scratch import scratch_encoder
from simmim.models.build import build_encoder
from simmim.runs.images import open_images
from simmim.studies.frozen_curve import frozen_curve
from simmim.studies.label_efficiency import (
    METHODS,
    Evaluation,
    Measurements,
    draw_labels,
    open_photos,
    results,
    shuffled_labels,
    write_predictions,
    write_results,
)
from simmim.training.world import World

RGB = PixelFormat(
    channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)
WORLD = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert unpack(folder) == 5756
    return folder


def evaluation(
    folder: Path, tiny: PretrainConfig, *, shuffle: bool = False, **changes
) -> Evaluation:
    torch.manual_seed(4)
    encoder = build_encoder(tiny.encoder, image_size=(32, 32), channels=3)
    settings = replace(classifying(folder), epochs=1, batch_size=20, threads=1)
    values = {
        "photos": open_photos(folder, RGB, seed=3, shuffle=shuffle),
        "pretrained": LoadedEncoder(encoder, RGB).eval(),
        "config": tiny.encoder,
        "settings": settings,
        "seed": 3,
        "world": WORLD,
        "each": 4,
    }
    return Evaluation(**{**values, **changes})


def run(evaluation: Evaluation, draws: int) -> Measurements:
    return evaluation.measure(draws, say=lambda *_: None, note=lambda _: None)


def test_test_photos_lie_apart_and_are_no_copies_of_others(folder: Path):
    trained = find_images(folder / PHOTOS)
    held = find_images(folder / TEST_PHOTOS)
    assert (len(trained), len(held)) == (5384, 372)

    contents = {(folder / PHOTOS / path).read_bytes() for path in trained}
    assert not contents & {(folder / TEST_PHOTOS / path).read_bytes() for path in held}
    assert "CC0" in (folder / PHOTOS / "README.txt").read_text()


@pytest.mark.parametrize("name", ["clothing/../../out.jpg", "/clothing/out.jpg", "other/out.jpg"])
def test_an_archive_cannot_write_elsewhere(tmp_path: Path, name: str):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    (tmp_path / "in").mkdir()
    with pytest.raises(tarfile.TarError, match=r"out\.jpg"):
        extract(tmp_path / "a.tar", tmp_path / "in")
    assert not list(tmp_path.rglob("out.jpg"))


def test_an_archive_cannot_hold_links(tmp_path: Path):
    link = tarfile.TarInfo("clothing/train/link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(link)
    with pytest.raises(tarfile.TarError, match=r"link\.jpg"):
        extract(tmp_path / "a.tar", tmp_path)


def test_draws_are_balanced_and_follow_from_seed_and_number(folder: Path):
    train = open_photos(folder, RGB, seed=0, shuffle=False).train

    first, again = draw_labels(train, 1, 0, 30), draw_labels(train, 1, 0, 30)

    assert first == again
    assert Counter(first.labels) == dict.fromkeys(range(10), 30)
    assert all(path.split("/")[0] for path in first.paths)
    for number, seed in ((2, 0), (1, 1)):
        other = draw_labels(train, number, seed, 30)
        assert len(set(first.paths) & set(other.paths)) < 100


def test_both_sides_of_a_pair_get_the_same_labels_settings_and_order(
    folder: Path, tiny: PretrainConfig
):
    plain = evaluation(folder, tiny)
    # Where the encoder to be judged is the very one that scratch starts from, both sides agree.
    same = scratch_encoder(tiny.encoder, plain.pretrained, 1, plain.seed)

    measured = run(replace(plain, pretrained=same), draws=1)

    for method in METHODS:
        one, other = (measured.find(1, method, start) for start in ("pretrained", "scratch"))
        assert one.paths == other.paths
        assert (one.labels == other.labels).all()
        assert (one.probabilities == other.probabilities).all()


def test_predictions_give_the_accuracies_again(folder: Path, tiny: PretrainConfig, tmp_path: Path):
    measured = run(evaluation(folder, tiny), draws=2)
    write_predictions(tmp_path / "predictions.csv", measured)
    facts = {"steps": 5, "minutes": 0.1, "labels_shuffled": False}
    write_results(tmp_path / "results.json", results(measured, **facts))
    document = json.loads((tmp_path / "results.json").read_text())

    rows = defaultdict(list)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rows[int(row["draw"]), row["method"], row["start"]].append(row)
    assert len(rows) == 2 * 3 * 2
    for told in document["each"]:
        mine = rows[told["draw"], told["method"], told["start"]]
        assert len({row["path"] for row in mine}) == 372
        assert all(row["path"].startswith(row["label"] + "/") for row in mine)
        right = [row["label"] == row["predicted"] for row in mine]
        assert told["accuracy"] == pytest.approx(sum(right) / len(right))
        by_class = defaultdict(list)
        for row in mine:
            by_class[row["label"]].append(row["label"] == row["predicted"])
        balanced = [sum(each) / len(each) for each in by_class.values()]
        assert told["balanced_accuracy"] == pytest.approx(sum(balanced) / len(balanced))
    for pair in document["paired"]:
        gained = [
            sum(
                sign * told["accuracy"]
                for told in document["each"]
                for start, sign in (("pretrained", 1), ("scratch", -1))
                if (told["draw"], told["method"], told["start"]) == (draw, pair["method"], start)
            )
            for draw in (1, 2)
        ]
        assert pair["difference"]["accuracy"] == pytest.approx(sum(gained) / 2)
        error = abs(gained[0] - gained[1]) / 2  # of two: s = |a - b| / √2, over √2
        told = pair["standard_error_of_the_difference"]["accuracy"]
        assert told == pytest.approx(error, abs=1e-12)

    again = write_results(tmp_path / "results.json", results(measured, **{**facts, "steps": 9}))
    assert [before["steps"] for before in again["earlier"]] == [5]


def test_the_label_curve_has_the_draws_of_the_rest(folder: Path, tiny: PretrainConfig):
    whole = evaluation(folder, tiny)
    some = replace(whole.photos, train=draw_labels(whole.photos.train, 0, 0, 31))
    few = replace(whole, photos=some)

    curve = frozen_curve(few, 2)

    assert [one.labels for one in curve] == 2 * [20, 50, 100, 300, 1000]
    known, asked = (features.extract(few.pretrained, each) for each in (some.train, some.test))
    for number, one in ((1, curve[3]), (2, curve[8])):
        rows = draw_rows(np.array(some.train.labels), 30, number, few.seed)
        pieces = (known.features[rows], known.labels[rows], asked.features, asked.labels)
        expected = linear(*pieces, classes=10).accuracy
        assert one.pretrained.accuracy == pytest.approx(expected, abs=0.01)
        assert one.baseline != one.pretrained


def test_shuffled_labels_give_chance(folder: Path, tiny: PretrainConfig):
    plain = open_photos(folder, RGB, seed=3, shuffle=False)
    shuffled = shuffled_labels(plain.test, 3)
    assert shuffled.paths == plain.test.paths
    assert Counter(shuffled.labels) == Counter(plain.test.labels)

    measured = run(evaluation(folder, tiny, shuffle=True, each=10), draws=2)

    error = math.sqrt(0.1 * 0.9 / 372)
    for one in measured.asked:
        assert one.figures.balanced == pytest.approx(0.1, abs=3 * 1.5 * error)  # small classes
        assert one.figures.accuracy < max(Counter(shuffled.labels).values()) / 372 + 3 * error


def test_a_slow_machine_makes_fewer_draws_and_says_so(folder: Path, tiny: PretrainConfig):
    notes: list[str] = []
    measured = evaluation(folder, tiny).measure(
        5, say=lambda *_: None, note=notes.append, allowance=0.01
    )
    assert measured.draws == 2
    assert len(notes) == 1
    assert "2 draws are made instead of 5" in notes[0]


def test_a_folder_with_another_run_is_refused(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("format: 1\n")
    with pytest.raises(ConfigError, match="another run"):
        run_demo(DemoConfig(out=tmp_path))
    assert not holds_demo(tmp_path)


def test_the_recipe_is_simmim_fast_but_for_the_size_of_the_encoder():
    config, fast = pretraining(), simmim_fast()
    assert replace(config, encoder=fast.encoder, cache=fast.cache) == fast


def test_one_draw_has_no_standard_error(folder: Path, tiny: PretrainConfig):
    document = results(run(evaluation(folder, tiny), draws=1))
    json.dumps(document, allow_nan=False)
    assert all(
        pair["standard_error_of_the_difference"]["accuracy"] is None and pair["verdict"] == "open"
        for pair in document["paired"]
    )


@pytest.mark.slow
def test_the_whole_demo_and_going_on_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "clothes"
    assert run_demo(DemoConfig(out=out, minutes=0.1, draws=1)) == out

    said = capsys.readouterr().out
    first = json.loads((out / "results.json").read_text())
    assert f"{100 * first['paired'][0]['pretrained']['accuracy']:.1f} %" in said
    assert {"report.html", "predictions.csv", "embeddings.parquet", "encoder.safetensors"} <= {
        file.name for file in out.iterdir()
    }
    test = {Path(path).name for path in find_images(out / TEST_PHOTOS)}
    assert not test & {Path(path).name for path in open_images(out).listing}
    with pytest.raises(ConfigError, match="finished demo"):
        run_demo(DemoConfig(out=out))

    run_demo(DemoConfig(out=out, minutes=0.1, draws=1))

    second = json.loads((out / "results.json").read_text())
    assert second["steps"] > first["steps"]
    assert [before["steps"] for before in second["earlier"]] == [first["steps"]]
    assert load_config(out / "config.yaml")[1].steps == second["steps"]
