"""Processes that do tasks in any order: a lost one is replaced, errors arrive, nobody is left."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from simmim.data.processes import Place, ProcessLoss, do_all


def double(task: int, place: Place) -> int:
    place.at = task
    return 2 * task


def die(folder: Path, times: int, task: int, place: Place) -> int:
    place.at = 100 + task
    if task == 3:
        fallen = len(list(folder.iterdir()))
        if fallen < times:
            (folder / str(fallen)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return task


def fail(task: int, place: Place) -> int:
    if task == 2:
        raise ConnectionError("no route")
    return task


def stall(task: int, place: Place) -> int:
    if task == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return task


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_all_tasks_are_done_once(workers: int):
    results = sorted(do_all(double, range(20), workers))
    assert results == [(task, 2 * task) for task in range(20)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_process_costs_no_task(workers: int, tmp_path: Path):
    results = dict(do_all(partial(die, tmp_path, 2), range(8), workers))
    assert results == {task: task for task in range(8)}


def test_a_task_that_kills_three_processes_is_given_up_and_says_where(tmp_path: Path):
    results = dict(do_all(partial(die, tmp_path, 3), range(8), 2))
    lost = results.pop(3)
    assert isinstance(lost, ProcessLoss)
    assert lost.at == 103
    assert "SIGKILL" in lost.how
    assert sorted(results) == [0, 1, 2, 4, 5, 6, 7]


def test_a_stopped_process_is_not_waited_for():
    results = dict(do_all(stall, range(3), 1, timeout=0.5))
    assert isinstance(results[1], ProcessLoss)
    assert results[0] == 0
    assert results[2] == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_in_the_caller(workers: int):
    with pytest.raises(ConnectionError, match="no route"):
        list(do_all(fail, range(5), workers))


SCRIPT = """
import os, sys, time
from simmim.data.processes import do_all
def work(task, place):
    print(os.getpid(), flush=True)
    time.sleep(600)
list(do_all(work, range(2), 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_end_with_a_parent_that_was_killed():
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert parent.stdout is not None
    children = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not any(_runs(child) for child in children):
            return
        time.sleep(0.1)
    raise AssertionError("a process outlived its parent")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
