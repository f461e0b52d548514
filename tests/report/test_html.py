import json
import re
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim.config import saved
from simmim.config.resolved import PixelFormat, Resolved
from simmim.config.run import PretrainConfig
from simmim.errors import CheckpointError
from simmim.report import html
from simmim.report.html import run_report, write_report
from simmim.report.pictures import reconstruction_grid, save_png, to_image
from simmim.report.sections import (
    ClassGuesses,
    Comparison,
    Confusion,
    Draw,
    EmbeddingMap,
    Examples,
    Guess,
    Neighbour,
    Neighbours,
    Query,
    Report,
    Score,
)
from simmim.report.summary import describe
from simmim.runs.record import read_run

HOSTILE = '"><script>alert(1)</script><img src=http://x.example/a.png onerror=alert(2)>'


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Eight real photos as files, 64 pixels a side."""
    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(Path(html.__file__).parents[1] / "data" / "clothing-demo.tar") as tar:
        members = (member for member in tar if member.name.endswith(".jpg"))
        for place, member in zip(range(8), members, strict=False):
            file = tar.extractfile(member)
            assert file is not None
            Image.open(file).convert("RGB").resize((64, 64)).save(folder / f"{place}.jpg")
    return sorted(folder.iterdir())


def rows(steps, explained=0.4, blur=0.2):
    for step in range(1, steps + 1):
        row = {"step": step, "epoch": step / 50, "loss": 1 / step, "lr": 1e-3, "time": step * 0.5}
        row |= {"images_per_s": 266.0, "data_wait": 0.02}
        if step % 10 == 0:
            row |= {"explained": explained - 1 / step, "explained_blur": blur - 1 / step}
        yield row


def make_run(run, photos, *, steps=200, of=200, data="photos", **progress):
    run.mkdir(parents=True)
    why = {"batch_size": "the largest power of two ≤ n/16", "steps": "--budget"}
    pixels = PixelFormat(
        channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    resolved = Resolved(
        images=3436,
        holdout=64,
        image_size=(64, 64),
        patch_size=8,
        pixels=pixels,
        batch_size=128,
        micro_batch=64,
        steps=of,
        precision="fp32",
        threads=2,
        device="cpu",
        why=why,
    )
    config = PretrainConfig(recipe="mae", data=(data,), budget="15m")
    (run / "config.yaml").write_text(saved.dump(config, resolved))
    survey = {"images": 3500, "channels": {"3": 3500}, "sizes": {"height": [80, 107, 142]}}
    (run / "data.json").write_text(json.dumps(survey))
    (run / "environment.json").write_text(json.dumps({"torch": "2.15", "gpu": None}))
    lines = (json.dumps(row) + "\n" for row in rows(steps, **progress))
    (run / "metrics.jsonl").write_text("".join(lines))
    stack = np.stack([np.asarray(to_image(photo)) / 255 for photo in photos])
    for step in (20, 200):
        save_png(
            reconstruction_grid(stack, stack * 0, stack), run / f"pictures/step-{step:08d}.png"
        )
    return run


def evaluation(photos, name="hat"):
    classes = [name, "shoes"]
    score = Score(accuracy=0.4, balanced=0.3)
    draws = [
        Draw(
            labels=labels,
            pretrained=Score(accuracy=0.5 + 0.01 * draw, balanced=0.4 + 0.01 * draw),
            baseline=score,
            protocol="k-NN",
        )
        for labels in (100, 300)
        for draw in range(3)
    ]
    guesses = [
        Guess(photo=photo, predicted=name, probability=0.9, correct=place > 0)
        for place, photo in enumerate(photos[:5])
    ]
    near = [Neighbour(photo=photo, label=name, similarity=0.9) for photo in photos[:5]]
    return [
        Comparison(title="Did it help?", draws=draws, baseline="a random encoder"),
        Confusion(
            title="What is taken for what", counts=np.array([[3, 1], [0, 4]]), classes=classes
        ),
        Examples(
            title="Surest and least sure",
            classes=[ClassGuesses(name=name, surest=guesses, least_sure=guesses)],
        ),
        Neighbours(title="Nearest", queries=[Query(photo=photos[0], label=name, neighbours=near)]),
        EmbeddingMap(
            title="A map",
            points=np.random.default_rng(0).normal(size=(8, 2)),
            labels=[0, 1] * 4,
            classes=classes,
            photos=photos,
            titles=[name] * 8,
        ),
    ]


class Page(HTMLParser):
    """Collects what a page says and what it would load, and checks that its tags match."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, path):
        super().__init__()
        self.loads, self.tags, self.words, self.open, self.handlers = [], [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split()).replace("\u00a0", " ")

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.loads.append(value)
            if name.startswith("on"):
                self.handlers.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, photos):
    """The path of a report with all kinds of sections."""
    return run_report(
        make_run(tmp_path_factory.mktemp("whole") / "run", photos), evaluation(photos)
    )


def test_a_report_tells_what_was_done_and_what_came_of_it(whole):
    page = Page(whole)
    assert whole.name == "report.html"
    assert "pretrained on 3,436 images from photos, without labels" in page.text
    assert "It trained for 200 steps, 4 passes over the images in 1 min 40 s." in page.text
    assert "explains 40 % of the hidden detail" in page.text
    assert "the largest power of two ≤ n/16" in page.text
    assert "height 80 to 142 pixels, median 107" in page.text
    assert "k-NN, 100 labels: pretrained is 11.0 ± 0.6 points more accurate" in page.text
    assert "hat taken for shoes (1 of 4)" in page.text
    assert "5 of the 5 neighbours shown (100 %)" in page.text
    assert f"simmim finetune LABELLED_PHOTOS --from {whole.parent}" in page.text
    assert "--resume" not in page.text
    assert page.tags.count("svg") == 4 + 3
    assert whole.stat().st_size < html.LIMIT


def test_a_report_loads_nothing_from_outside(whole):
    page = Page(whole)
    assert page.loads
    assert all(target.startswith(("data:image/", "#")) for target in page.loads)
    assert not re.search(r"url\((?!#)|@import", page.source)
    assert "default-src 'none'" in page.source


def test_hostile_names_are_shown_and_not_obeyed(tmp_path, photos):
    run = make_run(tmp_path / "<b>run & co", photos, data=HOSTILE)
    (run / "quarantine.jsonl").write_text(json.dumps({"path": HOSTILE, "reason": HOSTILE}) + "\n")
    (run / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE, "x": "\udcff\u001b[2J"}))
    page = Page(run_report(run, evaluation(photos, HOSTILE)))
    assert page.tags.count("script") == 1
    assert page.handlers == []
    assert page.tags.count("img") == 2 + 10 + 6 + 1
    assert "<b>run & co" in page.text
    assert HOSTILE in page.text
    assert all(target.startswith(("data:image/", "#")) for target in page.loads)


def test_an_empty_run_says_what_is_missing(tmp_path):
    page = Page(run_report(tmp_path))
    for file in ("config.yaml", "data.json", "environment.json", "metrics.jsonl"):
        assert f"{file} " in page.text
    assert "No training step has been logged yet" in page.text
    assert f"simmim pretrain --resume {tmp_path}" in page.text


def test_half_written_files_are_left_out_and_named(tmp_path, photos):
    run = make_run(tmp_path / "run", photos)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 200, "loss": 0.125}\n[1]\n{"loss": 3}\n{"step": 201, "lo')
    (run / "config.yaml").write_text("recipe: [")
    (run / "data.json").write_bytes(b'{"images": \xff')
    (run / "environment.json").write_text("[]")
    (run / "quarantine.jsonl").write_text('{"path": "a.jpg", "reason": "torn"}\n{"pa')
    (run / "pictures" / "step-00000300.png").write_bytes(b"\x89PNG half")
    page = Page(run_report(run))
    assert "metrics.jsonl: 2 of 204 lines left out" in page.text
    assert "quarantine.jsonl: 1 of 2 lines left out" in page.text
    assert "config.yaml cannot be read" in page.text
    assert "data.json (what the images are) cannot be read" in page.text
    assert "environment.json (the machine) cannot be read" in page.text
    assert "pictures: 1 left out" in page.text
    assert "It trained for 200 steps" in page.text


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        ({"explained": -0.02}, "It has not learned yet"),
        ({"blur": -0.1}, "It has begun to learn"),
        ({"explained": float("nan")}, "could not be computed"),
    ],
)
def test_a_run_that_did_not_learn_is_told_so(tmp_path, photos, progress, words):
    run = make_run(tmp_path / "run", photos, steps=20, of=20, **progress)
    assert words in describe(read_run(run)).verdict


def change_config(run, old, new):
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new))


def test_train_longer_says_how_long(tmp_path, photos):
    run = make_run(tmp_path / "a run", photos, steps=20, of=20, explained=-0.02)
    report = describe(read_run(run))
    assert "Train longer first: as long again (15m)." in report.verdict
    command, meaning = report.sections[-1].commands[0]
    assert command == f"simmim pretrain --resume '{run}' --budget 15m"
    assert meaning == "train as long again (15m)"
    change_config(run, "budget: 15m", "budget: null")
    report = describe(read_run(run))
    assert report.sections[-1].commands[0] == (
        f"simmim pretrain --resume '{run}' --epochs 2",  # 2 · 20 steps · 128 / 3,436 images
        "train twice as long (2 epochs in all)",
    )


def test_nothing_learned_is_nothing_learned_at_exactly_zero(tmp_path, photos):
    run = make_run(tmp_path / "run", photos, steps=20, of=20, explained=1 / 20)
    report = describe(read_run(run))
    assert read_run(run).last("explained") == 0.0
    assert "It has not learned yet" in report.verdict
    assert "train as long again" in report.sections[-1].commands[0][1]


def test_skipped_steps_and_changes_of_the_plan_are_told(tmp_path, photos):
    run = make_run(tmp_path / "run", photos, steps=20, of=20)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    change_config(
        run,
        "  earlier: []",
        "  earlier: [{until: 7, steps: 40, lr: 0.1, why: '--optim.lr, in place of 0.1'}]",
    )
    for skipped, words in ((3, "3 of the 20 steps were skipped"), (20, "All 20 steps were")):
        rows = [line | {"skipped": float(line["step"] > 20 - skipped)} for line in lines]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        said = " ".join(describe(read_run(run)).summary)
        assert words in said
        assert "It was planned anew after step 7: --optim.lr, in place of 0.1." in said


def test_a_report_stays_readable_with_absurd_numbers(tmp_path, photos):
    run = make_run(tmp_path / "run", photos, steps=20, of=20, explained=-2e21, blur=-1e30)
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": step, "loss": 2.4e22}) + "\n" for step in (21, 22))
    text = Page(run_report(run)).text
    assert "below −1,000 %" in text.replace("\u00a0", " ")
    assert not re.search(r"\d{12}", text)


def test_progress_on_training_images_is_not_called_progress_on_others(tmp_path, photos):
    run = make_run(tmp_path / "run", photos, steps=20, of=20)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("holdout: 64", "holdout: 0"))
    verdict = describe(read_run(run)).verdict
    assert verdict.startswith("On some of its own training images (none were held out), it expl")


def test_an_unfinished_run_is_not_called_complete(tmp_path, photos):
    page = Page(run_report(make_run(tmp_path / "run", photos, steps=199, of=200)))
    assert "The run is not complete: 200 steps are planned, 99 % are done." in page.text
    assert "simmim pretrain --resume" in page.text


def test_training_time_is_added_up_over_attempts(tmp_path, photos):
    run = make_run(tmp_path / "run", photos, steps=100)
    with (run / "metrics.jsonl").open("a") as file:
        for step in range(101, 201):
            file.write(json.dumps({"step": step, "time": (step - 100) * 0.5}) + "\n")
    assert "in 1 min 40 s" in Page(run_report(run)).text


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no run folder"):
        run_report(tmp_path / "nowhere")


def test_a_photo_that_has_gone_leaves_a_grey_square(tmp_path, photos):
    sections = evaluation([*photos[:7], tmp_path / "gone.jpg"])
    page = Page(
        write_report(tmp_path / "r.html", Report(title="x", summary=["y"], sections=sections))
    )
    assert page.tags.count("svg") == 3


def test_a_large_report_is_made_smaller(tmp_path, monkeypatch, photos):
    report = Report(title="x", summary=["y"], sections=evaluation(photos))
    whole = write_report(tmp_path / "a.html", report).stat().st_size
    monkeypatch.setattr(html, "LIMIT", whole - 1)
    assert write_report(tmp_path / "b.html", report).stat().st_size < whole


def draw(labels, pretrained, baseline):
    return Draw(
        labels=labels,
        pretrained=Score(accuracy=pretrained, balanced=pretrained),
        baseline=Score(accuracy=baseline, balanced=baseline),
    )


@pytest.mark.parametrize(
    ("pairs", "verdict", "words"),
    [
        ([(0.5, 0.3), (0.52, 0.3)], "better", "points more accurate than from scratch."),
        ([(0.3, 0.5), (0.3, 0.52)], "worse", "points less accurate than from scratch."),
        ([(0.5, 0.3), (0.3, 0.5)], "open", "no difference"),
        ([(0.5, 0.5), (0.5, 0.5)], "open", "no difference"),
        ([(0.5, 0.3)], "open", "nothing is claimed"),
        ([(0.5, 0.45), (0.46, 0.45)], "better", "a weak sign"),
    ],
)
def test_nothing_is_claimed_within_the_standard_error(pairs, verdict, words):
    section = Comparison(title="x", draws=[draw(100, *pair) for pair in pairs])
    assert section.paired[0].verdict == verdict
    assert words in section.sentences[0]


def test_a_gain_in_accuracy_alone_is_not_claimed():
    draws = [
        Draw(
            labels=100,
            pretrained=Score(accuracy=0.5 + 0.01 * place, balanced=0.3),
            baseline=Score(accuracy=0.3, balanced=0.3),
        )
        for place in range(3)
    ]
    assert Comparison(title="x", draws=draws).paired[0].verdict == "open"


def test_the_paired_error_is_that_of_the_differences():
    pairs = [(0.2, 0.1), (0.5, 0.4), (0.9, 0.8)]
    section = Comparison(title="x", draws=[draw(100, *pair) for pair in pairs])
    assert section.paired[0].difference.accuracy == pytest.approx(0.1)
    assert section.paired[0].error.accuracy == pytest.approx(0, abs=1e-12)
