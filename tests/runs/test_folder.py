"""Who may write a run folder, and what is left where nothing was started."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from simmim.config.finetune import ClassifyConfig
from simmim.config.resolved import PixelFormat, Resolved
from simmim.config.run import PretrainConfig, SystemConfig
from simmim.config.saved import settings_hash
from simmim.errors import CheckpointError, ConfigError, Stopped, TrainingError
from simmim.runs.folder import RunFolder, check_free, read_config, write_config
from simmim.runs.lock import Lock

CONFIG = PretrainConfig(data=("photos",), epochs=3)


def take(out: Path | None) -> RunFolder:
    return RunFolder(out, "a", "simmim pretrain")


def leave(folder: RunFolder, error: BaseException, *before: Callable[[], object]) -> None:
    """Begin a run and leave it by an error, after what is done before."""
    with folder:
        folder.begin(CONFIG)
        for each in before:
            each()
        raise error


def resolved(asked: PretrainConfig) -> Resolved:
    pixels = PixelFormat(channels=1, low=(0.0,), high=(255.0,), mean=(0.4,), std=(0.2,))
    return Resolved(
        images=9,
        holdout=1,
        image_size=(32, 32),
        patch_size=8,
        pixels=pixels,
        batch_size=2,
        micro_batch=1,
        steps=10,
        precision="fp32",
        threads=1,
        device="cpu",
        why={},
        asked=settings_hash(asked),
    )


@contextmanager
def process(code: str, *words: object) -> Iterator[subprocess.Popen]:
    """A process that prints a line when it has come so far, and waits for its input to end."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom simmim.errors import ConfigError\n"
        "from simmim.runs.lock import Lock\nfrom simmim.runs.folder import RunFolder\n"
    )
    command = [sys.executable, "-c", script + code, *map(str, words)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


HOLD = "lock = Lock(Path(sys.argv[1]), 'simmim pretrain')\nprint('held', flush=True)\n"


def line(started: subprocess.Popen) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def test_a_second_process_is_told_who_has_the_run(tmp_path: Path):
    with process(HOLD + "sys.stdin.read()", tmp_path) as holder:
        assert line(holder) == "held"
        who = f"in use by simmim pretrain, process {holder.pid} on {socket.gethostname()}"
        with pytest.raises(ConfigError, match=who):
            Lock(tmp_path, "simmim pretrain")
        (tmp_path / "config.yaml").write_text("")
        with pytest.raises(ConfigError, match=who):
            take(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        Lock(tmp_path, "simmim pretrain").release()


def test_a_lock_ends_with_its_process_though_a_forked_one_lives_on(tmp_path: Path):
    fork = "if not os.fork():\n    print(os.getpid(), flush=True)\nsys.stdin.read()"
    with process(HOLD + fork, tmp_path) as holder:
        assert line(holder) == "held"
        child = int(line(holder))
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(child, 0)  # it lives
        Lock(tmp_path, "simmim pretrain").release()


def test_one_that_has_just_taken_a_run_is_named(tmp_path: Path):
    (tmp_path / ".lock").write_text("a process that was killed, with a long name")
    with (tmp_path / ".lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        names_itself = threading.Timer(0.1, os.pwrite, (file.fileno(), b"the new one\n" * 5, 0))
        names_itself.start()
        with pytest.raises(ConfigError, match="is in use by the new one"):
            Lock(tmp_path, "simmim pretrain")
        names_itself.join()
    Lock(tmp_path, "x").release()
    assert (tmp_path / ".lock").read_text().startswith("x, process")
    assert (tmp_path / ".lock").read_text().count("\n") == 1


def test_a_lock_excludes_a_second_one_of_the_same_process_until_it_is_released(tmp_path: Path):
    with Lock(tmp_path, "simmim pretrain"), pytest.raises(ConfigError, match="in use"):
        Lock(tmp_path, "simmim pretrain")
    Lock(tmp_path, "simmim pretrain").release()


def test_where_nothing_can_be_locked_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    Lock(tmp_path, "simmim demo").release()
    monkeypatch.setattr(fcntl, "flock", refuse)
    Lock(tmp_path, "simmim pretrain").release()
    assert "cannot lock (No locks available)" in caplog.text
    assert f"the last was simmim demo, process {os.getpid()}" in caplog.text


RACE = """
sys.stdin.readline()
try:
    folder = RunFolder(Path(sys.argv[1]) if len(sys.argv) > 1 else None, "a", "simmim pretrain")
    print(folder.path, flush=True)
    sys.stdin.read()
except ConfigError as error:
    print(error, flush=True)
"""


def at_once(count: int, *words: object) -> list[str]:
    """What so many processes say that take a folder at the same time."""
    with ExitStack() as stack:
        processes = [stack.enter_context(process(RACE, *words)) for _ in range(count)]
        for started in processes:
            assert started.stdin is not None
            started.stdin.write("\n")
            started.stdin.flush()
        return [line(started) for started in processes]


def test_of_many_starts_on_one_folder_one_works(tmp_path: Path):
    out = tmp_path / "deep" / "run"
    said = at_once(5, out)
    assert said.count(str(out)) == 1
    assert sum("is in use by" in text for text in said) == 4


def test_many_starts_in_one_minute_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    said = at_once(5)
    assert all(text.startswith("runs/") for text in said)
    assert len(set(said)) == 5


def test_what_was_not_started_leaves_nothing_but_what_others_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        leave(take(None), KeyboardInterrupt(), Path("runs/other").mkdir)
    assert [str(path) for path in Path("runs").rglob("*")] == ["runs/other"]
    Path("runs/other").rmdir()
    with pytest.raises(KeyboardInterrupt):
        leave(take(Path("runs/deep/x")), KeyboardInterrupt())
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]  # it was there before
    Path("runs").rmdir()
    with pytest.raises(KeyboardInterrupt):
        leave(take(Path("runs/deep/x")), KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", [False, True])
def test_an_empty_folder_that_was_there_stays(tmp_path: Path, link: bool):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").touch()  # of a process that was killed at once
    if link:
        out.rename(tmp_path / "elsewhere")
        out.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="mine"):
        leave(take(out), ConfigError("mine"), (out / "notes.txt").touch)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert out.is_symlink() == link


@pytest.mark.parametrize("error", [Stopped(signal.SIGTERM, 0), TrainingError("too many are bad")])
def test_a_run_that_may_be_gone_on_with_stays(tmp_path: Path, error: Exception):
    with pytest.raises(type(error)):
        leave(take(tmp_path / "run"), error)
    assert read_config(tmp_path / "run", PretrainConfig) == (CONFIG, None)
    Lock(tmp_path / "run", "simmim pretrain").release()


@pytest.mark.parametrize("error", [Stopped(signal.SIGTERM), KeyboardInterrupt()])
def test_a_signal_before_the_settings_are_written_leaves_nothing(
    tmp_path: Path, error: BaseException
):
    with pytest.raises(type(error)), take(tmp_path / "deep" / "run"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_the_folder_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # As the lock names its process.
    monkeypatch.setattr(os, "pwrite", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped), take(tmp_path / "deep" / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_started_run_stays(tmp_path: Path):
    folder = take(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        leave(folder, KeyboardInterrupt(), lambda: setattr(folder, "started", True))
    assert (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("prepared", [False, True])
def test_the_same_command_takes_up_a_run_without_a_checkpoint(tmp_path: Path, prepared: bool):
    with take(tmp_path / "run") as folder:
        folder.begin(CONFIG)
    (tmp_path / "run" / "checkpoints" / ".tmp-5-77").mkdir(parents=True)
    chosen = replace(CONFIG, optim=replace(CONFIG.optim, lr=0.125))
    if prepared:
        write_config(tmp_path / "run", chosen, resolved(CONFIG))
    more = {"system": SystemConfig(workers=3), "max_bad": 0.5, "out": tmp_path / "x" / ".." / "run"}
    with take(tmp_path / "run") as folder:
        folder.begin(replace(CONFIG, **more))
    assert folder.saved == ((chosen, resolved(CONFIG)) if prepared else None)
    with pytest.raises(ConfigError, match="mine"):
        leave(take(tmp_path / "run"), ConfigError("mine"))
    assert (tmp_path / "run" / "config.yaml").exists()
    with (
        pytest.raises(ConfigError, match=r"other settings.*--resume"),
        take(tmp_path / "run") as folder,
    ):
        folder.begin(replace(CONFIG, epochs=4))


def test_a_run_with_a_checkpoint_or_a_damaged_one_is_not_taken(tmp_path: Path):
    run = tmp_path / "my run"
    with take(run) as folder:
        folder.begin(CONFIG)
    with (
        pytest.raises(ConfigError, match=r"another run. .*and not of `simmim finetune`"),
        take(run) as folder,
    ):
        folder.begin(ClassifyConfig(data=("photos",), init_from="none"))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    with (
        pytest.raises(ConfigError, match=r"another run. .*config\.yaml is damaged, or was changed"),
        take(run) as folder,
    ):
        folder.begin(CONFIG)
    (run / "config.yaml").write_text(text)
    (run / "checkpoints" / "damaged-step-00000003").mkdir(parents=True)
    with pytest.raises(ConfigError, match="another run"):
        take(run)
    with pytest.raises(CheckpointError, match="an older one"):
        read_config(run, PretrainConfig)  # what was resolved is missing
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        take(tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["x"]


def test_settings_that_were_edited_are_answered_with_what_to_do(tmp_path: Path):
    with take(tmp_path / "run") as folder:
        folder.begin(CONFIG)
    file = tmp_path / "run" / "config.yaml"
    for text in (file.read_text().replace("epochs: 3", "epochs: 4"), "format: 1\n", "", "a: ["):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.yaml is damaged.*changed by flags"):
            read_config(tmp_path / "run", PretrainConfig)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("file", "file is a file"),
        ("file/run", "file is a file"),
        ("gone", "is a link to nowhere"),
        ("loop/run", "cannot be written"),
        ("two\nlines", "has a line break"),
        ("x" * 300, "cannot be written"),
    ],
)
def test_a_name_that_cannot_be_a_folder_is_answered(tmp_path: Path, name: str, says: str):
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=says):
        take(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_is_told_and_nothing_is_left(full_disk: Path):
    (full_disk / "ballast").write_bytes(bytes(4096))
    with (
        pytest.raises(ConfigError, match=r"cannot be written .No space left on device"),
        take(full_disk / "deep" / "run") as folder,
    ):
        folder.begin(CONFIG)
    assert [path.name for path in full_disk.iterdir()] == ["ballast"]


def test_a_disk_that_may_not_be_written_is_told(full_disk: Path):
    (full_disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    for attempt in (lambda: take(full_disk / "new"), lambda: Lock(full_disk / "run", "x")):
        with pytest.raises(ConfigError, match=r"cannot be written .Read-only file system"):
            attempt()


def test_what_is_left_of_a_killed_process_counts_as_nothing(tmp_path: Path):
    check_free(tmp_path)
    (tmp_path / ".lock").touch()
    (tmp_path / ".tmp-77-config.yaml").touch()
    check_free(tmp_path)
    (tmp_path / "x").touch()
    with pytest.raises(ConfigError, match="not empty"):
        check_free(tmp_path)
