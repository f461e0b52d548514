"""``--resume RUN``: going on with a run of any task, and what may be changed in it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path

from simmim.cli.arguments import Words, parse
from simmim.cli.flags import Flag, as_path, flags_of
from simmim.config.run import SystemConfig, TrainingConfig
from simmim.errors import ConfigError

RESUME = Flag(
    "resume", ("resume",), Path | None, "Go on with a run that was stopped, in place of DATA.", None
)
RESUMABLE = ("epochs", "budget", "lr", "max_bad", *(field.name for field in fields(SystemConfig)))
"""Fields that a resume may change: length and rate, and what does not affect the result."""


@dataclass(frozen=True)
class Resume:
    """A run to go on with."""

    run: Path
    changes: dict[str, object]
    """Those of ``RESUMABLE`` that were given."""


def parse_resume(command: str, words: Words) -> Resume:
    """What is asked for with ``--resume``.

    Raises:
        ConfigError: Something that a run keeps is to be changed.
    """
    run = as_path(words.flags.pop("resume"))
    flags: Sequence[Flag] = flags_of(TrainingConfig())
    allowed = {flag.name: flag for flag in flags if flag.path[-1] in RESUMABLE}
    given = [*(f"--{name}" for name in words.flags if name not in allowed), *words.places]
    if given:
        raise ConfigError(
            f"{given[0]} cannot be given with --resume: a run keeps its images, its folder, and "
            "all that affects its result. With --resume one may give "
            f"{', '.join(f'--{name}' for name in allowed)}. For anything else start a new run."
        )
    config = parse(command, words, TrainingConfig())
    changes = {}
    for name in words.flags:
        path = allowed[name].path
        changes[path[-1]] = attrgetter(".".join(path))(config)
    return Resume(run, changes)
