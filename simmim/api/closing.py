"""What a run says at its end: whether it learned, where its results are, and what comes next."""

import shlex
from pathlib import Path

from simmim.config.run import PretrainConfig
from simmim.report.verdict import longer
from simmim.report.words import count
from simmim.runs.record import Record, read_run
from simmim.training.launch import go_on


def closing_lines(run: Path, config: PretrainConfig, report: Path) -> list[str]:
    """Return the lines.

    Args:
        run: The run folder.
        config: What was asked for.
        report: The page that was written.
    """
    # Other commands take images whole; tiles they know by the run's list of them.
    data = shlex.quote(str(run / "images-0.arrow") if config.tile else config.data[0])
    name = shlex.quote(str(run))
    return [
        *_verdict(read_run(run)),
        f"report      {report}",
        f"encoder     {run / 'encoder.safetensors'}",
        "next:",
        f"  simmim reconstruct {name} {data} --out grid.png",
        f"  simmim probe {name} LABELLED_DATA",
        f"  simmim embed {name} {data} --out embeddings.parquet",
    ]


def _verdict(record: Record) -> list[str]:
    """What should be known before the results are used."""
    lines = []
    explained = record.last("explained")
    if record.skipped:
        lines.append(
            f"{record.skipped:,} of {count(record.step, 'step')} were skipped, since no gradient "
            "was finite there."
        )
    if record.lost("explained"):
        lines.append(
            "Whether it has learned could not be measured: explained detail is not a number. Are "
            "the images that it is measured on blank?"
        )
    elif explained is not None and explained <= 0:
        flags, words = longer(record)
        lines.append(
            "It has not learned yet: its predictions are no better than the mean of what is "
            f"visible (explained detail at or below 0 %). Train {words}: "
            f"{go_on(record.run, *flags.split())}"
        )
    return [*lines, ""] if lines else []
