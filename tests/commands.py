"""``simmim`` in processes of its own, which need not import anything first.

A process that has imported all of simmim waits, and each command is a fork of it, with a pid, a
group, signals, an environment, a folder and an output of its own. That saves the seconds in which
torch, timm and scikit-learn are imported; a test of what happens in these starts Python itself.
"""

import atexit
import multiprocessing
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from torch.distributed import TCPStore

import simmim
from simmim.cli.main import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [module.name for module in pkgutil.walk_packages(simmim.__path__, "simmim.")]
)


@atexit.register
def _end_all() -> None:
    for child in multiprocessing.active_children():
        child.kill()  # or Python waits for it


class Forked:
    """A process that calls a function, to be handled as one of ``subprocess``."""

    def __init__(
        self, call: Callable[[], int | None], cwd: Path | None = None, **environment: str
    ) -> None:
        self._streams = NamedTemporaryFile(), NamedTemporaryFile()  # noqa: SIM115
        names = [file.name for file in self._streams]
        variables = {**os.environ, **environment}
        folder = cwd or Path.cwd()
        self._process = _CONTEXT.Process(target=_begin, args=(call, folder, variables, names))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, below 0 for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    @property
    def said(self) -> tuple[str, str]:
        """What it has written to its output and its errors so far."""
        out, err = (Path(file.name).read_text("utf-8") for file in self._streams)
        return out, err

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end; what it has said."""
        self._process.join(timeout)
        assert self.returncode is not None, f"it still runs after {timeout} s: {self.said}"
        return self.said

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, and wait until it has ended."""
        self._process.kill()
        self._process.join()


def start(*words: object, cwd: Path | None = None, **environment: str) -> Forked:
    """``simmim`` with these words."""
    return Forked(partial(main, [str(word) for word in words]), cwd, **environment)


def call(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """``simmim`` with these words, when it has ended."""
    process = start(*words, **environment)
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def kill_at(step: int, run: Path, *words: object) -> None:
    """Start ``simmim`` with these words, and kill it when ``run`` has that many steps."""
    process, rows = start(*words), run / "metrics.jsonl"
    while not rows.exists() or rows.read_text().count("\n") < step:
        assert process.poll() is None, process.said
        time.sleep(0.002)
    process.kill()


def went_on_from(step: int, run: Path, copy: Path) -> Path:
    """A copy of a finished run that went on from its checkpoint of that step, in this process."""
    shutil.copytree(run, copy)
    for folder in (copy / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    assert (copy / "checkpoints" / f"step-{step:08d}").is_dir()
    assert main(["finetune", "--resume", str(copy)]) == 0
    return copy


@contextmanager
def pair(call: Callable[[], int | None]) -> Iterator[list[Forked]]:
    """Two processes that find each other as those of torchrun do, which keeps their store."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    both = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    alone = partial(_on_one_thread, call)
    processes = [Forked(alone, **both, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def _on_one_thread(call: Callable[[], int | None]) -> int | None:
    torch.set_num_threads(1)
    return call()


def _begin(
    call: Callable[[], int | None], folder: Path, environment: dict[str, str], streams: list[str]
) -> None:
    os.setsid()
    # A shell that started the tests in the background has SIGINT ignored in all its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in enumerate(streams, 1):
        with Path(name).open("ab") as file:
            os.dup2(file.fileno(), number)
    sys.exit(call())
