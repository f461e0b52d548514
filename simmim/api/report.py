"""`simmim report`: a run's page, written anew."""

from pathlib import Path

from simmim.config.commands import ReportConfig
from simmim.report import html, terminal


def run_report(config: ReportConfig) -> Path:
    """Write a run's report anew."""
    out = html.run_report(config.run)
    terminal.done([f"report      {out}"])
    return out
