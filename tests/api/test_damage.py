"""Damage to any file of a run folder is answered: no traceback, no crash, no silent difference."""

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from commands import call
from torch import Tensor

from simmim.api.pretrain import run_pretrain
from simmim.config.run import PretrainConfig
from simmim.errors import SimmimError
from simmim.interop.open import open_source
from simmim.report.html import run_report
from simmim.runs.checkpoints import Checkpoints
from simmim.runs.folder import read_config
from simmim.runs.images import open_images
from simmim.runs.metrics import Metrics
from simmim.runs.record import read_run

STEPS = 12


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run with everything that a folder may hold."""
    folder = tmp_path_factory.mktemp("damage")
    shutil.copytree(photos, folder / "photos")
    (folder / "photos" / "dress" / "broken.jpg").write_bytes(b"no image")
    tiny = PretrainConfig()
    config = replace(
        tiny,
        data=(str(folder / "photos"),),
        out=folder / "run",
        encoder=replace(
            tiny.encoder,
            model="vit_tiny_patch16_224",
            patch_size=8,
            image_size=(32, 32),
            arguments={"embed_dim": 12, "depth": 1, "num_heads": 3},
        ),
        decoder=replace(tiny.decoder, depth=1, width=12),
        epochs=STEPS * 16 / 97,
        batch_size=16,
        holdout=4,
        system=replace(tiny.system, workers=0, tensorboard=False, picture_every=0.5),
    )
    run = run_pretrain(config)
    assert (run / "quarantine.jsonl").exists()
    return run


@dataclass
class Taken:
    """What a resume, a report and ``simmim.load`` take from a run folder."""

    state: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


def hashed(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def take(run: Path, *, report: bool) -> Taken:
    taken = Taken()

    def attempt(name: str, read: Callable[[], Any]) -> None:
        try:
            taken.state[name] = read()
        except SimmimError as error:
            taken.said.append(str(error))
            taken.state[name] = None

    def images() -> Any:
        # As a resume does, which knows the hash from config.yaml.
        found = open_images(run, read_config(run, PretrainConfig)[1].lists)  # type: ignore[union-attr]
        return list(found.listing), found.held, found.classes, found.labelled

    def checkpoint() -> Any:
        found = Checkpoints(run / "checkpoints", keep=3).newest(taken.said.append)
        assert found is not None
        metrics = Metrics(run, step=found.step, tensorboard=False, warn=taken.said.append)
        metrics.close()
        return found.step, found.state, hashed(found.model()), hashed(found.optimizer())

    def encoder() -> Any:
        found = open_source(run)
        return found.model, found.arguments, found.pixels, hashed(dict(found.encoder))

    record = read_run(run)
    taken.said += record.problems
    taken.rows = [row["step"] for row in record.rows]
    taken.state["record"] = record.data, record.environment
    attempt("config", lambda: read_config(run, PretrainConfig))
    attempt("images", images)
    attempt("encoder", encoder)
    attempt("checkpoint", checkpoint)
    if report:
        run_report(run)
    return taken


LOGS = ("metrics.jsonl", "quarantine.jsonl")
UNREAD = ("log.txt", "report.html", ".lock", ".png")
"""Written for people, or anew."""


def damage(data: bytes, kind: str, chance: random.Random) -> bytes:
    changed = bytearray(data)
    at = chance.randrange(len(data))
    match kind:
        case "flip":
            changed[at] ^= 1 << chance.randrange(8)
        case "cut":
            del changed[at:]
        case "zeros":
            end = min(len(data), at + chance.choice((1, 16, 512)))
            changed[at:end] = bytes(end - at)
        case "digit":  # what a person would edit
            digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
            if digits:
                at = chance.choice(digits)
                changed[at] = 48 + (changed[at] - 48 + chance.randrange(1, 10)) % 10
    return bytes(changed)


def check(whole: Path, place: Path, count: int, seed: int) -> None:
    chance = random.Random(seed)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    expected = take(shutil.copytree(whole, place / "as-it-was"), report=True)
    assert expected.said == []
    for number in range(count):
        file = files[number % len(files)]
        data = (whole / file).read_bytes()
        changed = damage(data, chance.choice(("flip", "flip", "cut", "zeros", "digit")), chance)
        if number >= len(files) and file.name.endswith(UNREAD):
            continue  # once is enough
        run = shutil.copytree(whole, place / str(number), copy_function=os.link)
        (run / file).unlink()
        (run / file).write_bytes(changed)
        taken = take(run, report=file.suffix in (".json", ".jsonl", ".yaml") and number % 3 == 0)
        where = f"{file} in round {number} of seed {seed}: {taken.said}"
        if changed == data or file.name.endswith(UNREAD):
            assert taken.state == expected.state, where
        elif file.name in LOGS:
            assert taken.state == expected.state, where
            assert set(taken.rows) <= set(expected.rows) or file.name in " ".join(taken.said), where
        elif taken.state != expected.state or taken.rows != expected.rows:
            assert any(file.name in text for text in taken.said), where
            for name, value in taken.state.items():
                older = name == "checkpoint" and value is not None and value[0] < STEPS
                damaged_record = name == "record"
                assert value in (None, expected.state[name]) or older or damaged_record, where
        shutil.rmtree(run)


def test_a_hundred_kinds_of_damage_are_answered(whole: Path, tmp_path: Path):
    check(whole, tmp_path, count=110, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_two_thousand_kinds_of_damage_are_answered(whole: Path, tmp_path: Path, seed: int):
    check(whole, tmp_path, count=500, seed=seed)


def test_a_report_counts_the_steps_that_have_no_row(whole: Path, tmp_path: Path):
    run = shutil.copytree(whole, tmp_path / "run")
    rows = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    for kept, gone in ((rows[:-2], 2), (rows[1:], 1), ([], STEPS)):
        (run / "metrics.jsonl").write_bytes(b"".join(kept))
        assert read_run(run).problems == [f"metrics.jsonl has no row of {gone} of {STEPS} steps."]


@pytest.mark.parametrize(
    ("name", "old", "new", "code"),
    [
        ("config.yaml", b"seed: 0", b"seed: 1", 2),
        ("images.json", b'"held": [\n  ', b'"held": [\n  9', 2),
        ("images-0.arrow", b"dress/", b"shoes/", 2),
        ("metrics.jsonl", b'{"step": 2,', b'{"step"\xff 2,', 0),
        ("checkpoints/step-00000012/state.json", b'"step": 12', b'"step": 10', 0),
    ],
)
def test_a_resume_answers_damage_with_one_message(
    whole: Path, tmp_path: Path, name: str, old: bytes, new: bytes, code: int
):
    run = shutil.copytree(whole, tmp_path / "run")
    data = (run / name).read_bytes()
    assert old in data
    (run / name).write_bytes(data.replace(old, new, 1))
    done = call("pretrain", "--resume", run, *([] if code else ["--epochs", "2.5"]))
    assert done.returncode == code, done.stderr
    said = done.stderr if code else done.stdout
    assert Path(name).name in said
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1
