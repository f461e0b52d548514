"""What a run says at its end: whether it learned, where its results are, and what comes next."""

import shlex
from pathlib import Path

from simmim.config.run import PretrainConfig
from simmim.training.monitor import read_metrics


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
        *_verdict(run),
        f"report      {report}",
        f"encoder     {run / 'encoder.safetensors'}",
        "next:",
        f"  simmim reconstruct {name} {data} --out grid.png",
        f"  simmim probe {name} LABELLED_DATA",
        f"  simmim embed {name} {data} --out embeddings.parquet",
    ]


def _verdict(run: Path) -> list[str]:
    rows, _ = read_metrics(run / "metrics.jsonl")
    looked = [row["explained"] or 0.0 for row in rows if "explained" in row]
    if not looked or looked[-1] > 0:
        return []
    return [
        "It has not learned yet: its predictions are no better than the mean of what is visible "
        "(explained detail at or below 0 %). Train longer.",
        "",
    ]
