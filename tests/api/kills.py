"""Runs a command over and over, each time in a new process that is killed at some step.

    python kills.py RUN STEP,STEP,… WORDS… -- WORDS…

The first words begin the run, those after ``--`` go on with it. All is imported once, and each
attempt is a fork; what it has written is all that the next one knows. The last attempt ends.
"""

import os
import signal
import sys
import time
from pathlib import Path

from simmim.api import finetune, pretrain  # noqa: F401
from simmim.cli.main import main
from simmim.tasks import classify  # noqa: F401


def begin(words: list[str]) -> int:
    child = os.fork()
    if not child:
        status = 70
        try:
            status = main(words)
        finally:
            sys.stdout.flush()
            os._exit(status)
    return child


def last_step(metrics: Path) -> int:
    return metrics.read_text().count("\n") if metrics.exists() else 0


def attempts(run: Path, steps: list[int], first: list[str], again: list[str]) -> int:
    words = first
    for step in steps:
        child = begin(words)
        while last_step(run / "metrics.jsonl") < step:
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                return 71  # it ended before
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        words = again
    return os.waitstatus_to_exitcode(os.waitpid(begin(words), 0)[1])


if __name__ == "__main__":
    _, run, steps, *words = sys.argv
    cut = words.index("--")
    sys.exit(
        attempts(Path(run), [int(step) for step in steps.split(",")], words[:cut], words[cut + 1 :])
    )
