"""`simmim health`: is a pretraining healthy, and what to do."""

from rich.console import Console

from simmim.config.commands import HealthConfig
from simmim.errors import ConfigError
from simmim.report import terminal
from simmim.report.health import RunHealth, health_of
from simmim.report.words import percent, printable
from simmim.runs.record import read_run


def run_health(config: HealthConfig) -> RunHealth:
    """Judge a run by what its folder says, and print it.

    Raises:
        CheckpointError: There is no such folder.
        ConfigError: It is not of pretraining.
    """
    record = read_run(config.run)
    if "task" in record.config:
        raise ConfigError(
            f"{config.run} is a fine-tuning, whose figures say how good it is: simmim report "
            f"{config.run}. Health is judged of pretraining."
        )
    health = health_of(record)
    console = Console()
    if config.json:
        console.print_json(data=health.as_dict(), indent=1)
        return health
    shown = [
        ("explained", health.explained, "of the hidden detail is explained"),
        ("features", health.deviation, "of their size is how far features of images differ"),
        ("blank", health.blank, "of the patches have one colour"),
        ("waiting", health.data_wait, "of the time went into waiting for images"),
        ("skipped", health.skipped, "of the steps were left out"),
    ]
    rows = [
        (name, f"{percent(share, 1)} {meaning}")
        for name, share, meaning in shown
        if share is not None
    ]
    if health.rank is not None:
        rows.append(("rank", f"{health.rank:.1f} directions are spanned by the features"))
    terminal.facts(console, rows)
    terminal.done([*lines(health), *(printable(each) for each in record.problems)], console)
    return health


def lines(health: RunHealth) -> list[str]:
    """What is to be said and done, the worst first."""
    said = []
    for each in health.findings:
        said += [f"{each.verdict}: {each.sentence}.", f"  {each.command}"]
    return said
