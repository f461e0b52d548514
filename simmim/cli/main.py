"""The entry point: find the command, run it, and turn what went wrong into one message."""

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from simmim.config.nearest import did_you_mean
from simmim.data.names import plain
from simmim.errors import ConfigError, ExitStatus, ReportedError, SimmimError, Stopped


class Command(NamedTuple):
    """Where a command is, and what the top help says of it."""

    module: str
    function: str
    usage: str
    summary: str


COMMANDS = {
    "demo": Command(
        "use", "demo", "", "the whole story in a few minutes, on photos that come with simmim"
    ),
    "pretrain": Command(
        "pretrain", "run", "DATA", "train an encoder on your own images, without labels"
    ),
    "plan": Command("plan", "run", "DATA", "what will a run take: time, memory, disk?"),
    "finetune": Command(
        "finetune", "run", "DATA --from X", "learn classes, masks, boxes or numbers from labels"
    ),
    "probe": Command("use", "probe", "RUN DATA", "measure what frozen features are worth"),
    "embed": Command("use", "embed", "RUN DATA", "write one feature vector per image to a file"),
    "predict": Command(
        "use", "predict", "RUN DATA --out X", "say what a fine-tuned run takes images for"
    ),
    "labels": Command(
        "study", "labels", "DATA --from RUN", "how many labels is pretraining worth?"
    ),
    "study": Command(
        "study", "study", "DATA --over F=V1,V2", "which value of a setting learns best?"
    ),
    "pick": Command("use", "pick", "DATA --from RUN", "choose the images to label next"),
    "reconstruct": Command(
        "use", "reconstruct", "RUN IMAGES", "show what the model fills in where patches are masked"
    ),
    "scan": Command(
        "data", "scan", "DATA", "look at images: kinds, sizes, what is broken, what is twice there"
    ),
    "shard": Command(
        "data", "shard", "DATA --out DIR", "resize images once and pack them, to be read fast"
    ),
    "bench": Command("data", "bench", "DATA", "will reading the images starve the model?"),
    "export": Command(
        "use", "export", "RUN --format F --out DIR", "write it for another library, and compare"
    ),
    "health": Command("use", "health", "RUN", "is a pretraining healthy, and what to do?"),
    "launch": Command(
        "launch", "launch", "slurm -- pretrain DATA", "write a job for a cluster that goes on"
    ),
    "runs": Command("runs", "runs", "[FOLDER]", "list runs: how each stands, which is best"),
    "report": Command("use", "report", "RUN", "write a run's report.html anew"),
    "doctor": Command("use", "doctor", "[DATA]", "is this machine, and what is installed, fit?"),
    "verify": Command("use", "verify", "", "check this installation against the formulas"),
    "recipes": Command("recipes", "recipes", "", "list published settings, or show one whole"),
    "models": Command("recipes", "models", "[FILTER]", "list the encoders to choose from"),
}

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a disk that takes nothing more."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        words: What follows ``simmim``; default: the command line's.

    Returns:
        The exit status; see ``ExitStatus``.
    """
    from simmim.runs.stop import listen
    from simmim.training.launch import leads, share_cores

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    share_cores()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be of any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            with listen():
                command, rest = _choose(sys.argv[1:] if words is None else list(words))
                command(rest)
        finally:
            sys.stdout.flush()  # here, where a reader that has left is no failure
    except SimmimError as error:
        if not isinstance(error, ReportedError):
            print(f"simmim: {plain(str(error))}", file=sys.stderr)
        return ExitStatus.FAILED if error.started else ExitStatus.NOT_STARTED
    except Stopped as stopped:
        if leads():
            print(f"simmim: {stopped}", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt as stopped:
        print(f"simmim: stopped {stopped}" if stopped.args else "simmim: stopped.", file=sys.stderr)
        return ExitStatus.INTERRUPTED
    except OSError as error:
        return _cannot_write(error)
    return ExitStatus.DONE


def _cannot_write(error: OSError) -> int:
    """The exit status where nobody reads the output any more, or the disk takes nothing more."""
    if isinstance(error, BrokenPipeError) and _reader_left():
        return ExitStatus.READER_LEFT
    if error.errno not in FULL:
        raise error
    where = f" at {error.filename}" if error.filename else ""
    print(
        f"simmim: the results cannot be written{where}: {error.strerror}. What was finished "
        "before is kept; free some space, or name another place.",
        file=sys.stderr,
    )
    return ExitStatus.FAILED


def top_help() -> str:
    """What ``simmim`` alone prints."""
    rows = [(f"{name} {command.usage}".strip(), command) for name, command in COMMANDS.items()]
    width = max(len(usage) for usage, _ in rows)
    lines = [f"  {usage:{width}}  {command.summary}" for usage, command in rows]
    return "\n".join(
        [
            "simmim: pretrain a vision encoder on your own unlabelled images, and use it.",
            "",
            "usage: simmim COMMAND …",
            "",
            *lines,
            "",
            "DATA is a folder of images, a zip or tar file, shards, a table or a URL. RUN is the",
            "folder that pretraining wrote, or anybody's weights: a file, a folder of timm or",
            "transformers, timm:NAME, hf:REPO.",
            "Begin with `simmim demo`, or with your own images: `simmim pretrain photos/`.",
            "More on one command: simmim COMMAND --help.  Version: simmim --version.",
        ]
    )


def _choose(words: list[str]) -> tuple[Callable[[Sequence[str]], object], list[str]]:
    """The function that the words ask for, and the rest of them."""
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        return lambda _: print(top_help()), []
    name, *rest = words
    if name in ("--version", "-V", "version"):
        from importlib.metadata import version

        return lambda _: print(f"simmim {version('simmim')}"), []
    if name not in COMMANDS:
        raise ConfigError(
            f"there is no command {name!r}.{did_you_mean(name, COMMANDS)} "
            "All of them: simmim --help"
        )
    command = COMMANDS[name]
    return getattr(import_module(f"simmim.cli.{command.module}"), command.function), rest


def _reader_left() -> bool:
    """Whether standard output is the pipe that broke; if so, nothing more is written to it."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
