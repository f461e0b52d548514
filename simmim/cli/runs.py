"""``simmim runs``: the runs that there are, two of them side by side, and the best."""

from collections.abc import Sequence

from simmim.cli.arguments import read_command
from simmim.config.commands import RunsBestConfig, RunsConfig, RunsDiffConfig

RUNS = """List the runs in a folder, the newest first: how each stands, and what it reached.
  simmim runs
  simmim runs experiments/ --json
  simmim runs diff runs/one runs/two     settings, environment and curves that differ
  simmim runs best --by knn              the best run of each task, and its next command

A run is running, finished, stopped, failed or damaged. Nothing is changed."""

DIFF = """Show where two runs differ: settings that affect the result first, environment, curves.
  simmim runs diff runs/one runs/two"""

BEST = """Name the best run in a folder, of each task and data set, by its last figure.
  simmim runs best
  simmim runs best experiments/ --by knn"""


def runs(words: Sequence[str]) -> None:
    """``simmim runs``, ``simmim runs diff A B`` and ``simmim runs best``."""
    config = parse_runs(words)
    from simmim.api.runs import run_best, run_diff, run_list

    match config:
        case RunsDiffConfig():
            run_diff(config)
        case RunsBestConfig():
            run_best(config)
        case RunsConfig():
            run_list(config)


def parse_runs(words: Sequence[str]) -> RunsConfig | RunsDiffConfig | RunsBestConfig:
    """What the words after ``simmim runs`` ask for.

    Raises:
        ConfigError: They do not say one list, difference or choice.
    """
    match list(words):
        case ["diff", *rest]:
            return read_command("runs diff", rest, RunsDiffConfig, DIFF)
        case ["best", *rest]:
            return read_command("runs best", rest, RunsBestConfig, BEST)
        case rest:
            return read_command("runs", rest, RunsConfig, RUNS)
