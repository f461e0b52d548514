import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import simmim as checked
from simmim.cli.main import COMMANDS, main
from simmim.tasks.classify import ClassifyTask
from simmim.tasks.pretrain import PretrainTask
from simmim.training.health import Health

SMALL = [
    *("--model", "vit_tiny_patch16_224", "--image-size", "32", "--patch-size", "8"),
    *("--epochs", "1", "--batch-size", "2", "--threads", "1", "--workers", "0"),
    *("--arguments", "depth=1,embed_dim=48,num_heads=3", "--tensorboard", "false"),
]
SHIPPED = sys.stdlib_module_names
OURS = {
    *("simmim", "simmim.data", "simmim.data.names", "simmim.data.signals", "simmim.errors"),
    *(
        "simmim.training",
        "simmim.runs",
        "simmim.runs.files",
        "simmim.training.launch",
        "simmim.runs.stop",
    ),
}
"""What of simmim a help may import besides its command line and its settings."""
WATCHED = """
import sys
from simmim.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as left:
    code = left.code
print(*(name for name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


def simmim(*words: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """The finished process, and the modules in it that are not Python's own."""
    command = [sys.executable, "-c", WATCHED, *words]
    bare = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    *said, names = done.stderr.splitlines()
    done.stderr = "\n".join(said)
    found = set(names.split()) - set(bare.stdout.split())
    return done, {name for name in found if name.partition(".")[0] not in SHIPPED}


@pytest.fixture
def photos(tmp_path: Path) -> str:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"")
    return str(folder)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_a_help_loads_no_other_package(command: str | None):
    done, imported = simmim(*([command] if command else []), "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert f"simmim {command}" in done.stdout if command else "pretrain DATA" in done.stdout
    assert {name for name in imported if name.split(".")[1:2] not in (["cli"], ["config"])} <= OURS


def test_the_top_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    printed = []
    for words in [], ["help"], ["--help"], ["-h"]:
        assert main(words) == 0
        printed.append(capsys.readouterr().out)
    assert len(set(printed)) == 1
    assert all(f"\n  {command} " in printed[0] for command in COMMANDS)


def test_the_help_of_a_command_has_two_spellings(capsys: pytest.CaptureFixture[str]):
    texts = []
    for words in ["help", "probe"], ["probe", "--help"]:
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_the_help_of_a_recipe_shows_its_flags(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["pretrain", "--recipe", "simmim-paper", "--help"])
    text = capsys.readouterr().out
    assert "--mask.unit" in text
    assert "(here: 32)" in text
    assert "--decoder.depth" not in text


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("simmim 0.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pretrian photos", "there is no command 'pretrian'. Did you mean pretrain?"),
        ("pretrain", "no images given: simmim pretrain DATA"),
        ("pretrain nowhere", "there is no folder, archive, table or image nowhere"),
        ("pretrain EMPTY", "holds no images"),
        ("pretrain PHOTOS --out PHOTOS", "is not empty"),
        ("pretrain PHOTOS --out RUN", "holds another run"),
        ("pretrain PHOTOS --model vit_tny_patch16_224", "Did you mean vit_tiny_patch16_224"),
        ("pretrain PHOTOS --image-size 100", "not a multiple of the patch size 16"),
        ("pretrain PHOTOS --from nowhere", "--from nowhere: there is no such run"),
        ("pretrain PHOTOS --labels no.csv", "--labels no.csv: there is no such file"),
        ("pretrain --resume EMPTY", "is not a run folder"),
        ("pretrain --resume RUN seed=1", "--seed cannot be given with --resume"),
        ("finetune PHOTOS", "--from is missing"),
        ("finetune nowhere --from none", "there is no folder, archive, table or image nowhere"),
        ("finetune PHOTOS --from none --out RUN", "holds another run"),
        ("finetune PHOTOS --from nowhere", "--from nowhere: there is no such run"),
        ("finetune PHOTOS --from none --model vit", "'vit' is not a timm model"),
        ("finetune PHOTOS --from RUN --model vit", "Give one of them"),
        ("probe nowhere PHOTOS", "RUN nowhere: there is no such run"),
        ("probe RUN EMPTY", "holds no images"),
        ("probe timm:vit_tny_patch16_224 PHOTOS", "Did you mean vit_tiny_patch16_224"),
        ("probe RUN PHOTOS --k 0", "--k must be above 0"),
        ("probe RUN PHOTOS --task segment --protocol fewshot", "there are knn, linear and all"),
        ("probe RUN PHOTOS --task segment --labels a.csv", "--labels gives classes of whole"),
        ("probe RUN PHOTOS --task.ignore 0", "say what masks mean, for --task segment"),
        ("probe RUN PHOTOS --task segment --classes no.csv", "--classes no.csv: there is no such"),
        ("embed RUN PHOTOS --out a.csv", "--out must end in .parquet or .npz"),
        ("embed RUN PHOTOS --out no/a.npz", "there is no folder no"),
        ("reconstruct RUN nowhere.jpg", "there is no folder, archive, table or image nowhere.jpg"),
        ("report EMPTY", "is not a run folder"),
        ("demo --minutes 0", "--minutes must be above 0"),
        ("recipes show", "which recipe?"),
        ("recipes show mea", "Did you mean mae?"),
        ("recipes shwo", "takes nothing, or `show NAME`"),
        ("models no_such_thing_at_all", "no supported timm model"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(
    words: str, message: str, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("format: 1\n")
    places = {"PHOTOS": photos, "EMPTY": str(tmp_path / "empty"), "RUN": str(tmp_path / "run")}
    before = sorted(tmp_path.rglob("*"))
    assert main([places.get(word, word) for word in words.split()]) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(r"(preparing: .*\n)?", printed.out)
    assert printed.err.startswith("simmim: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        "pretrain nowhere",
        "pretrain PHOTOS --out PHOTOS",
        "pretrain PHOTOS --image-size 100",
        "finetune PHOTOS --from nowhere",
        "probe RUN nowhere",
        "embed timm:vit PHOTOS",
        "report nowhere",
    ],
)
def test_a_mistake_is_answered_before_anything_heavy_is_loaded(words: str, photos: str):
    done, imported = simmim(*(photos if word == "PHOTOS" else word for word in words.split()))
    assert done.returncode == 2
    assert done.stderr.startswith("simmim: ")
    heavy = {"torch", "timm", "numpy", "PIL", "matplotlib", "sklearn", "pyarrow"}
    assert not {name.partition(".")[0] for name in imported} & heavy


def test_recipes_are_listed_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert "\nmae  " in listed

    assert main(["recipes", "show", "mae", "mask.ratio=0.6"]) == 0
    shown = capsys.readouterr().out
    assert "  ratio: 0.6\n" in shown

    file = tmp_path / "mine.yaml"
    file.write_text(shown)
    assert main(["recipes", "show", "mae", "--config", str(file)]) == 0
    assert capsys.readouterr().out == shown


def test_models_are_listed_by_a_part_of_their_name(capsys: pytest.CaptureFixture[str]):
    assert main(["models", "vit_small_patch16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("vit_small_patch16_224 ") for line in lines)
    assert all("vit_small_patch16" in line for line in lines[1:-2])


@pytest.mark.parametrize("words", ["models", "pretrain --help", "recipes", "--version"])
def test_a_reader_that_leaves_early_is_no_failure(words: str):
    process = subprocess.Popen(
        [sys.executable, "-m", "simmim", *words.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
    process.stderr.close()


def test_ctrl_c_exits_with_130(tmp_path: Path):
    pipe = tmp_path / "config.yaml"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, "-m", "simmim", "pretrain", "--config", str(pipe)],
        stderr=subprocess.PIPE,
        text=True,
        # A shell that started the tests in the background has SIGINT ignored in all its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with pipe.open("w"):  # opens once the command has begun to read it
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "simmim: stopped.\n"


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_the_road_from_the_command_to_the_loss_is_short(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class LostError(Exception):
        """Raised inside the loss."""

    def lose(*_: object) -> None:
        raise LostError

    def spoil(_: Health, __: object) -> None:  # the first real step begins
        for task in (ClassifyTask, PretrainTask):
            monkeypatch.setattr(task, "loss", lose)

    monkeypatch.setattr(Health, "before_step", spoil)
    for i in range(8):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png")
    words = [command, str(tmp_path / "photos"), *SMALL, "--out", str(tmp_path / "run")]
    with pytest.raises(LostError) as caught:
        main([*words, *(["--from", "none"] if command == "finetune" else [])])
    package = Path(checked.__file__).parent
    ours = [entry for entry in caught.traceback if Path(entry.path).is_relative_to(package)]
    assert len(ours) <= 8, [entry.name for entry in ours]  # and `python -m simmim` is one more
