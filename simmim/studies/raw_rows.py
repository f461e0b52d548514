"""The raw rows of a study: a CSV that is whole after each row, so that none is made twice."""

import contextlib
import csv
import datetime
import io
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from simmim.config.seal import read_sealed, seal_json
from simmim.errors import CheckpointError, ConfigError, Stopped
from simmim.report import terminal
from simmim.runs.files import write_text
from simmim.runs.folder import check_free, preparing

SETTINGS = "settings.json"
_SHOWN = 100
"""Letters of two settings up to which they are shown; hashes say nothing."""

Row = dict[str, Any]


class RawRows:
    """Rows in the order in which they were made, in memory and in a file.

    Attributes:
        rows: All of them; numbers are floats, but for those that are whole.
    """

    def __init__(
        self, folder: Path, name: str, settings: Mapping[str, Any], texts: Sequence[str]
    ) -> None:
        """Open the rows of a study, or begin new ones.

        Args:
            folder: Of the study; it exists.
            name: Of the CSV in it.
            settings: All that a row hangs on, beside what it says itself; what is new here is
                taken up.
            texts: Columns that hold text, and no numbers.

        Raises:
            ConfigError: The study there has other settings.
            CheckpointError: A file in it is damaged.
        """
        self.file = folder / name
        self.rows: list[Row] = []
        self.texts = frozenset(texts)
        known = folder / SETTINGS
        settings = json.loads(json.dumps(settings, default=str))
        if not known.exists():
            write_text(known, seal_json(settings))
            return
        before = json.loads(read_sealed(known, "Choose another --out.").text)
        before.pop("sha256", None)
        for key in [key for key in settings if key in before]:
            if before[key] != settings[key]:
                long = len(f"{before[key]}{settings[key]}") > _SHOWN
                how = "" if long else f" ({before[key]} there, {settings[key]} asked for)"
                raise ConfigError(
                    f"{folder} holds a study with another setting of {key}{how}. Choose another "
                    "--out, or ask for the same."
                )
        write_text(known, seal_json(before | settings))
        if self.file.exists():
            self.rows = self._read()

    def add(self, row: Row) -> None:
        """Take up a row, and write all of them."""
        self.rows.append(row)
        text = io.StringIO()
        names = list(dict.fromkeys(name for each in self.rows for name in each))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.file, text.getvalue())

    def find(self, **wanted: Any) -> list[Row]:
        """The rows in which all of these are so."""
        return [row for row in self.rows if all(row[key] == wanted[key] for key in wanted)]

    def _read(self) -> list[Row]:
        try:
            with self.file.open(encoding="utf-8", newline="") as stream:
                return [
                    {
                        name: text if name in self.texts else _number(text)
                        for name, text in row.items()
                        if text != ""
                    }
                    for row in csv.DictReader(stream, strict=True)
                ]
        except (OSError, ValueError, csv.Error, AttributeError) as error:
            raise CheckpointError(
                f"{self.file} is damaged ({error}). Put it back, or choose another --out."
            ) from error


def _number(text: str) -> float:
    """A number, a whole one where it is written so."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def study_folder(out: Path | None, name: str) -> Path:
    """Make the folder of a study, or find one that is gone on with.

    Args:
        out: The folder; None: ``runs/DATE-NAME``, numbered where that is taken.
        name: The last part of that.

    Raises:
        ConfigError: It holds something else, or cannot be written.
    """
    if out is not None:
        if not (out / SETTINGS).is_file():
            check_free(out)
        with preparing(out):
            out.mkdir(parents=True, exist_ok=True)
        return out
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M")
    for number in itertools.count(1):
        folder = Path("runs") / f"{stamp}-{name}{f'-{number}' if number > 1 else ''}"
        with contextlib.suppress(FileExistsError), preparing(folder):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError  # there is always a next number


@contextlib.contextmanager
def told_how_to_go_on(console: Console, folder: Path) -> Iterator[None]:
    """Let whatever stops a study say how it goes on."""
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        out = shlex.join(["--out", str(folder)])
        terminal.line(console, f"what is done is kept; go on with the same command and {out}")
        raise
